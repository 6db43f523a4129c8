/* SPDX-License-Identifier: MIT */
/*
 * Prints how fast all-reduce over shared memory is: measure_comm [ranks [slot_bytes [dtype]]].
 * By it the sizes in shm_open.c and shm.c were chosen. A measurement, no test.
 */
#define _GNU_SOURCE
#include "ranks.h"

static size_t slot_bytes;
static lofi_dtype dtype = LOFI_F32;

static double median(double *values, int count)
{
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && values[j] < values[j - 1]; j--) {
            double swap = values[j];
            values[j] = values[j - 1];
            values[j - 1] = swap;
        }
    return values[count / 2];
}

static double one_memcpy(char *out, const char *in, size_t bytes)
{
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        double begin = ranks_now();
        memcpy(out, in, bytes);
        double taken = ranks_now() - begin;
        if (taken < best) best = taken;
    }
    return best;
}

static int job(struct rank *rank)
{
    static const size_t sizes[] = {4, 4096, 65536, 1 << 18, 1 << 20, 25 << 20, 344 << 20};
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;
    const size_t most = (size_t)344 << 20;
    char *data = aligned_alloc(4096, most), *other = aligned_alloc(4096, most);

    options.transport = "shm";
    options.rank = rank->rank;
    options.rank_count = rank->count;
    options.slot_bytes = slot_bytes;
    ASSERT(lofi_comm_create(&options, ranks_allgather, rank, &comm) == LOFI_OK);
    memset(data, 0, most);
    memset(other, 0, most);
    for (int turn = 0; turn < rank->count; turn++) {
        ASSERT(lofi_barrier(comm) == LOFI_OK);
        if (turn == rank->rank && turn == 0)
            printf("memcpy %.2f GB/s\n", 1e-9 * (double)most / one_memcpy(other, data, most));
    }
    free(other);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const size_t count = sizes[i] / lofi_dtype_bytes(dtype);
        const int inner = sizes[i] <= 65536 ? 200 : 1, rounds = sizes[i] > (1 << 24) ? 7 : 15;
        double taken[15];
        for (int round = 0; round < rounds; round++) {
            ASSERT(lofi_barrier(comm) == LOFI_OK);
            double begin = ranks_now();
            for (int k = 0; k < inner; k++)
                ASSERT(lofi_all_reduce(comm, data, data, count, dtype, LOFI_SUM) == LOFI_OK);
            taken[round] = (ranks_now() - begin) / inner;
        }
        if (rank->rank == 0)
            printf("%9zu bytes %10.2f us  best %10.2f us  %6.2f GB/s\n", sizes[i],
                   1e6 * median(taken, rounds), 1e6 * taken[0],
                   1e-9 * (double)sizes[i] / median(taken, rounds));
    }
    lofi_comm_destroy(comm);
    free(data);
    return test_failures != 0;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 2;
    if (argc > 2) slot_bytes = (size_t)atol(argv[2]);
    if (argc > 3) dtype = (lofi_dtype)atoi(argv[3]);
    return ranks_all_passed(count, 300, job, NULL) ? 0 : 1;
}
