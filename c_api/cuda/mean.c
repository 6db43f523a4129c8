/* SPDX-License-Identifier: MIT */
/*
 * lofi_cuda_mean: what is asked of the host. The context is that of the output, current for the
 * time of the call only, so that any thread will do.
 */
#include "cuda/mean.h"
#include "core/mem.h"
#include "cuda/driver.h"
#include "cuda/image.h"
#include "kernels/divisor.h"
#include "kernels/kernels.h"

#include <pthread.h>

_Static_assert(sizeof(struct lofi__cuda_mean) <= 4096, "the parameters of a kernel");

/* Enough to fill any GPU several times; threads go on from there in steps of the grid. */
#define GRID_MAX 16384u

typedef struct lofi__cuda_mean mean_parameters;

/* ---- arguments ------------------------------------------------------------------------------- */

static lofi_status check_numbers(lofi_dtype dtype, size_t stride_bytes, int inputs, size_t count)
{
    const size_t each = lofi_dtype_bytes(dtype);

    if (each == 0) {
        lofi_set_error("dtype is %d: lofi.h lists the values 0 to %d", (int)dtype,
                       LOFI_DTYPE_COUNT - 1);
    } else if (inputs < 1 || inputs > LOFI_CUDA_MEAN_INPUTS) {
        lofi_set_error("a mean of %d inputs: on a GPU it takes 1 to %d", inputs,
                       LOFI_CUDA_MEAN_INPUTS);
    } else if (count > SIZE_MAX / each) {
        lofi_set_error("%zu elements of %zu bytes are more than an address space", count, each);
    } else if (inputs > 1 && stride_bytes < count * each) {
        lofi_set_error("stride_bytes is %zu: inputs of %zu elements of %zu bytes would overlap",
                       stride_bytes, count, each);
    } else if (inputs > 1 && stride_bytes % each != 0) {
        lofi_set_error("stride_bytes is %zu: it has to be a multiple of the element's %zu bytes",
                       stride_bytes, each);
    } else if (inputs > 1 && stride_bytes > (SIZE_MAX - count * each) / (size_t)(inputs - 1)) {
        lofi_set_error("stride_bytes is %zu: %d inputs are more than an address space",
                       stride_bytes, inputs);
    } else {
        return LOFI_OK;
    }
    return LOFI_INVALID;
}

/* Checks the memory, and finds the device that has it. */
static lofi_status check_memory(const struct lofi__driver *cu, const char *name, const void *data,
                                size_t each, int *ordinal)
{
    const lofi__cu_address address = (uintptr_t)data;
    unsigned type = 0;

    if (data == NULL) {
        lofi_set_error("%s of a mean on a GPU is NULL", name);
    } else if ((uintptr_t)data % each != 0) {
        lofi_set_error("%s of a mean on a GPU lies at %p: it has to be aligned to its elements of "
                       "%zu bytes",
                       name, data, each);
    } else if (cu->PointerGetAttribute(&type, LOFI__CU_POINTER_MEMORY_TYPE, address) != 0 ||
               type != LOFI__CU_MEMORY_DEVICE ||
               cu->PointerGetAttribute(ordinal, LOFI__CU_POINTER_DEVICE_ORDINAL, address) != 0) {
        lofi_set_error("%s of a mean on a GPU lies at %p, which is not memory of a GPU%s", name,
                       data, type == LOFI__CU_MEMORY_HOST ? " but of the host" : "");
    } else {
        return LOFI_OK;
    }
    return LOFI_INVALID;
}

static lofi_status check_place(const struct lofi__driver *cu, lofi_dtype dtype, const void *out,
                               const void *in, int *ordinal)
{
    const size_t each = lofi_dtype_bytes(dtype);
    int of_in = 0;

    lofi_status st = check_memory(cu, "the output", out, each, ordinal);
    if (st == LOFI_OK) st = check_memory(cu, "the input", in, each, &of_in);
    if (st == LOFI_OK && of_in != *ordinal) {
        lofi_set_error("the output of a mean is on GPU %d, its input on GPU %d: both have to be on "
                       "one",
                       *ordinal, of_in);
        return LOFI_INVALID;
    }
    return st;
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* The kernels that are loaded in one context, for good. */
struct loaded {
    struct loaded *next;
    lofi__cu_context context;
    lofi__cu_function kernels[LOFI_DTYPE_COUNT]; /* NULL: no float */
};

static struct loaded *all_loaded;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Tells a driver that finds nothing to run on its GPU from one that has no room to load it. */
static int is_no_code(lofi__cu_result result)
{
    return result == 200 /* INVALID_IMAGE */ || result == 209 /* NO_BINARY_FOR_GPU */ ||
           result == 221 /* JIT_COMPILER_NOT_FOUND */ ||
           result == 222 /* UNSUPPORTED_PTX_VERSION */;
}

static lofi__cu_result load_kernels(const struct lofi__driver *cu, struct loaded *into)
{
    lofi__cu_module module = NULL;
    lofi__cu_result result = cu->ModuleLoadData(&module, lofi__cuda_image());

    if (result != 0) return result;
        /* All kernels are got at once: where modules are loaded lazily, this is what loads them. */
#define GET(name, dtype, bits, widen, narrow)                                                      \
    if (result == 0)                                                                               \
        result = cu->ModuleGetFunction(&into->kernels[dtype], module, "lofi_mean_" #name);
    LOFI__MEAN_MAP(GET)
#undef GET
    if (result != 0) cu->ModuleUnload(module);
    return result;
}

static lofi_status load(const struct lofi__driver *cu, lofi__cu_context context,
                        const struct loaded **out)
{
    struct loaded *fresh = lofi__mem_create(1, sizeof *fresh);
    int mode = LOFI__CU_CAPTURE_RELAXED; /* loading is no part of a graph that is being captured */

    if (fresh == NULL) return LOFI_NO_MEMORY;
    lofi__cu_result result = cu->ThreadExchangeStreamCaptureMode(&mode);
    if (result == 0) {
        result = load_kernels(cu, fresh);
        cu->ThreadExchangeStreamCaptureMode(&mode);
    }
    lofi_status st = lofi__driver_check(cu, result, "the kernels for GPUs can't be loaded");
    if (is_no_code(result)) {
        const char *text = NULL;
        cu->GetErrorString(result, &text);
        lofi_set_error("the kernels of this build of lofi do not fit this GPU or its driver (CUDA "
                       "says: %s): build lofi with a CUDA toolkit that knows both",
                       text != NULL ? text : "unknown error");
        st = LOFI_UNSUPPORTED;
    }
    if (st != LOFI_OK) {
        lofi__mem_destroy(fresh);
        return st;
    }
    fresh->context = context;
    fresh->next = all_loaded;
    *out = all_loaded = fresh;
    return LOFI_OK;
}

/* Finds, or loads, the kernels of the current context, which is `context`. */
static lofi_status get_loaded(const struct lofi__driver *cu, lofi__cu_context context,
                              const struct loaded **out)
{
    lofi_status st = LOFI_OK;

    pthread_mutex_lock(&lock);
    const struct loaded *found = all_loaded;
    while (found != NULL && found->context != context)
        found = found->next;
    if (found == NULL) st = load(cu, context, &found);
    pthread_mutex_unlock(&lock);
    *out = found;
    return st;
}

static unsigned grid_for(const mean_parameters *mean)
{
    const uint64_t work = mean->packs > 0 ? mean->packs : mean->count;
    const uint64_t blocks = work / LOFI__MEAN_BLOCK + (work % LOFI__MEAN_BLOCK != 0);
    return blocks < GRID_MAX ? (unsigned)blocks : GRID_MAX;
}

static lofi_status launch(const struct lofi__driver *cu, lofi__cu_context context, lofi_dtype dtype,
                          mean_parameters *mean, lofi__cu_stream stream)
{
    const struct loaded *loaded = NULL;
    void *parameters[] = {mean};

    lofi_status st = get_loaded(cu, context, &loaded);
    if (st != LOFI_OK) return st;
    return lofi__driver_check(cu,
                              cu->LaunchKernel(loaded->kernels[dtype], grid_for(mean), 1, 1,
                                               LOFI__MEAN_BLOCK, 1, 1, 0, stream, parameters, NULL),
                              "the kernel of a mean can't be launched");
}

/* Integers are copied from the first input, as lofi_mean does. */
static lofi_status copy(const struct lofi__driver *cu, void *out, const void *in, size_t bytes,
                        lofi__cu_stream stream)
{
    if (out == in) return LOFI_OK;
    return lofi__driver_check(cu, cu->MemcpyAsync((uintptr_t)out, (uintptr_t)in, bytes, stream),
                              "the input of a mean can't be copied");
}

/* ---- the context ----------------------------------------------------------------------------- */

/* Finds the context of the memory. Memory of a pool, or mapped piece by piece, has none: then the
 * device's primary one, which `is_retained` says to release. */
static lofi_status get_context(const struct lofi__driver *cu, const void *memory, int ordinal,
                               lofi__cu_context *context, int *is_retained)
{
    lofi__cu_device device = 0;

    *is_retained = 0;
    if (cu->PointerGetAttribute(context, LOFI__CU_POINTER_CONTEXT, (uintptr_t)memory) == 0 &&
        *context != NULL)
        return LOFI_OK;
    lofi__cu_result result = cu->DeviceGet(&device, ordinal);
    if (result == 0) result = cu->DevicePrimaryCtxRetain(context, device);
    *is_retained = result == 0;
    return lofi__driver_check(cu, result, "the GPU of a mean can't be used");
}

static void release_context(const struct lofi__driver *cu, int ordinal)
{
    lofi__cu_device device = 0;
    if (cu->DeviceGet(&device, ordinal) == 0) cu->DevicePrimaryCtxRelease(device);
}

static void set_parameters(mean_parameters *mean, size_t each, double weight_sum,
                           const double *weights)
{
    const uintptr_t places = (uintptr_t)mean->in | (uintptr_t)mean->out |
                             (mean->inputs > 1 ? (uintptr_t)mean->stride_bytes : 0);

    mean->packs =
        places % LOFI__MEAN_PACK_BYTES == 0 ? mean->count * each / LOFI__MEAN_PACK_BYTES : 0;
    mean->divisor = weight_sum;
    mean->reciprocal = lofi__is_exact_divisor(weight_sum) ? 1.0 / weight_sum : 0;
    for (int i = 0; i < mean->inputs; i++)
        mean->weights[i] = weights != NULL ? weights[i] : 1.0;
}

lofi_status lofi_cuda_mean(lofi_dtype dtype, void *out, const void *in, size_t stride_bytes,
                           int inputs, const double *weights, size_t count, void *stream)
{
    const size_t each = lofi_dtype_bytes(dtype);
    const struct lofi__driver *cu = NULL;
    lofi__cu_context context = NULL;
    mean_parameters mean = {.in = in, .out = out, .stride_bytes = stride_bytes, .count = count};
    double weight_sum = 0;
    int ordinal = 0, is_retained = 0;

    lofi_status st = check_numbers(dtype, stride_bytes, inputs, count);
    if (st == LOFI_OK) st = lofi__mean_weights(weights, inputs, 0, &weight_sum);
    if (st != LOFI_OK || count == 0) return st;
    if (!lofi_cuda_is_built()) {
        lofi_set_error("this lofi was built without its kernels for GPUs: build it where nvcc is "
                       "found (cmake -DLOFI_CUDA=ON), or take the mean on the CPU");
        return LOFI_UNSUPPORTED;
    }
    st = lofi__driver_get(&cu);
    if (st == LOFI_OK) st = check_place(cu, dtype, out, in, &ordinal);
    if (st == LOFI_OK) st = get_context(cu, out, ordinal, &context, &is_retained);
    if (st != LOFI_OK) return st;

    st = lofi__driver_check(cu, cu->CtxPushCurrent(context), "the GPU of a mean can't be used");
    if (st == LOFI_OK) {
        mean.inputs = inputs;
        set_parameters(&mean, each, weight_sum, weights);
        st = lofi__kernels_scalar.begin[dtype] != NULL ? launch(cu, context, dtype, &mean, stream)
                                                       : copy(cu, out, in, count * each, stream);
        cu->CtxPopCurrent(&context);
    }
    if (is_retained) release_context(cu, ordinal);
    return st;
}
