/* SPDX-License-Identifier: MIT */
/* How ranks find their nodes: environment, disagreement, hosts, damage. */
#define _POSIX_C_SOURCE 200809L
#include "nodes/facts.h"
#include "test.h"

#include <pthread.h>

#define MAX_WORLD 16

/* One rank of a world: what it would have in its environment and options. */
struct rank_setup {
    int node_size;
    const char *lofi, *torchrun, *slurm; /* values of the variables; NULL: unset */
    const char *host;                    /* NULL: the real one */
    const char *settings, *problem;
};

static void set_variable(const char *name, const char *value)
{
    if (value != NULL)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static void fill_facts(struct lofi__facts *facts, const struct rank_setup *setup, int rank,
                       int world_size)
{
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;

    set_variable("LOFI_NODE_SIZE", setup->lofi);
    set_variable("LOCAL_WORLD_SIZE", setup->torchrun);
    set_variable("SLURM_NTASKS_PER_NODE", setup->slurm);
    options.rank = rank;
    options.world_size = world_size;
    options.node_size = setup->node_size;
    options.settings = setup->settings;
    options.problem = setup->problem;
    lofi__facts_fill(facts, &options);
    if (setup->host != NULL) snprintf(facts->host, sizeof facts->host, "%s", setup->host);
}

static struct lofi__facts facts[MAX_WORLD];

static lofi_status agree(const struct rank_setup *setups, int world_size, int *node_size)
{
    for (int rank = 0; rank < world_size; rank++)
        fill_facts(&facts[rank], &setups[rank], rank, world_size);
    return lofi__facts_agree(facts, world_size, node_size);
}

/* The node size that `world_size` ranks of one setup agree on; the status if they don't. */
static int agree_all(struct rank_setup setup, int world_size)
{
    struct rank_setup setups[MAX_WORLD];
    int node_size = 0;

    for (int rank = 0; rank < world_size; rank++)
        setups[rank] = setup;
    lofi_status st = agree(setups, world_size, &node_size);
    return st == LOFI_OK ? node_size : (int)st;
}

static void test_sources(void)
{
    EXPECT(agree_all((struct rank_setup){.node_size = 2, .lofi = "4"}, 8) == 2);
    EXPECT(agree_all((struct rank_setup){.lofi = "4", .torchrun = "2"}, 8) == 4);
    EXPECT(agree_all((struct rank_setup){.torchrun = "2", .slurm = "8"}, 8) == 2);
    EXPECT(agree_all((struct rank_setup){.slurm = "4"}, 8) == 4);
    EXPECT(agree_all((struct rank_setup){.slurm = "4(x2)"}, 8) == 4);
    EXPECT(agree_all((struct rank_setup){.lofi = "", .torchrun = "", .slurm = "4"}, 8) == 4);
    EXPECT(agree_all((struct rank_setup){.host = "a"}, 8) == 8);
    EXPECT(agree_all((struct rank_setup){0}, 8) == 8); /* all on this host */
    EXPECT(agree_all((struct rank_setup){.lofi = "0002"}, 8) == 2);
    EXPECT(agree_all((struct rank_setup){.lofi = "1"}, 1) == 1);
}

static void test_nonsense(void)
{
    static const char *const words[] = {"abc", "0",  "-1",   "+4", " 4",         "4 ",
                                        "4.0", "4x", "0x10", "-",  "2147483648", "99999999999999",
                                        "4,4", "(",  "4\n"};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        char named[64];
        snprintf(named, sizeof named, "is '%s'", words[i]);
        EXPECT(agree_all((struct rank_setup){.lofi = words[i]}, 4) == LOFI_INVALID);
        EXPECT_ERROR("rank 0: LOFI_NODE_SIZE");
        EXPECT_ERROR(named);
        EXPECT(agree_all((struct rank_setup){.torchrun = words[i]}, 4) == LOFI_INVALID);
        EXPECT_ERROR("rank 0: LOCAL_WORLD_SIZE");
        EXPECT(agree_all((struct rank_setup){.slurm = words[i]}, 4) == LOFI_INVALID);
        EXPECT_ERROR("rank 0: SLURM_NTASKS_PER_NODE");
    }
    EXPECT(agree_all((struct rank_setup){.lofi = "4(x2)"}, 4) == LOFI_INVALID);
    EXPECT(agree_all((struct rank_setup){.slurm = "4(x2"}, 4) == LOFI_INVALID);
    EXPECT(agree_all((struct rank_setup){.slurm = "4(x0)"}, 4) == LOFI_INVALID);
    EXPECT(agree_all((struct rank_setup){.slurm = "4(x2)z"}, 4) == LOFI_INVALID);
    EXPECT(agree_all((struct rank_setup){.slurm = "4(x2),3"}, 4) == LOFI_INVALID);
    EXPECT_ERROR("'4(x2),3', different numbers of tasks");
    EXPECT(agree_all((struct rank_setup){.node_size = -2}, 4) == LOFI_INVALID);
    EXPECT_ERROR("node_size is -2");

    struct rank_setup setups[4] = {{.lofi = "2"}, {.lofi = "2"}, {.lofi = "2"}, {.lofi = "abc"}};
    int node_size = -5;
    EXPECT(agree(setups, 4, &node_size) == LOFI_INVALID && node_size == -5);
    EXPECT_ERROR("rank 3: LOFI_NODE_SIZE is 'abc', not a positive whole number");
}

static void test_not_divisible(void)
{
    EXPECT(agree_all((struct rank_setup){.lofi = "4"}, 6) == LOFI_INVALID);
    EXPECT_ERROR("the world of 6 ranks can't be split into nodes of 4 ranks (LOFI_NODE_SIZE): "
                 "choose a node size that divides 6");
    EXPECT(agree_all((struct rank_setup){.torchrun = "4"}, 6) == LOFI_INVALID);
    EXPECT_ERROR("(LOCAL_WORLD_SIZE)");
    EXPECT_ERROR("set LOFI_NODE_SIZE");
    EXPECT(agree_all((struct rank_setup){.node_size = 16}, 8) == LOFI_INVALID);
}

static void test_disagreement(void)
{
    int size = 0;
    struct rank_setup a[4] = {{.lofi = "2"}, {.lofi = "2"}, {.lofi = "4"}, {.lofi = "4"}};
    EXPECT(agree(a, 4, &size) == LOFI_INVALID);
    EXPECT_ERROR("rank 0 has 2 (LOFI_NODE_SIZE), rank 2 has 4 (LOFI_NODE_SIZE)");

    struct rank_setup b[4] = {{.lofi = "2"}, {.lofi = "2"}, {.lofi = "2"}, {.host = "a"}};
    EXPECT(agree(b, 4, &size) == LOFI_INVALID);
    EXPECT_ERROR("rank 0 has 2 (LOFI_NODE_SIZE), rank 3 has none");

    struct rank_setup c[4] = {{.host = "a"}, {.host = "a"}, {.node_size = 2}, {.node_size = 2}};
    EXPECT(agree(c, 4, &size) == LOFI_INVALID);
    EXPECT_ERROR("rank 2 has 2 (node_size), rank 0 has none");

    /* equal numbers, but only some were asked for */
    struct rank_setup d[2] = {{.lofi = "1"}, {.torchrun = "1"}};
    EXPECT(agree(d, 2, &size) == LOFI_INVALID);
    EXPECT_ERROR("rank 1 has 1 (LOCAL_WORLD_SIZE)");

    struct rank_setup e[6] = {{.torchrun = "4"}, {.torchrun = "4"}, {.torchrun = "4"},
                              {.torchrun = "4"}, {.torchrun = "2"}, {.torchrun = "2"}};
    EXPECT(agree(e, 6, &size) == LOFI_INVALID);
    EXPECT_ERROR("node sizes differ: rank 0 has 4 (LOCAL_WORLD_SIZE), rank 4 has 2");

    struct rank_setup f[2] = {{.node_size = 1}, {.lofi = "1"}}; /* both asked, and the same */
    EXPECT(agree(f, 2, &size) == LOFI_OK && size == 1);
    struct rank_setup g[2] = {{.torchrun = "1"}, {.slurm = "1"}};
    EXPECT(agree(g, 2, &size) == LOFI_OK && size == 1);
}

static void test_settings(void)
{
    int size = 0;
    char long_text[2000];
    struct rank_setup a[3] = {{.lofi = "1", .settings = "eval node"},
                              {.lofi = "1", .settings = "eval node"},
                              {.lofi = "1", .settings = "eval averaged"}};
    EXPECT(agree(a, 3, &size) == LOFI_INVALID);
    EXPECT_ERROR("rank 0 has 'eval node', rank 2 has 'eval averaged'");
    a[2].settings = "eval node";
    EXPECT(agree(a, 3, &size) == LOFI_OK && size == 1);
    a[0].settings = NULL;
    EXPECT(agree(a, 3, &size) == LOFI_INVALID);

    memset(long_text, 's', sizeof long_text);
    long_text[1023] = '\0';
    EXPECT(agree_all((struct rank_setup){.lofi = "1", .settings = long_text}, 2) == 1);
    long_text[1023] = 's';
    long_text[1024] = '\0';
    EXPECT(agree_all((struct rank_setup){.lofi = "1", .settings = long_text}, 2) == LOFI_INVALID);
    EXPECT_ERROR("rank 0: the settings take 1024 bytes");

    /* a problem comes before whatever else is wrong, the lowest rank's first */
    a[1].problem = "gloo is missing";
    a[2].problem = "nccl is missing";
    EXPECT(agree(a, 3, &size) == LOFI_INVALID);
    EXPECT(strcmp(lofi_last_error(), "rank 1: gloo is missing") == 0);
    a[1].problem = long_text; /* longer than a problem may be: cut, not refused */
    EXPECT(agree(a, 3, &size) == LOFI_INVALID);
    EXPECT_ERROR("rank 1: sss");
}

/* Each letter is the host of one rank. */
static int agree_hosts(const char *letters, const char *torchrun)
{
    struct rank_setup setups[MAX_WORLD] = {{0}};
    char hosts[MAX_WORLD][2];
    int world_size = (int)strlen(letters), node_size = 0;

    for (int rank = 0; rank < world_size; rank++) {
        snprintf(hosts[rank], sizeof hosts[rank], "%c", letters[rank]);
        setups[rank].host = hosts[rank];
        setups[rank].torchrun = torchrun;
    }
    lofi_status st = agree(setups, world_size, &node_size);
    return st == LOFI_OK ? node_size : (int)st;
}

static void test_hosts(void)
{
    EXPECT(agree_hosts("aaaa", NULL) == 4);
    EXPECT(agree_hosts("aabb", NULL) == 2);
    EXPECT(agree_hosts("bbaacc", NULL) == 2);
    EXPECT(agree_hosts("abcd", NULL) == 1);
    EXPECT(agree_hosts("aaab", NULL) == LOFI_INVALID);
    EXPECT_ERROR("host 'a' holds 3 ranks (from rank 0), host 'b' holds 1 (from rank 3)");
    EXPECT(agree_hosts("abbb", NULL) == LOFI_INVALID);
    EXPECT(agree_hosts("aabbb", NULL) == LOFI_INVALID);
    EXPECT(agree_hosts("aabbc", NULL) == LOFI_INVALID);
    EXPECT_ERROR("host 'c' holds 1 (from rank 4)");
    EXPECT(agree_hosts("abab", NULL) == LOFI_INVALID);
    EXPECT_ERROR("the ranks of host 'a' are not consecutive: rank 0 and rank 2 run on it, but "
                 "rank 1 on 'b'");
    EXPECT(agree_hosts("aabbaa", NULL) == LOFI_INVALID);
    EXPECT_ERROR("not consecutive");

    EXPECT(agree_hosts("aaaa", "2") == 2); /* two launchers on one host */
    EXPECT(agree_hosts("aabb", "2") == 2);
    EXPECT(agree_hosts("abab", "2") == LOFI_INVALID);
    EXPECT_ERROR("LOCAL_WORLD_SIZE is 2, but rank 0 runs on host 'a' and rank 1 on 'b'");
}

/* Damage: what another process sent is never trusted. */
static lofi_status agree_damaged(const struct lofi__facts *damaged, int rank)
{
    int size = 0;
    for (int i = 0; i < 4; i++)
        fill_facts(&facts[i], &(struct rank_setup){.lofi = "2"}, i, 4);
    facts[rank] = *damaged;
    return lofi__facts_agree(facts, 4, &size);
}

static void test_damage(void)
{
    struct lofi__facts sound, bad;

    fill_facts(&sound, &(struct rank_setup){.lofi = "2"}, 2, 4);
    EXPECT(agree_damaged(&sound, 2) == LOFI_OK);
    EXPECT(agree_damaged(&sound, 1) == LOFI_INVALID);
    EXPECT_ERROR("the facts of rank 2 in the place of rank 1");

    bad = sound;
    bad.version += 100;
    EXPECT(agree_damaged(&bad, 2) == LOFI_ABI);
    EXPECT_ERROR("rank 0 runs lofi 0.1.0 and rank 2 runs lofi 0.2.0");
    bad = sound;
    bad.layout++;
    EXPECT(agree_damaged(&bad, 2) == LOFI_ABI);
    bad = sound;
    bad.magic ^= 1;
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    EXPECT_ERROR("rank 2 sent no facts of lofi");
    bad = sound;
    bad.world_size = 5;
    EXPECT(agree_damaged(&bad, 2) == LOFI_INVALID);
    EXPECT_ERROR("rank 2 is in a world of 5 ranks");
    bad = sound;
    bad.node_size = -4;
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    bad.node_size = 0;
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    bad = sound;
    bad.source = 77;
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    bad.source = -1;
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    bad = sound;
    memset(bad.host, 'h', sizeof bad.host);
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    bad = sound;
    memset(bad.settings, 's', sizeof bad.settings);
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    bad = sound;
    memset(bad.problem, 'p', sizeof bad.problem);
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    memset(&bad, 0, sizeof bad);
    EXPECT(agree_damaged(&bad, 2) == LOFI_CORRUPT);
    memset(&bad, 0xff, sizeof bad);
    EXPECT(agree_damaged(&bad, 0) == LOFI_CORRUPT);
    uint64_t seed = 1;
    for (int i = 0; i < 2000; i++) { /* any bytes end in a status, never beyond a buffer */
        bad = sound;
        for (int j = 0; j < 8; j++)
            ((unsigned char *)&bad)[test_below(&seed, (int)sizeof bad)] =
                (unsigned char)test_random(&seed);
        EXPECT(agree_damaged(&bad, 2) <= LOFI_OK);
    }
}

/* ---- ranks as threads, through the public function ------------------------------------------- */

struct meeting {
    pthread_barrier_t barrier;
    unsigned char bytes[MAX_WORLD * 2048];
};

struct rank_thread {
    struct meeting *meeting;
    int rank, world_size, node_size;
    lofi_status st;
    char error[512];
};

static lofi_status meet(void *ctx, const void *mine, size_t bytes, void *all)
{
    struct rank_thread *self = ctx;

    if (bytes > 2048) return LOFI_SYSTEM;
    memcpy(self->meeting->bytes + (size_t)self->rank * bytes, mine, bytes);
    pthread_barrier_wait(&self->meeting->barrier);
    memcpy(all, self->meeting->bytes, bytes * (size_t)self->world_size);
    return LOFI_OK;
}

static void *run_rank(void *ctx)
{
    struct rank_thread *self = ctx;
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    lofi_topology *topology = NULL;

    options.rank = self->rank;
    options.world_size = self->world_size;
    options.node_size = self->node_size;
    self->st = lofi_topology_create(&options, meet, self, &topology);
    snprintf(self->error, sizeof self->error, "%s", lofi_last_error());
    if (self->st == LOFI_OK && lofi_topology_rank(topology) != self->rank) self->st = LOFI_STATE;
    lofi_topology_destroy(topology);
    return NULL;
}

static void run_world(struct rank_thread *ranks, int world_size)
{
    static struct meeting meeting;
    pthread_t threads[MAX_WORLD];

    ASSERT(pthread_barrier_init(&meeting.barrier, NULL, (unsigned)world_size) == 0);
    for (int i = 0; i < world_size; i++) {
        ranks[i].meeting = &meeting;
        ranks[i].rank = i;
        ranks[i].world_size = world_size;
        ASSERT(pthread_create(&threads[i], NULL, run_rank, &ranks[i]) == 0);
    }
    for (int i = 0; i < world_size; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&meeting.barrier);
}

static void test_threads(void)
{
    struct rank_thread ranks[8];

    memset(ranks, 0, sizeof ranks);
    for (int i = 0; i < 8; i++)
        ranks[i].node_size = 4;
    run_world(ranks, 8);
    for (int i = 0; i < 8; i++)
        EXPECT(ranks[i].st == LOFI_OK);
    ranks[5].node_size = 2;
    run_world(ranks, 8);
    for (int i = 0; i < 8; i++) { /* all fail alike, with one sentence */
        EXPECT(ranks[i].st == LOFI_INVALID);
        EXPECT_TEXT(ranks[i].error, "rank 0 has 4 (node_size), rank 5 has 2 (node_size)");
    }
}

static lofi_status fail_silently(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx, (void)mine, (void)bytes, (void)all;
    return LOFI_TIMED_OUT;
}

static lofi_status fail_aloud(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx, (void)mine, (void)bytes, (void)all;
    lofi_set_error("rank 7 never came");
    return LOFI_PEER_LOST;
}

static lofi_status echo(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx;
    memcpy(all, mine, bytes);
    return LOFI_OK;
}

static void test_create(void)
{
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    lofi_topology *topology = NULL;

    lofi_set_error("an old error");
    EXPECT(lofi_topology_create(&options, fail_silently, NULL, &topology) == LOFI_TIMED_OUT);
    EXPECT_ERROR("a deadline passed");
    EXPECT(lofi_topology_create(&options, fail_aloud, NULL, &topology) == LOFI_PEER_LOST);
    EXPECT(strcmp(lofi_last_error(), "rank 7 never came") == 0);
    EXPECT(lofi_topology_create(NULL, echo, NULL, &topology) == LOFI_INVALID);
    EXPECT(lofi_topology_create(&options, NULL, NULL, &topology) == LOFI_INVALID);
    EXPECT(lofi_topology_create(&options, echo, NULL, NULL) == LOFI_INVALID);
    options.rank = 1;
    EXPECT(lofi_topology_create(&options, echo, NULL, &topology) == LOFI_INVALID);
    EXPECT_ERROR("no rank 1 in a world of 1");
    options.rank = 0;
    options.size = 0;
    EXPECT(lofi_topology_create(&options, echo, NULL, &topology) == LOFI_INVALID);
    options.size = sizeof options + 8; /* of a later header */
    EXPECT(lofi_topology_create(&options, echo, NULL, &topology) == LOFI_ABI);
    EXPECT(topology == NULL);

    options.size = sizeof options;
    set_variable("LOCAL_WORLD_SIZE", "1");
    set_variable("SLURM_NTASKS_PER_NODE", NULL);
    set_variable("LOFI_NODE_SIZE", NULL);
    ASSERT(lofi_topology_create(&options, echo, NULL, &topology) == LOFI_OK);
    EXPECT(strcmp(lofi_topology_source(topology), "LOCAL_WORLD_SIZE") == 0);
    EXPECT(lofi_topology_rank(topology) == 0 && lofi_topology_world_size(topology) == 1);
    EXPECT(lofi_topology_node_size(topology) == 1 && lofi_topology_node_count(topology) == 1);
    EXPECT(lofi_topology_node_of(topology, 0) == 0);
    EXPECT(lofi_topology_node_of(topology, 1) == -1 && lofi_topology_node_of(topology, -1) == -1);
    lofi_topology_destroy(topology);
    lofi_topology_destroy(NULL);
}

int main(void)
{
    test_sources();
    test_nonsense();
    test_not_divisible();
    test_disagreement();
    test_settings();
    test_hosts();
    test_damage();
    unsetenv("LOFI_NODE_SIZE");
    test_threads();
    test_create();
    return test_end();
}
