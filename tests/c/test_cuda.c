/* SPDX-License-Identifier: MIT */
/* lofi_cuda_mean on the fake driver: what it launches, where, and what it refuses. */
#include "fake/fake.h"
#include "test.h"

#include <math.h>
#include <pthread.h>

static const struct lofi__driver *cu = &fake_cuda;

/* Retained for the whole test, as a program that uses a GPU does. */
static void retain(int device)
{
    lofi__cu_context context = NULL;
    ASSERT(cu->DevicePrimaryCtxRetain(&context, device) == 0);
}

/* For threads too, unlike ASSERT, which counts. */
static void must(lofi__cu_result result)
{
    if (result == 0) return;
    fprintf(stderr, "the fake driver returned %d\n", result);
    abort();
}

static lofi__cu_stream make_stream(int device)
{
    lofi__cu_stream stream = NULL;
    must(cu->CtxPushCurrent(fake_cuda_context(device)));
    must(cu->StreamCreate(&stream, LOFI__CU_STREAM_NON_BLOCKING));
    must(cu->CtxPopCurrent(NULL));
    return stream;
}

static lofi__cu_result finish(int device, lofi__cu_stream stream)
{
    must(cu->CtxPushCurrent(fake_cuda_context(device)));
    lofi__cu_result result = fake_cuda_finish(stream);
    must(cu->CtxPopCurrent(NULL));
    return result;
}

static int pending(int device, lofi__cu_stream stream)
{
    must(cu->CtxPushCurrent(fake_cuda_context(device)));
    const int count = fake_cuda_pending(stream);
    must(cu->CtxPopCurrent(NULL));
    return count;
}

/* ---- the same bits as lofi_mean, later ------------------------------------------------------- */

#define INPUTS 5
#define STRIDE 4096

/* Offsets of the buffers from an alignment of 256, and what they leave of the stride. */
static void check_mean(lofi_dtype dtype, size_t offset, size_t gap, const double *weights,
                       int inputs, int in_place)
{
    const size_t each = lofi_dtype_bytes(dtype), stride = STRIDE - gap;
    const size_t count = (stride - 32) / each;
    lofi__cu_stream stream = make_stream(0);
    char *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, 0, (INPUTS + 1) * STRIDE);
    char *in = memory + offset,
         *out = in_place ? in + stride * (size_t)(inputs - 1) : memory + INPUTS * STRIDE + offset;
    static _Alignas(16) char expected[STRIDE];
    const void *list[INPUTS];
    uint64_t seed = offset + gap;

    for (size_t i = 0; i + 8 <= INPUTS * STRIDE; i += 8) {
        const uint64_t bits = test_random(&seed) & UINT64_C(0xbf3fbf3fbf3fbf3f); /* no NaN */
        memcpy(memory + i, &bits, 8);
    }
    for (int i = 0; i < inputs; i++)
        list[i] = in + stride * (size_t)i;
    const char before = out[0];
    ASSERT(lofi_mean(dtype, expected, list, weights, inputs, count) == LOFI_OK);
    ASSERT(lofi_cuda_mean(dtype, out, in, stride, inputs, weights, count, stream) == LOFI_OK);
    EXPECT(pending(0, stream) == 1 && out[0] == before); /* not yet */
    EXPECT(finish(0, stream) == 0);
    EXPECT(memcmp(out, expected, count * each) == 0);
    EXPECT(fake_cuda_depth() == 0);
    ASSERT(cu->StreamDestroy(stream) == 0);
    fake_cuda_free(memory);
}

static void test_means(void)
{
    static const double weights[INPUTS] = {0.1, 0.2, 3, 0.25, 0.15};

    for (int dtype = 0; dtype < LOFI_DTYPE_COUNT; dtype++)
        for (int inputs = 1; inputs <= INPUTS; inputs++)
            for (int in_place = 0; in_place < 2; in_place++) {
                if (lofi_dtype_name((lofi_dtype)dtype)[0] == 'i' && in_place) continue;
                check_mean((lofi_dtype)dtype, 0, 0, NULL, inputs, 0);
                check_mean((lofi_dtype)dtype, 16, 16, weights, inputs, 0);
                check_mean((lofi_dtype)dtype, 8, 0, weights, inputs, 0);
                check_mean((lofi_dtype)dtype, 0, 8, NULL, inputs, 0);
            }
    for (int inputs = 1; inputs <= INPUTS; inputs++) {
        check_mean(LOFI_F32, 0, 0, weights, inputs, 1);
        check_mean(LOFI_BF16, 2, 2, NULL, inputs, 1);
    }
}

/* The stream, its device, the size of the grid, and how the elements are read. */
static void test_launch(void)
{
    const size_t most = (size_t)16384 * 256 * 16;
    lofi__cu_stream stream = make_stream(1);
    char *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, 1, most + 32);

    ASSERT(lofi_cuda_mean(LOFI_F32, memory, memory, 0, 1, NULL, 4096, stream) == LOFI_OK);
    struct fake_cuda_launch launch = fake_cuda_last_launch();
    EXPECT(strcmp(launch.name, "lofi_mean_f32") == 0);
    EXPECT(launch.stream == stream && launch.grid == 4 && launch.block == 256);
    EXPECT(launch.shared_bytes == 0);
    ASSERT(lofi_cuda_mean(LOFI_F32, memory, memory + 4, 0, 1, NULL, 4096, stream) == LOFI_OK);
    EXPECT(fake_cuda_last_launch().grid == 16); /* element by element */
    ASSERT(lofi_cuda_mean(LOFI_F64, memory, memory, 0, 1, NULL, 1, stream) == LOFI_OK);
    launch = fake_cuda_last_launch();
    EXPECT(launch.grid == 1 && strcmp(launch.name, "lofi_mean_f64") == 0);
    EXPECT(pending(1, stream) == 3 && finish(1, stream) == 0);

    /* A broken stream takes nothing: only the sizes are of interest. */
    ASSERT(cu->CtxPushCurrent(fake_cuda_context(1)) == 0);
    fake_cuda_break(stream, FAKE_CUDA_ILLEGAL_ADDRESS);
    ASSERT(cu->CtxPopCurrent(NULL) == 0);
    EXPECT(lofi_cuda_mean(LOFI_F8_E4M3, memory, memory, 0, 1, NULL, most - 1, stream) ==
           LOFI_SYSTEM);
    EXPECT_ERROR("illegal memory access");
    EXPECT(fake_cuda_last_launch().grid == 16384);
    EXPECT(lofi_cuda_mean(LOFI_F8_E4M3, memory, memory, 0, 1, NULL, most + 32, stream) ==
           LOFI_SYSTEM);
    EXPECT(fake_cuda_last_launch().grid == 16384);
    EXPECT(fake_cuda_depth() == 0);
    ASSERT(cu->StreamDestroy(stream) == 0);
    fake_cuda_free(memory);
}

/* The default stream is that of the memory's device, whatever is current. */
static void test_default_stream(void)
{
    float *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, 1, 8);

    memory[0] = 2;
    memory[1] = 4;
    ASSERT(cu->CtxPushCurrent(fake_cuda_context(0)) == 0);
    ASSERT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, NULL) == LOFI_OK);
    EXPECT(fake_cuda_depth() == 1 && fake_cuda_pending(NULL) == 0);
    ASSERT(cu->CtxPopCurrent(NULL) == 0);
    EXPECT(memory[0] == 2 && finish(1, NULL) == 0 && memory[0] == 3);
    fake_cuda_free(memory);
}

/* Memory of no context: the primary one's, which is not kept. */
static void test_pool(void)
{
    float *memory = fake_cuda_alloc(FAKE_CUDA_POOL, 2, 8);
    const int retained = fake_cuda_retained(2);

    memory[0] = 2;
    memory[1] = 4;
    ASSERT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, NULL) == LOFI_OK);
    EXPECT(fake_cuda_retained(2) == retained && finish(2, NULL) == 0 && memory[0] == 3);
    fake_cuda_fail_next("cuDevicePrimaryCtxRetain", FAKE_CUDA_OUT_OF_MEMORY);
    EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, NULL) == LOFI_SYSTEM);
    fake_cuda_fail_next("cuDeviceGet", FAKE_CUDA_INVALID_VALUE);
    EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, NULL) == LOFI_SYSTEM);
    fake_cuda_fail_next("cuLaunchKernel", FAKE_CUDA_INVALID_VALUE);
    EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, NULL) == LOFI_SYSTEM);
    EXPECT(fake_cuda_retained(2) == retained && fake_cuda_depth() == 0);
    fake_cuda_free(memory);
}

/* ---- refused --------------------------------------------------------------------------------- */

static void test_refused(void)
{
    static const double bad[][2] = {{1, -1}, {0, 0}, {NAN, 1}, {1, INFINITY}, {1e308, 1.7e308}};
    char *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, 0, 256);
    char *pinned = fake_cuda_alloc(FAKE_CUDA_HOST, 0, 256);
    char *other = fake_cuda_alloc(FAKE_CUDA_DEVICE, 1, 256);
    double host[32] = {0};
    const int launches = fake_cuda_calls("cuLaunchKernel"),
              copies = fake_cuda_calls("cuMemcpyAsync");

#define REFUSE(text, ...)                                                                          \
    EXPECT(lofi_cuda_mean(__VA_ARGS__) == LOFI_INVALID);                                           \
    EXPECT_ERROR(text)
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 16, 2, bad[i], 4, NULL) == LOFI_INVALID);
    REFUSE("weight 1 is -1", LOFI_BYTES, memory, memory, 16, 2, bad[0], 4, NULL);
    REFUSE("dtype is 11", LOFI_DTYPE_COUNT, memory, memory, 16, 2, NULL, 4, NULL);
    REFUSE("dtype is -1", (lofi_dtype)-1, memory, memory, 16, 2, NULL, 4, NULL);
    REFUSE("of 0 inputs", LOFI_F32, memory, memory, 16, 0, NULL, 4, NULL);
    REFUSE("of 501 inputs: on a GPU it takes 1 to 500", LOFI_F32, memory, memory, 16, 501, NULL, 4,
           NULL);
    REFUSE("stride_bytes is 15", LOFI_F32, memory, memory, 15, 2, NULL, 4, NULL);
    REFUSE("multiple of the element's 4 bytes", LOFI_F32, memory, memory, 18, 2, NULL, 4, NULL);
    REFUSE("more than an address space", LOFI_F32, memory, memory, 16, 2, NULL, SIZE_MAX / 2, NULL);
    REFUSE("more than an address space", LOFI_F32, memory, memory, SIZE_MAX / 2 + 1, 3, NULL, 4,
           NULL);
    REFUSE("the output of a mean on a GPU is NULL", LOFI_F32, NULL, memory, 16, 2, NULL, 4, NULL);
    REFUSE("the input of a mean on a GPU is NULL", LOFI_F32, memory, NULL, 16, 2, NULL, 4, NULL);
    REFUSE("aligned to its elements of 4", LOFI_F32, memory + 2, memory, 16, 2, NULL, 4, NULL);
    REFUSE("the input of a mean on a GPU lies at", LOFI_F64, memory, memory + 4, 32, 2, NULL, 4,
           NULL);
    REFUSE("which is not memory of a GPU", LOFI_F32, host, memory, 16, 2, NULL, 4, NULL);
    REFUSE("which is not memory of a GPU", LOFI_BYTES, memory, host, 16, 2, NULL, 4, NULL);
    REFUSE("not memory of a GPU but of the host", LOFI_F32, pinned, memory, 16, 2, NULL, 4, NULL);
    REFUSE("not memory of a GPU but of the host", LOFI_F32, memory, pinned, 16, 2, NULL, 4, NULL);
    REFUSE("is on GPU 0, its input on GPU 1", LOFI_F32, memory, other, 16, 2, NULL, 4, NULL);
#undef REFUSE
    /* nothing to do: the pointers may be anything, and a stride means nothing to one input */
    EXPECT(lofi_cuda_mean(LOFI_F32, NULL, host, 0, 2, NULL, 0, NULL) == LOFI_OK);
    EXPECT(lofi_cuda_mean(LOFI_F32, NULL, NULL, 0, 0, NULL, 0, NULL) == LOFI_INVALID);
    EXPECT(fake_cuda_calls("cuLaunchKernel") == launches);
    EXPECT(fake_cuda_calls("cuMemcpyAsync") == copies);
    EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 1, 1, NULL, 64, NULL) == LOFI_OK);
    /* an output that is the input needs no copy */
    EXPECT(lofi_cuda_mean(LOFI_I64, memory, memory, 8, 2, NULL, 1, NULL) == LOFI_OK);
    EXPECT(fake_cuda_calls("cuMemcpyAsync") == copies);
    EXPECT(finish(0, NULL) == 0);
    fake_cuda_free(memory);
    fake_cuda_free(pinned);
    fake_cuda_free(other);
}

/* As many inputs as the parameters hold; one buffer for all. */
static void test_most_inputs(void)
{
    static double weights[LOFI_CUDA_MEAN_INPUTS];
    double *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, 0, sizeof weights + 16);

    for (int i = 0; i < LOFI_CUDA_MEAN_INPUTS; i++) {
        weights[i] = i == LOFI_CUDA_MEAN_INPUTS - 1 ? 3 : 1;
        memory[i] = i == LOFI_CUDA_MEAN_INPUTS - 1 ? 502 : 0;
    }
    double *out = memory + LOFI_CUDA_MEAN_INPUTS;
    ASSERT(lofi_cuda_mean(LOFI_F64, out, memory, 8, LOFI_CUDA_MEAN_INPUTS, weights, 1, NULL) ==
           LOFI_OK);
    weights[0] = 1e9; /* was read */
    EXPECT(finish(0, NULL) == 0 && *out == 3);
    fake_cuda_free(memory);
}

/* ---- the driver fails ------------------------------------------------------------------------ */

/* On a device where nothing was loaded yet. */
static void test_failures_of_load(int device)
{
    float *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, device, 16);
    const int modules = fake_cuda_held().modules;
    static const struct {
        const char *symbol;
        lofi__cu_result error;
        lofi_status status;
        const char *text;
    } cases[] = {
        {"cuPointerGetAttribute", FAKE_CUDA_INVALID_VALUE, LOFI_INVALID, "not memory of a GPU"},
        {"cuCtxPushCurrent_v2", FAKE_CUDA_INVALID_CONTEXT, LOFI_SYSTEM,
         "the GPU of a mean can't be used: CUDA says: invalid device context"},
        {"cuThreadExchangeStreamCaptureMode", FAKE_CUDA_INVALID_VALUE, LOFI_SYSTEM, "be loaded"},
        {"cuModuleLoadData", FAKE_CUDA_NO_BINARY, LOFI_UNSUPPORTED,
         "do not fit this GPU or its driver (CUDA says: no kernel image is available"},
        {"cuModuleLoadData", 222, LOFI_UNSUPPORTED, "(CUDA says: unknown error)"},
        {"cuModuleLoadData", FAKE_CUDA_OUT_OF_MEMORY, LOFI_SYSTEM, "out of memory"},
        {"cuModuleGetFunction", FAKE_CUDA_NOT_FOUND, LOFI_SYSTEM, "named symbol not found"},
        {"cuLaunchKernel", FAKE_CUDA_OUT_OF_MEMORY, LOFI_SYSTEM,
         "the kernel of a mean can't be launched: CUDA says: out of memory (2)"},
    };

    memory[0] = 2;
    memory[1] = 4;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_cuda_fail_next(cases[i].symbol, cases[i].error);
        EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, NULL) == cases[i].status);
        EXPECT_ERROR(cases[i].text);
        EXPECT(fake_cuda_depth() == 0);
        /* only the last case gets so far */
        EXPECT(fake_cuda_held().modules == modules + (i + 1 == sizeof cases / sizeof cases[0]));
    }
    EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, NULL) == LOFI_OK);
    EXPECT(lofi_cuda_mean(LOFI_BF16, memory + 2, memory + 2, 4, 2, NULL, 1, NULL) == LOFI_OK);
    EXPECT(fake_cuda_held().modules == modules + 1); /* once */
    EXPECT(finish(device, NULL) == 0 && memory[0] == 3);

    fake_cuda_fail_next("cuMemcpyAsync", FAKE_CUDA_INVALID_VALUE);
    EXPECT(lofi_cuda_mean(LOFI_I32, memory, memory + 1, 4, 2, NULL, 1, NULL) == LOFI_SYSTEM);
    EXPECT_ERROR("the input of a mean can't be copied: CUDA says: invalid argument");
    EXPECT(fake_cuda_depth() == 0);
    fake_cuda_free(memory);
}

/* The first mean on a device, while a stream is captured: what is loaded then is no part of it. */
static void test_capture(int device)
{
    float *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, device, 8);
    lofi__cu_stream stream = make_stream(device), none = NULL;

    memory[0] = 2;
    memory[1] = 4;
    fake_cuda_capture(1);
    EXPECT(lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, stream) == LOFI_OK);
    ASSERT(cu->CtxPushCurrent(fake_cuda_context(device)) == 0);
    EXPECT(cu->StreamCreate(&none, 0) == FAKE_CUDA_CAPTURE_UNSUPPORTED); /* the mode is back */
    ASSERT(cu->CtxPopCurrent(NULL) == 0);
    fake_cuda_capture(0);
    EXPECT(finish(device, stream) == 0 && memory[0] == 3);
    ASSERT(cu->StreamDestroy(stream) == 0);
    fake_cuda_free(memory);
}

/* ---- threads that never used CUDA, two on each device ---------------------------------------- */

#define THREADS 8

static void *average(void *argument)
{
    const int device = *(const int *)argument % (THREADS / 2);
    lofi__cu_stream stream = make_stream(device);

    for (int round = 0; round < 50; round++) {
        float *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, device, 8);
        memory[0] = (float)round;
        memory[1] = (float)(3 * round);
        int ok = lofi_cuda_mean(LOFI_F32, memory, memory, 4, 2, NULL, 1, stream) == LOFI_OK;
        ok = ok && fake_cuda_depth() == 0 && finish(device, stream) == 0;
        if (!ok || memory[0] != (float)(2 * round)) abort();
        fake_cuda_free(memory);
    }
    if (cu->StreamDestroy(stream) != 0) abort();
    return NULL;
}

static void test_threads(void)
{
    pthread_t threads[THREADS];
    int numbers[THREADS];

    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        ASSERT(pthread_create(&threads[i], NULL, average, &numbers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        ASSERT(pthread_join(threads[i], NULL) == 0);
}

int main(void)
{
    float host[4] = {0};

    if (!lofi_cuda_is_built()) {
        EXPECT(lofi_cuda_mean(LOFI_F32, host, host, 4, 2, NULL, 1, NULL) == LOFI_UNSUPPORTED);
        EXPECT_ERROR("built without its kernels for GPUs: build it where nvcc is found");
        EXPECT(lofi_cuda_mean(LOFI_F32, host, host, 4, 0, NULL, 1, NULL) == LOFI_INVALID);
        return test_end();
    }
    for (int i = 0; i < FAKE_CUDA_DEVICES; i++)
        retain(i);
    test_threads(); /* first, while nothing is loaded */
    test_means();
    test_launch();
    test_default_stream();
    test_pool();
    test_refused();
    test_most_inputs();
    test_failures_of_load(6);
    test_capture(7);

    const struct fake_cuda_held held = fake_cuda_held();
    EXPECT(held.allocations == 0 && held.streams == 0 && held.contexts == FAKE_CUDA_DEVICES);
    EXPECT(held.modules == 6); /* of the devices that took a mean: 0 to 3, 6 and 7 */
    return test_end();
}
