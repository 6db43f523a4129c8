/* SPDX-License-Identifier: MIT */
/* Without a driver or NCCL: the first communicator says what is missing, on all ranks. */
#include "cuda/driver.h"
#include "test.h"
#include "transport/nccl_library.h"

/* The other rank has all it needs. */
static lofi_status gather_two(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx;
    memcpy(all, mine, bytes);
    memcpy((char *)all + bytes, mine, bytes);
    return LOFI_OK;
}

int main(void)
{
    const struct lofi__driver *driver = NULL;
    const struct lofi__nccl_library *library = NULL;
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;

    const int has_driver = lofi__driver_get(&driver) == LOFI_OK;
    const int has_nccl = lofi__nccl_library_get(&library) == LOFI_OK;
    if (!has_nccl) EXPECT_ERROR("libnccl.so.2");
    if (has_driver && has_nccl) {
        printf("skipped: this machine has both\n");
        return 77;
    }
    options.transport = "nccl";
    options.rank_count = 2;
    EXPECT(lofi_comm_create(&options, gather_two, NULL, &comm) == LOFI_UNSUPPORTED);
    EXPECT_ERROR(has_driver ? "rank 0: no NCCL: libnccl.so.2 can't be used" : "rank 0: ");
    if (!has_driver) EXPECT_ERROR("CUDA driver");
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    EXPECT_ERROR("allgather");
    return test_end();
}
