/* SPDX-License-Identifier: MIT */
/*
 * lo-fi training on GPUs, from C: each node trains its own perceptron, with gradients all-reduced
 * by NCCL inside the node while the rest of them is computed, and the nodes' weights are averaged at
 * the end, where they lie.
 *
 *   mpirun -n 4 ./train_cuda digits.csv
 *
 * One rank a GPU. MPI only starts the ranks and introduces them to each other.
 */
#include "mlp.h"
#include "mpi_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED 1 /* of the first weights, on all ranks */
#define EPOCHS 20
#define BATCH 16 /* digits of one rank in a step */
#define RATE 0.05f
#define MOMENTUM 0.9f
#define HELD_OUT 4 /* one of so many digits is not trained on */
#define TIMEOUT_MS 60000

struct rank {
    struct mpi_host world;
    lofi_topology *topology;
    int rank, node, place;
    int device;
    cudaStream_t stream;
    lofi_comm *all, *inside, *across; /* all ranks; those of the node; those of the column */
    struct digits mine, held_out;
    struct mlp_digits train, test; /* the same on the GPU */
    struct mlp mlp;
};

struct report {
    struct mlp_score own, average;
    lofi_digest digest; /* of the average */
};

/* The other ranks may wait for this one in MPI or NCCL: they end with it. */
_Noreturn static void fail(const char *what, const char *why)
{
    fprintf(stderr, "train_cuda: %s: %s\n", what, why);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}

static void check(lofi_status st, const char *what)
{
    if (st != LOFI_OK) fail(what, lofi_last_error());
}

static void check_cuda(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) fail(what, cudaGetErrorString(error));
}

/* ---- data, device and nodes ---------------------------------------------------------------------- */

/* Which of the ranks on this machine this one is. */
static int local_rank(void)
{
    MPI_Comm machine = MPI_COMM_NULL;
    int rank = 0;

    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &rank);
    MPI_Comm_free(&machine);
    return rank;
}

/* 0, or -1 and a sentence. */
static int choose_device(struct rank *self, char *problem, size_t problem_bytes)
{
    int count = 0;

    self->device = local_rank();
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess)
        snprintf(problem, problem_bytes, "there is no GPU to train on: CUDA says: %s",
                 cudaGetErrorString(error));
    else if (self->device >= count)
        snprintf(problem, problem_bytes,
                 "a machine with %d GPUs has more ranks than that: start one for each GPU", count);
    else
        return 0;
    return -1;
}

static int read_data(struct rank *self, const char *path, char *problem, size_t problem_bytes)
{
    const size_t ranks = (size_t)self->world.count, slice = (size_t)self->world.rank;
    struct digits all;

    if (digits_read(path, &all, problem, problem_bytes) != 0) return -1;
    const size_t held_out = all.count / HELD_OUT, train = all.count - held_out;
    int result = -1;
    if (train / ranks < BATCH || held_out == 0)
        snprintf(problem, problem_bytes, "%s has %zu digits: too few for %zu ranks", path,
                 all.count, ranks);
    else if (digits_pick(&all, slice, ranks, train / ranks, &self->mine) != 0 ||
             digits_pick(&all, train, 1, held_out, &self->held_out) != 0)
        snprintf(problem, problem_bytes, "out of memory for the digits");
    else
        result = 0;
    digits_free(&all);
    return result;
}

/* A rank that can't start says so to all: nobody waits for it, and the error is everyone's. */
static void set_up(struct rank *self, const char *path)
{
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    char problem[512] = "";

    int result = choose_device(self, problem, sizeof problem);
    if (result == 0) result = read_data(self, path, problem, sizeof problem);
    options.rank = self->world.rank;
    options.world_size = self->world.count;
    options.problem = result != 0 ? problem : NULL;
    check(lofi_topology_create(&options, mpi_host_all_gather, &self->world, &self->topology),
          "finding the nodes");
    self->rank = self->world.rank;
    self->node = lofi_topology_node_of(self->topology, self->rank);
    self->place = self->rank % lofi_topology_node_size(self->topology);
}

/* ---- communicators ------------------------------------------------------------------------------- */

/* Of all ranks if there is no parent; else of those of its ranks that give the same color. */
static lofi_comm *open_comm(struct rank *self, const char *name, lofi_comm *parent, int color,
                            int rank, int rank_count)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;

    options.transport = "nccl";
    options.rank = rank;
    options.rank_count = rank_count;
    options.timeout_ms = TIMEOUT_MS;
    options.name = name;
    options.device = self->device;
    options.stream = self->stream;
    options.parent = parent;
    options.color = color;
    check(lofi_comm_create(&options, mpi_host_all_gather, &self->world, &comm), name);
    return comm;
}

static void open_comms(struct rank *self)
{
    const int nodes = lofi_topology_node_count(self->topology);
    const int node_size = lofi_topology_node_size(self->topology);
    char name[32];

    self->all = open_comm(self, "the world", NULL, 0, self->rank, self->world.count);
    snprintf(name, sizeof name, "node %d", self->node);
    self->inside = open_comm(self, name, self->all, self->node, self->place, node_size);
    snprintf(name, sizeof name, "column %d", self->place);
    self->across = open_comm(self, name, self->all, self->place, self->node, nodes);
}

/* ---- training ------------------------------------------------------------------------------------ */

/* The node's mean of a gradient, once the stream has computed it. */
static lofi_request *post_mean(const struct rank *self, float *gradient, size_t count)
{
    lofi_task task = LOFI_TASK_INIT;
    lofi_request *request = NULL;

    task.collective = LOFI_ALL_REDUCE;
    task.dtype = LOFI_F32;
    task.op = LOFI_AVG;
    task.count = count;
    task.in = task.out = gradient;
    check(lofi_post(self->inside, &task, NULL, NULL, &request), "all-reduce of the gradients");
    return request;
}

static void wait_for(lofi_request *request)
{
    check(lofi_request_wait(request, -1), "all-reduce of the gradients");
    lofi_request_destroy(request);
}

/* The gradient of the last layer travels while that of the first is computed. */
static void step(struct rank *self, int first)
{
    struct mlp *mlp = &self->mlp;

    check_cuda(mlp_forward(mlp, &self->train, first, BATCH), "forward");
    check_cuda(mlp_backward_last(mlp, &self->train, first, BATCH), "backward, last layer");
    lofi_request *last = post_mean(self, mlp->gradient, MLP_LAST_SIZE);
    check_cuda(mlp_backward_first(mlp, &self->train, first, BATCH), "backward, first layer");
    lofi_request *rest = post_mean(self, mlp->gradient + MLP_LAST_SIZE, MLP_FIRST_SIZE);
    wait_for(last);
    wait_for(rest);
    check_cuda(mlp_step(mlp, RATE, MOMENTUM), "a step");
}

static void train(struct rank *self)
{
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        for (int first = 0; first + BATCH <= self->train.count; first += BATCH)
            step(self, first);
    }
}

static lofi_digest digest_of_weights(const struct rank *self)
{
    static float weights[MLP_SIZE];

    check_cuda(cudaMemcpy(weights, self->mlp.weights, sizeof weights, cudaMemcpyDeviceToHost),
               "reading the weights");
    return lofi_digest_of(weights, sizeof weights);
}

static void print_reports(const struct rank *self, const struct report *all)
{
    const int nodes = lofi_topology_node_count(self->topology);
    const int node_size = lofi_topology_node_size(self->topology);

    printf("%d nodes of %d GPUs (by %s), each on %d digits, %d held out\n", nodes, node_size,
           lofi_topology_source(self->topology), self->train.count, self->test.count);
    for (int node = 0; node < nodes; node++) {
        const struct mlp_score *own = &all[node * node_size].own;
        printf("node %-5d  loss %.4f  accuracy %.2f %%\n", node, own->loss, 100 * own->accuracy);
    }
    printf("average     loss %.4f  accuracy %.2f %%\n", all[0].average.loss,
           100 * all[0].average.accuracy);
}

/* Gathered over MPI: it lies in the host's memory. */
static void report(struct rank *self, const struct report *mine)
{
    struct report *all = malloc((size_t)self->world.count * sizeof *all);

    if (all == NULL) fail("the results", "out of memory");
    check(mpi_host_all_gather(&self->world, mine, sizeof *mine, all), "gathering the results");
    for (int rank = 1; rank < self->world.count; rank++)
        if (memcmp(&all[rank].digest, &all[0].digest, sizeof all[0].digest) != 0)
            fail("the average", "ranks hold different ones");
    if (self->rank == 0) print_reports(self, all);
    free(all);
}

static void run(struct rank *self)
{
    struct report mine;

    memset(&mine, 0, sizeof mine);
    train(self);
    check_cuda(mlp_score(&self->mlp, &self->test, &mine.own), "the node's score");
    check(lofi_finalize_average(self->inside, self->across, LOFI_F32, self->mlp.weights, MLP_SIZE,
                                NULL, 0),
          "averaging over the nodes");
    check_cuda(mlp_score(&self->mlp, &self->test, &mine.average), "the average's score");
    mine.digest = digest_of_weights(self);
    report(self, &mine);
}

static void start(struct rank *self)
{
    check_cuda(cudaSetDevice(self->device), "the GPU");
    check_cuda(cudaStreamCreateWithFlags(&self->stream, cudaStreamNonBlocking), "a stream");
    check_cuda(mlp_create(&self->mlp, BATCH, SEED, self->stream), "the model");
    check_cuda(mlp_upload(&self->mlp, &self->mine, &self->train), "the digits");
    check_cuda(mlp_upload(&self->mlp, &self->held_out, &self->test), "the digits held out");
    open_comms(self);
}

/* All ranks in the same order: the communicators of NCCL end together. */
static void tear_down(struct rank *self)
{
    lofi_comm_destroy(self->across);
    lofi_comm_destroy(self->inside);
    lofi_comm_destroy(self->all);
    mlp_free_digits(&self->test);
    mlp_free_digits(&self->train);
    mlp_destroy(&self->mlp);
    cudaStreamDestroy(self->stream);
    lofi_topology_destroy(self->topology);
    mpi_host_destroy(&self->world);
    digits_free(&self->held_out);
    digits_free(&self->mine);
}

int main(int argc, char **argv)
{
    struct rank self;
    int threads = 0;

    memset(&self, 0, sizeof self);
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &threads);
    check(mpi_host_create(MPI_COMM_WORLD, 0, TIMEOUT_MS, &self.world), "the world");
    if (argc != 2) {
        if (self.world.rank == 0) fputs("usage: mpirun -n N train_cuda digits.csv\n", stderr);
        mpi_host_destroy(&self.world);
        MPI_Finalize();
        return 2;
    }
    set_up(&self, argv[1]);
    start(&self);
    run(&self);
    tear_down(&self);
    MPI_Finalize();
    return 0;
}
