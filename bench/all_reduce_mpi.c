/* SPDX-License-Identifier: MIT */
/*
 * MPI_Allreduce beside lofi_all_reduce, in the same processes: all_reduce_mpi SECONDS BYTES ...
 *
 * Rounds on one and on the other alternate; a round's figure is its mean per call. Prints a line
 * "bytes mpi_us lofi_us" of medians for each size. all_reduce.py builds it and runs it by mpirun.
 */
#include <lofi.h>
#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ROUNDS = 41, LEAST_ROUNDS = 5 };

struct peers {
    lofi_comm *comm;
    float *data;
    int count;
};
typedef void (*reduce_fn)(struct peers *peers);

static lofi_status all_gather(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx;
    int code = MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, MPI_COMM_WORLD);
    return code == MPI_SUCCESS ? LOFI_OK : LOFI_PEER_LOST;
}

static void check(lofi_status status)
{
    if (status == LOFI_OK) return;
    fprintf(stderr, "all_reduce_mpi: %s\n", lofi_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static void by_mpi(struct peers *peers)
{
    MPI_Allreduce(MPI_IN_PLACE, peers->data, peers->count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static void by_lofi(struct peers *peers)
{
    check(lofi_all_reduce(peers->comm, peers->data, peers->data, (size_t)peers->count, LOFI_F32,
                          LOFI_SUM));
}

static double seconds_of_calls(struct peers *peers, reduce_fn reduce, int calls)
{
    MPI_Barrier(MPI_COMM_WORLD);
    double begin = MPI_Wtime();
    for (int i = 0; i < calls; i++)
        reduce(peers);
    return (MPI_Wtime() - begin) / calls;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return values[count / 2];
}

/* All ranks make as many calls: the first one's number. */
static int agreed(double value, int least, int most)
{
    int number = value < least ? least : value > most ? most : (int)value;
    MPI_Bcast(&number, 1, MPI_INT, 0, MPI_COMM_WORLD);
    return number;
}

static void measure(struct peers *peers, size_t bytes, double budget)
{
    static const reduce_fn reduces[] = {by_mpi, by_lofi};
    double times[2][MOST_ROUNDS], once = 0;

    peers->count = (int)(bytes / sizeof(float));
    for (int i = 0; i < 2; i++) {
        seconds_of_calls(peers, reduces[i], 2); /* the first calls map memory */
        double taken = seconds_of_calls(peers, reduces[i], 2);
        if (taken > once) once = taken;
    }
    int calls = agreed(0.02 / once, 1, 2000);
    int rounds = agreed(budget / (once * calls), LEAST_ROUNDS, MOST_ROUNDS);
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < 2; i++)
            times[(i + round) % 2][round] =
                seconds_of_calls(peers, reduces[(i + round) % 2], calls);
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0)
        printf("%zu %.3f %.3f\n", bytes, 1e6 * median(times[0], rounds),
               1e6 * median(times[1], rounds));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    struct peers peers = {NULL, NULL, 0};
    size_t most = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &options.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &options.rank_count);
    options.transport = "shm";
    check(lofi_comm_create(&options, all_gather, NULL, &peers.comm));
    for (int i = 2; i < argc; i++)
        if (strtoull(argv[i], NULL, 10) > most) most = strtoull(argv[i], NULL, 10);
    peers.data = aligned_alloc(4096, (most + 4095) / 4096 * 4096);
    if (peers.data == NULL) MPI_Abort(MPI_COMM_WORLD, 1);
    memset(peers.data, 0, most);
    for (int i = 2; i < argc; i++)
        measure(&peers, strtoull(argv[i], NULL, 10), atof(argv[1]));
    lofi_comm_destroy(peers.comm);
    free(peers.data);
    MPI_Finalize();
    return 0;
}
