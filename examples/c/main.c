/* SPDX-License-Identifier: MIT */
/*
 * lo-fi training from C: each node trains its own softmax classifier, with gradients all-reduced
 * inside the node, and the nodes' weights are averaged at the end.
 *
 *   mpirun -n 4 ./softmax digits.csv [folder] [--first-rank R] [--ranks-total N]
 *                                    [--transport shm|host]
 */
#include "digits.h"
#include "mpi_host.h"
#include "softmax.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED 1 /* of the first weights, on all ranks */
#define EPOCHS 20
#define BATCH 16 /* pictures of one rank in a step */
#define RATE 0.5f
#define HELD_OUT 4 /* one of so many pictures is not trained on */
#define TIMEOUT_MS 60000
#define USAGE                                                                                      \
    "usage: mpirun -n N softmax digits.csv [folder] [options]\n"                                   \
    "  folder             each rank writes its weights there: float32, as in memory\n"             \
    "  --ranks-total N    cut the training digits for N ranks (default: as many as run)\n"         \
    "  --first-rank R     take the slices from R on (default: 0): with both, the ranks of one\n"   \
    "                     node of a larger run can run alone\n"                                    \
    "  --transport T      inside the node: shm (default), or host, which is MPI\n"

struct settings {
    const char *path, *folder;
    const char *transport;
    long ranks_total, first_rank;
};

struct rank {
    struct settings settings;
    struct mpi_host world, inside, across; /* all ranks; those of the node; those of the column */
    lofi_topology *topology;
    int rank, node, place;
    lofi_comm *node_comm, *column_comm;
    struct digits mine, held_out;
};

/* What rank 0 prints of a rank. */
struct report {
    struct softmax_score own, average;
    lofi_digest own_digest, average_digest;
    uint64_t training_bytes, average_bytes; /* to other nodes */
    char transport[8];
};

/* The other ranks may wait for this one in MPI: they end with it. */
_Noreturn static void fail(const char *what, const char *why)
{
    fprintf(stderr, "softmax: %s%s\n", what, why);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}

static void check(lofi_status st, const char *what)
{
    if (st == LOFI_OK) return;
    char text[128];
    snprintf(text, sizeof text, "%s: %s: ", what, lofi_status_name(st));
    fail(text, lofi_last_error());
}

/* ---- the command line ------------------------------------------------------------------------ */

static int read_rank(const char *text, long *out)
{
    char *end = NULL;
    *out = strtol(text, &end, 10);
    return end != text && *end == '\0' && *out >= 0 && *out <= 1000000 ? 0 : -1;
}

static int read_option(const char *name, const char *value, struct settings *out)
{
    if (value == NULL) return -1;
    if (strcmp(name, "--ranks-total") == 0) return read_rank(value, &out->ranks_total);
    if (strcmp(name, "--first-rank") == 0) return read_rank(value, &out->first_rank);
    if (strcmp(name, "--transport") != 0) return -1;
    out->transport = value;
    return strcmp(value, "shm") == 0 || strcmp(value, "host") == 0 ? 0 : -1;
}

static int read_settings(int argc, char **argv, int world_size, struct settings *out)
{
    *out = (struct settings){.transport = "shm", .ranks_total = world_size};
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0) {
            if (read_option(argv[i], argv[i + 1], out) != 0) return -1; /* argv ends with NULL */
            i++;
        } else if (out->path == NULL) {
            out->path = argv[i];
        } else if (out->folder == NULL) {
            out->folder = argv[i];
        } else {
            return -1;
        }
    }
    return out->path != NULL ? 0 : -1;
}

/* ---- data and nodes ---------------------------------------------------------------------------- */

static int split(struct rank *self, const struct digits *all, char *problem, size_t problem_bytes)
{
    const struct settings *settings = &self->settings;
    const size_t held_out = all->count / HELD_OUT, train = all->count - held_out;
    const size_t ranks = (size_t)settings->ranks_total;

    if (settings->first_rank + self->world.count > settings->ranks_total) {
        snprintf(problem, problem_bytes,
                 "%d ranks from --first-rank %ld on are more than --ranks-total %ld",
                 self->world.count, settings->first_rank, settings->ranks_total);
        return -1;
    }
    /* Slices of one size: the ranks of a node take the same number of steps, in which each
     * picture weighs the same. */
    if (train / ranks < BATCH || held_out == 0) {
        snprintf(problem, problem_bytes,
                 "%s has %zu digits: too few for %zu ranks, each of which needs %d to train on",
                 settings->path, all->count, ranks, BATCH);
        return -1;
    }
    const size_t slice = (size_t)(settings->first_rank + self->world.rank);
    if (digits_pick(all, slice, ranks, train / ranks, &self->mine) == 0 &&
        digits_pick(all, train, 1, held_out, &self->held_out) == 0)
        return 0;
    snprintf(problem, problem_bytes, "out of memory for the digits");
    return -1;
}

/* Reads the data and finds the nodes. A rank that can't start says so to all: nobody waits for it,
 * and the error is everyone's. So are settings or data that differ. */
static void set_up(struct rank *self)
{
    const struct settings *settings = &self->settings;
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    struct digits all;
    char problem[512] = "", text[256];

    int result = digits_read(settings->path, &all, problem, sizeof problem);
    if (result == 0) result = split(self, &all, problem, sizeof problem);
    const lofi_digest pixels =
        lofi_digest_of(all.pixels, all.count * DIGITS_PIXELS * sizeof *all.pixels);
    const lofi_digest label = lofi_digest_of(all.label, all.count);
    snprintf(text, sizeof text,
             "digits %016" PRIx64 "%016" PRIx64 ", --ranks-total %ld, --first-rank %ld, "
             "--transport %s",
             pixels.word[0], label.word[0], settings->ranks_total, settings->first_rank,
             settings->transport);
    options.rank = self->world.rank;
    options.world_size = self->world.count;
    options.settings = text;
    options.problem = result != 0 ? problem : NULL;
    check(lofi_topology_create(&options, mpi_host_all_gather, &self->world, &self->topology),
          "finding the nodes");
    digits_free(&all);
    self->rank = self->world.rank;
    self->node = lofi_topology_node_of(self->topology, self->rank);
    self->place = self->rank % lofi_topology_node_size(self->topology);
}

/* ---- communicators ----------------------------------------------------------------------------- */

/* `first` and `step`: which ranks of the world are in it, for errors. */
static lofi_status open_comm(const struct rank *self, const char *transport, struct mpi_host *host,
                             const char *name, int first, int step, lofi_comm **out)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    const lofi_host_functions functions = mpi_host_functions(host);
    int *labels = malloc((size_t)self->world.count * sizeof *labels);

    if (labels == NULL) fail("out of memory", "");
    for (int i = 0; i < host->count; i++)
        labels[i] = first + i * step;
    options.transport = transport;
    options.rank = host->rank;
    options.rank_count = host->count;
    options.timeout_ms = TIMEOUT_MS;
    options.name = name;
    options.labels = labels;
    options.host = &functions;
    lofi_status st = lofi_comm_create(&options, mpi_host_all_gather, host, out);
    free(labels);
    return st;
}

static void open_node(struct rank *self)
{
    const int first = self->rank - self->place;
    char name[32];

    snprintf(name, sizeof name, "node %d", self->node);
    check(mpi_host_create(MPI_COMM_WORLD, self->node, TIMEOUT_MS, &self->inside), name);
    lofi_status st =
        open_comm(self, self->settings.transport, &self->inside, name, first, 1, &self->node_comm);
    if (strcmp(self->settings.transport, "shm") == 0 &&
        (st == LOFI_UNSUPPORTED || st == LOFI_SYSTEM)) {
        /* All ranks of the node have this status, so all of them take the other way. */
        if (self->place == 0)
            fprintf(stderr, "softmax: %s shares no memory and goes over MPI: %s\n", name,
                    lofi_last_error());
        st = open_comm(self, "host", &self->inside, name, first, 1, &self->node_comm);
    }
    check(st, name);
}

static void open_column(struct rank *self)
{
    char name[32];

    snprintf(name, sizeof name, "column %d", self->place);
    check(mpi_host_create(MPI_COMM_WORLD, self->place, TIMEOUT_MS, &self->across), name);
    check(open_comm(self, "host", &self->across, name, self->place,
                    lofi_topology_node_size(self->topology), &self->column_comm),
          name);
}

/* ---- training ------------------------------------------------------------------------------------ */

static void train(const struct rank *self, float *weights)
{
    float gradient[SOFTMAX_SIZE];

    for (int epoch = 0; epoch < EPOCHS; epoch++)
        for (size_t first = 0; first + BATCH <= self->mine.count; first += BATCH) {
            softmax_gradient(weights, &self->mine, first, BATCH, gradient);
            check(lofi_all_reduce(self->node_comm, gradient, gradient, SOFTMAX_SIZE, LOFI_F32,
                                  LOFI_AVG),
                  "all-reduce of the gradients");
            softmax_step(weights, gradient, RATE);
        }
}

static void write_weights(const struct rank *self, const char *kind, const float *weights)
{
    char path[1024];

    if (self->settings.folder == NULL) return;
    int length = snprintf(path, sizeof path, "%s/rank%ld.%s.f32", self->settings.folder,
                          self->settings.first_rank + self->rank, kind);
    if (length < 0 || (size_t)length >= sizeof path) fail("the folder's name is too long: ", path);
    FILE *file = fopen(path, "wb");
    size_t written = file != NULL ? fwrite(weights, sizeof *weights, SOFTMAX_SIZE, file) : 0;
    if (file == NULL || fclose(file) != 0 || written != SOFTMAX_SIZE)
        fail("can't write (is its folder there?): ", path);
}

/* ---- what came out --------------------------------------------------------------------------------- */

static int same(const lofi_digest *a, const lofi_digest *b)
{
    return a->word[0] == b->word[0] && a->word[1] == b->word[1];
}

static void check_digests(const struct rank *self, const struct report *all)
{
    const int node_size = lofi_topology_node_size(self->topology);

    for (int rank = 0; rank < self->world.count; rank++) {
        if (!same(&all[rank].own_digest, &all[rank - rank % node_size].own_digest))
            fail("the ranks of a node have trained apart", "");
        if (!same(&all[rank].average_digest, &all[0].average_digest))
            fail("ranks hold different averages", "");
    }
}

static void print_score(const char *transport, const struct softmax_score *score)
{
    printf("  %-9s %8.4f  %7.2f %%\n", transport, score->loss, 100 * score->accuracy);
}

static void print_reports(const struct rank *self, const struct report *all)
{
    const int nodes = lofi_topology_node_count(self->topology);
    const int node_size = lofi_topology_node_size(self->topology);
    uint64_t training_bytes = 0, average_bytes = 0;

    printf("%d node%s of %d rank%s (by %s), each rank on %zu digits, %zu steps\n", nodes,
           nodes > 1 ? "s" : "", node_size, node_size > 1 ? "s" : "",
           lofi_topology_source(self->topology), self->mine.count,
           EPOCHS * (self->mine.count / BATCH));
    printf("%-10s  transport     loss   accuracy, on %zu digits held out\n", "",
           self->held_out.count);
    for (int node = 0; node < nodes; node++) {
        printf("node %-5d", node);
        print_score(all[node * node_size].transport, &all[node * node_size].own);
    }
    printf("%-10s", "average");
    print_score(lofi_comm_transport(self->column_comm), &all[0].average);
    for (int rank = 0; rank < self->world.count; rank++) {
        training_bytes += all[rank].training_bytes;
        average_bytes += all[rank].average_bytes;
    }
    printf("sent between nodes: %" PRIu64 " bytes while training, %" PRIu64 " for the average\n",
           training_bytes, average_bytes);
    printf("all ranks hold the same bits: %016" PRIx64 "%016" PRIx64 "\n",
           all[0].average_digest.word[0], all[0].average_digest.word[1]);
}

static void report(struct rank *self, const struct report *mine)
{
    struct report *all = malloc((size_t)self->world.count * sizeof *all);

    if (all == NULL) fail("out of memory", "");
    check(mpi_host_all_gather(&self->world, mine, sizeof *mine, all), "gathering the results");
    check_digests(self, all);
    if (self->rank == 0) print_reports(self, all);
    free(all);
}

static void run(struct rank *self)
{
    float weights[SOFTMAX_SIZE];
    struct report mine;

    memset(&mine, 0, sizeof mine);
    softmax_init(weights, SEED);
    write_weights(self, "start", weights);
    train(self, weights);
    mine.training_bytes = self->across.sent_bytes;
    mine.own = softmax_score(weights, &self->held_out);
    mine.own_digest = lofi_digest_of(weights, sizeof weights);
    snprintf(mine.transport, sizeof mine.transport, "%s", lofi_comm_transport(self->node_comm));
    write_weights(self, "own", weights);

    check(lofi_finalize_average(self->node_comm, self->column_comm, LOFI_F32, weights, SOFTMAX_SIZE,
                                NULL, 0),
          "averaging over the nodes");
    mine.average_bytes = self->across.sent_bytes - mine.training_bytes;
    mine.average = softmax_score(weights, &self->held_out);
    mine.average_digest = lofi_digest_of(weights, sizeof weights);
    write_weights(self, "average", weights);
    report(self, &mine);
}

static void tear_down(struct rank *self)
{
    lofi_comm_destroy(self->column_comm);
    lofi_comm_destroy(self->node_comm);
    lofi_topology_destroy(self->topology);
    mpi_host_destroy(&self->across);
    mpi_host_destroy(&self->inside);
    mpi_host_destroy(&self->world);
    digits_free(&self->mine);
    digits_free(&self->held_out);
}

int main(int argc, char **argv)
{
    struct rank self;
    int threads = 0, world_size = 0;

    memset(&self, 0, sizeof self);
    /* Nothing is posted here, so the functions for liblofi run on this thread only. A program that
     * calls lofi_post needs MPI_THREAD_MULTIPLE: its communicators have threads of their own. */
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &threads);
    MPI_Comm_size(MPI_COMM_WORLD, &world_size);
    check(mpi_host_create(MPI_COMM_WORLD, 0, TIMEOUT_MS, &self.world), "the world");
    if (read_settings(argc, argv, world_size, &self.settings) != 0) {
        if (self.world.rank == 0) fputs(USAGE, stderr);
        mpi_host_destroy(&self.world);
        MPI_Finalize();
        return 2;
    }
    set_up(&self);
    open_node(&self);
    open_column(&self);
    run(&self);
    tear_down(&self);
    MPI_Finalize();
    return 0;
}
