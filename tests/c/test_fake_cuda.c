/* SPDX-License-Identifier: MIT */
/* The fake driver itself: what runs when, what it refuses; and that the library finds it. */
#include "fake/fake.h"
#include "test.h"

static const struct lofi__driver *cu = &fake_cuda;

static lofi__cu_address address_of(const void *memory)
{
    return (uintptr_t)memory;
}

static lofi__cu_stream make_stream(void)
{
    lofi__cu_stream stream = NULL;
    ASSERT(cu->StreamCreate(&stream, LOFI__CU_STREAM_NON_BLOCKING) == 0);
    return stream;
}

static void test_runs_later(void)
{
    lofi__cu_stream stream = make_stream();
    unsigned char *a = fake_cuda_alloc(FAKE_CUDA_DEVICE, 0, 100), host[100] = {0};

    EXPECT(a[7] == 0xa5);
    ASSERT(cu->MemsetD8Async(address_of(a), 1, 100, stream) == 0);
    ASSERT(cu->MemsetD8Async(address_of(a), 2, 50, stream) == 0);
    ASSERT(cu->MemcpyAsync(address_of(host), address_of(a), 100, stream) == 0);
    EXPECT(a[7] == 0xa5 && fake_cuda_pending(stream) == 3);
    EXPECT(cu->StreamQuery(stream) == LOFI__CU_NOT_READY && a[7] == 1);
    EXPECT(cu->StreamQuery(stream) == LOFI__CU_NOT_READY && a[7] == 2 && host[99] == 0);
    EXPECT(cu->StreamQuery(stream) == 0 && host[7] == 2 && host[99] == 1);
    EXPECT(cu->StreamQuery(stream) == 0);
    EXPECT(cu->MemsetD8Async(address_of(a), 3, 101, stream) == FAKE_CUDA_INVALID_VALUE);
    EXPECT(cu->MemsetD8Async(address_of(host), 3, 1, stream) == FAKE_CUDA_INVALID_VALUE);
    EXPECT(cu->MemcpyAsync(address_of(a) + 60, address_of(host), 41, stream) ==
           FAKE_CUDA_INVALID_VALUE);
    ASSERT(cu->StreamDestroy(stream) == 0);
    EXPECT(cu->StreamQuery(stream) == FAKE_CUDA_INVALID_HANDLE);
    fake_cuda_free(a);
}

/* Only the event makes the second stream see what the first one writes. */
static void test_order(int with_event)
{
    lofi__cu_stream first = make_stream(), second = make_stream();
    lofi__cu_event event = NULL;
    unsigned char *a = fake_cuda_alloc(FAKE_CUDA_DEVICE, 0, 1), host = 0;

    ASSERT(cu->EventCreate(&event, LOFI__CU_EVENT_DISABLE_TIMING) == 0);
    ASSERT(cu->StreamWaitEvent(second, event, 0) == 0); /* never recorded: nothing to wait for */
    ASSERT(cu->MemsetD8Async(address_of(a), 1, 1, first) == 0);
    ASSERT(cu->EventRecord(event, first) == 0);
    ASSERT(cu->MemsetD8Async(address_of(a), 2, 1, first) == 0);
    if (with_event) ASSERT(cu->StreamWaitEvent(second, event, 0) == 0);
    ASSERT(cu->EventRecord(event, first) == 0); /* does not count for the wait before it */
    ASSERT(cu->EventDestroy(event) == 0);
    ASSERT(cu->MemcpyAsync(address_of(&host), address_of(a), 1, second) == 0);
    EXPECT(*a == 0xa5);
    EXPECT(fake_cuda_finish(second) == 0);
    EXPECT(host == (with_event ? 1 : 0xa5));
    EXPECT(fake_cuda_pending(first) == (with_event ? 1 : 2));
    EXPECT(cu->StreamDestroy(second) == 0);
    EXPECT(cu->StreamDestroy(first) == 0);
    EXPECT(*a == 2);
    fake_cuda_free(a);
}

/* ---- operations that wait for each other, as those of ranks do ------------------------------- */

struct meeting {
    int arrived;
    int dropped;
};

static struct meeting meeting;

static lofi__cu_result meet(void *ctx)
{
    int *is_here = ctx;
    if (!*is_here) meeting.arrived++;
    *is_here = 1;
    return meeting.arrived == 2 ? 0 : LOFI__CU_NOT_READY;
}

static void count_drop(void *ctx)
{
    (void)ctx;
    meeting.dropped++;
}

static void test_ranks(void)
{
    lofi__cu_stream one = make_stream(), other = make_stream();
    int here[2] = {0, 0};

    ASSERT(fake_cuda_enqueue(one, meet, count_drop, &here[0]) == 0);
    EXPECT(cu->StreamQuery(one) == LOFI__CU_NOT_READY);
    EXPECT(cu->StreamQuery(one) == LOFI__CU_NOT_READY && meeting.arrived == 1);
    ASSERT(fake_cuda_enqueue(other, meet, count_drop, &here[1]) == 0);
    EXPECT(fake_cuda_finish(one) == 0); /* nobody asks for the other one */
    EXPECT(meeting.dropped == 2);
    fake_cuda_break(one, FAKE_CUDA_ILLEGAL_ADDRESS);
    EXPECT(cu->StreamQuery(one) == FAKE_CUDA_ILLEGAL_ADDRESS);
    ASSERT(cu->StreamDestroy(one) == 0 && cu->StreamDestroy(other) == 0);
}

static void test_freed_memory(void)
{
    lofi__cu_stream stream = make_stream();
    lofi__cu_address memory = 0;

    ASSERT(cu->MemAlloc(&memory, 64) == 0);
    ASSERT(cu->MemsetD8Async(memory, 1, 64, stream) == 0);
    ASSERT(cu->MemFree(memory) == 0);
    EXPECT(cu->MemFree(memory) == FAKE_CUDA_INVALID_VALUE);
    EXPECT(cu->StreamQuery(stream) == FAKE_CUDA_ILLEGAL_ADDRESS);
    EXPECT(cu->StreamQuery(stream) == FAKE_CUDA_ILLEGAL_ADDRESS);
    ASSERT(cu->StreamDestroy(stream) == 0);
}

static void test_contexts(void)
{
    lofi__cu_context second = NULL, popped = NULL, found = NULL;
    lofi__cu_stream stream = make_stream();
    lofi__cu_device device = -1;
    unsigned type = 0;
    char *a = fake_cuda_alloc(FAKE_CUDA_DEVICE, 1, 10);
    char *pool = fake_cuda_alloc(FAKE_CUDA_POOL, 1, 10);

    ASSERT(cu->DevicePrimaryCtxRetain(&second, 1) == 0);
    ASSERT(cu->CtxPushCurrent(second) == 0);
    EXPECT(cu->CtxGetDevice(&device) == 0 && device == 1);
    EXPECT(cu->MemsetD8Async(address_of(a), 0, 1, stream) == FAKE_CUDA_INVALID_HANDLE);
    EXPECT(cu->CtxPopCurrent(&popped) == 0 && popped == second);
    EXPECT(cu->PointerGetAttribute(&found, LOFI__CU_POINTER_CONTEXT, address_of(a) + 9) == 0 &&
           found == second);
    EXPECT(cu->PointerGetAttribute(&found, LOFI__CU_POINTER_CONTEXT, address_of(pool)) == 0 &&
           found == NULL);
    EXPECT(cu->PointerGetAttribute(&type, LOFI__CU_POINTER_MEMORY_TYPE, address_of(a)) == 0 &&
           type == LOFI__CU_MEMORY_DEVICE);
    EXPECT(cu->PointerGetAttribute(&type, LOFI__CU_POINTER_MEMORY_TYPE, address_of(&type)) ==
           FAKE_CUDA_INVALID_VALUE);
    ASSERT(cu->DevicePrimaryCtxRelease(1) == 0);
    EXPECT(cu->CtxPushCurrent(second) == FAKE_CUDA_CONTEXT_IS_DESTROYED);
    ASSERT(cu->StreamDestroy(stream) == 0);
    fake_cuda_free(a);
    fake_cuda_free(pool);
}

static void test_injected(void)
{
    lofi__cu_stream stream = NULL;
    const int calls = fake_cuda_calls("cuStreamCreate");

    fake_cuda_fail_next("cuStreamCreate", FAKE_CUDA_OUT_OF_MEMORY);
    EXPECT(cu->StreamCreate(&stream, 0) == FAKE_CUDA_OUT_OF_MEMORY && stream == NULL);
    fake_cuda_capture(1);
    EXPECT(cu->StreamCreate(&stream, 0) == FAKE_CUDA_CAPTURE_UNSUPPORTED);
    fake_cuda_capture(0);
    EXPECT(cu->StreamCreate(&stream, 0) == 0);
    EXPECT(cu->StreamDestroy(stream) == 0);
    EXPECT(fake_cuda_calls("cuStreamCreate") == calls + 3);
}

int main(void)
{
    lofi__cu_context context = NULL;
    const struct lofi__driver *found = NULL;

    ASSERT(lofi__driver_get(&found) == LOFI_OK);
    EXPECT(found->MemAlloc == fake_cuda.MemAlloc);
    EXPECT(lofi__driver_check(found, FAKE_CUDA_OUT_OF_MEMORY, "here") == LOFI_SYSTEM);
    EXPECT_ERROR("here: CUDA says: out of memory (2)");
    EXPECT(cu->CtxGetDevice(&(lofi__cu_device){0}) == FAKE_CUDA_INVALID_CONTEXT);
    ASSERT(cu->DevicePrimaryCtxRetain(&context, 0) == 0);
    ASSERT(cu->CtxPushCurrent(context) == 0 && fake_cuda_depth() == 1);
    test_runs_later();
    test_order(0);
    test_order(1);
    test_ranks();
    test_freed_memory();
    test_contexts();
    test_injected();
    ASSERT(cu->CtxPopCurrent(NULL) == 0 && fake_cuda_depth() == 0);
    ASSERT(cu->DevicePrimaryCtxRelease(0) == 0);
    const struct fake_cuda_held held = fake_cuda_held();
    EXPECT(held.allocations == 0 && held.streams == 0 && held.events == 0);
    EXPECT(held.modules == 0 && held.contexts == 0);
    return test_end();
}
