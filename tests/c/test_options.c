/* SPDX-License-Identifier: MIT */
/*
 * Every function that takes a struct with a size, called as by programs that were compiled with an
 * older lofi.h: the struct ends after a field, and what lies behind it in memory is not read. With
 * a newer one, with no size, and with none.
 */
#define _GNU_SOURCE
#include "core/options.h"
#include "test.h"

/* Makes `given` a struct of an older release: what comes after `field` is not its own. */
#define CUT_AFTER(given, field)                                                                    \
    cut(&(given), offsetof(__typeof__(given), field) + sizeof((given).field), sizeof(given))

static void cut(void *given, size_t size, size_t bytes)
{
    memset((char *)given + size, 0xee, bytes - size);
    memcpy(given, &size, sizeof size);
}

/* `call` is an expression that gives `given` to a function. */
#define EXPECT_SIZES(given, call, init)                                                            \
    do {                                                                                           \
        (given).size = sizeof(given) + 1;                                                          \
        EXPECT((call) == LOFI_ABI);                                                                \
        EXPECT_ERROR("newer release");                                                             \
        EXPECT_ERROR(init);                                                                        \
        (given).size = sizeof(size_t) - 1;                                                         \
        EXPECT((call) == LOFI_INVALID);                                                            \
        EXPECT_ERROR(init);                                                                        \
    } while (0)

static lofi_status echo(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx;
    memcpy(all, mine, bytes);
    return LOFI_OK;
}

static void test_read_and_write(void)
{
    struct grown {
        size_t size;
        int a, b;
    };
    struct grown given = {offsetof(struct grown, b), 7, 8}, full = {sizeof full, 1, 2};

    EXPECT(lofi__options_read(&full, sizeof full, &given, "INIT") == LOFI_OK);
    EXPECT(full.size == sizeof full && full.a == 7 && full.b == 2);
    full.a = 5;
    EXPECT(lofi__options_write(&given, &full, sizeof full, "INIT") == LOFI_OK);
    EXPECT(given.size == offsetof(struct grown, b) && given.a == 5 && given.b == 8);
    EXPECT(lofi__options_read(&full, sizeof full, NULL, "INIT") == LOFI_INVALID);
    EXPECT_ERROR("INIT");
    EXPECT(lofi__options_write(NULL, &full, sizeof full, "INIT") == LOFI_INVALID);
    EXPECT_SIZES(given, lofi__options_read(&full, sizeof full, &given, "INIT"), "INIT");
    EXPECT_SIZES(given, lofi__options_write(&given, &full, sizeof full, "INIT"), "INIT");
    EXPECT(full.a == 5 && given.b == 8);
}

static void test_topology_and_mirror(void)
{
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    lofi_topology *topology = NULL;
    lofi_group *group = NULL;
    lofi_plan plan;

    options.node_size = 1;
    CUT_AFTER(options, node_size);
    ASSERT(lofi_topology_create(&options, echo, NULL, &topology) == LOFI_OK);
    EXPECT(lofi_topology_node_size(topology) == 1);
    lofi_call call = LOFI_CALL_INIT;
    const int ranks[] = {0};
    ASSERT(lofi_group_create(topology, ranks, 1, &group) == LOFI_OK);
    call.collective = LOFI_BARRIER;
    CUT_AFTER(call, collective);
    EXPECT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK && plan.action == LOFI_DO_REAL);
    EXPECT_SIZES(call, lofi_mirror_plan(group, &call, &plan), "LOFI_CALL_INIT");
    EXPECT(lofi_mirror_plan(group, NULL, &plan) == LOFI_INVALID);
    lofi_group_destroy(group);
    lofi_topology_destroy(topology);
    topology = NULL;
    EXPECT_SIZES(options, lofi_topology_create(&options, echo, NULL, &topology),
                 "LOFI_TOPOLOGY_OPTIONS_INIT");
    EXPECT(topology == NULL);
}

static void test_session(void)
{
    lofi_session *session = NULL;
    lofi_stats stats;

    ASSERT(lofi_session_create(&session) == LOFI_OK);
    ASSERT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK);
    lofi_session_count(session, LOFI_SCOPE_NODE, LOFI_FOR_TRAINING, 12);
    CUT_AFTER(stats, collectives);
    EXPECT(lofi_session_get_stats(session, &stats) == LOFI_OK);
    EXPECT(stats.phase == LOFI_PHASE_TRAIN);
    EXPECT(stats.collectives[LOFI_SCOPE_NODE][LOFI_FOR_TRAINING] == 1);
    EXPECT(stats.cross_bytes[LOFI_FOR_TRAINING] == UINT64_C(0xeeeeeeeeeeeeeeee)); /* not written */
    EXPECT_SIZES(stats, lofi_session_get_stats(session, &stats), "LOFI_STATS_INIT");
    EXPECT(lofi_session_get_stats(session, NULL) == LOFI_INVALID);
    lofi_session_destroy(session);
}

static void test_mix(void)
{
    const float in[2] = {1, 3};
    const void *inputs[2] = {in, in + 1};
    lofi_mix mix = LOFI_MIX_INIT;
    float out = 0;

    mix.inputs = 2;
    CUT_AFTER(mix, inputs);
    EXPECT(lofi_mean_mixed(&mix, &out, inputs, 1) == LOFI_OK && out == 2.0f);
    EXPECT_SIZES(mix, lofi_mean_mixed(&mix, &out, inputs, 1), "LOFI_MIX_INIT");
    EXPECT(lofi_mean_mixed(NULL, &out, inputs, 1) == LOFI_INVALID);
}

static lofi_status host_all_gather(void *ctx, const void *in, size_t bytes, void *out)
{
    return echo(ctx, in, bytes, out);
}

static void test_comm(void)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_host_functions host = LOFI_HOST_FUNCTIONS_INIT;
    lofi_comm *comm = NULL;
    int value = 3, sum = 0;

    host.all_gather = host_all_gather;
    CUT_AFTER(host, all_gather);
    options.transport = "host";
    options.host = &host;
    CUT_AFTER(options, host);
    ASSERT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_OK);
    lofi_task task = LOFI_TASK_INIT;
    task.collective = LOFI_ALL_REDUCE;
    task.dtype = LOFI_I32;
    task.count = 1;
    task.in = &value;
    task.out = &sum;
    CUT_AFTER(task, out);
    EXPECT(lofi_run(comm, &task) == LOFI_OK && sum == 3);
    EXPECT_SIZES(task, lofi_run(comm, &task), "LOFI_TASK_INIT");
    EXPECT_SIZES(task, lofi_post(comm, &task, NULL, NULL, NULL), "LOFI_TASK_INIT");
    lofi_comm_destroy(comm);
    comm = NULL;
    EXPECT_SIZES(host, lofi_comm_create(&options, NULL, NULL, &comm), "LOFI_HOST_FUNCTIONS_INIT");
    EXPECT_SIZES(options, lofi_comm_create(&options, NULL, NULL, &comm), "LOFI_COMM_OPTIONS_INIT");
    EXPECT_SIZES(options, lofi_comm_create_local(&options, NULL, NULL, NULL, &comm),
                 "LOFI_COMM_OPTIONS_INIT");
    EXPECT(comm == NULL);
    CUT_AFTER(options, rank_count);
    ASSERT(lofi_comm_create_local(&options, NULL, NULL, NULL, &comm) == LOFI_OK);
    EXPECT_TEXT(lofi_comm_transport(comm), "self");
    lofi_comm_destroy(comm);
}

static void test_exchange(void)
{
    lofi_comm_options self = LOFI_COMM_OPTIONS_INIT;
    lofi_exchange_options options = LOFI_EXCHANGE_OPTIONS_INIT;
    lofi_exchange_shape shape = LOFI_EXCHANGE_SHAPE_INIT;
    lofi_exchange_step step;
    lofi_comm *comm = NULL;
    float value = 2;

    self.transport = "self";
    ASSERT(lofi_comm_create(&self, NULL, NULL, &comm) == LOFI_OK);
    CUT_AFTER(options, weights);
    EXPECT(lofi_exchange(comm, comm, &value, 1, &options) == LOFI_OK && value == 2.0f);
    EXPECT_SIZES(options, lofi_exchange(comm, comm, &value, 1, &options),
                 "LOFI_EXCHANGE_OPTIONS_INIT");
    lofi_comm_destroy(comm);
    shape.count = 5;
    CUT_AFTER(shape, element_bytes);
    EXPECT(lofi_exchange_steps(&shape) ==
           15); /* chunks of one element, as the initializer has it */
    EXPECT_SIZES(shape, lofi_exchange_step_at(&shape, 0, &step), "LOFI_EXCHANGE_SHAPE_INIT");
}

static void test_round(void)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
    lofi_round *round = NULL;

    options.member_count = 2;
    CUT_AFTER(options, member);
    ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
    CUT_AFTER(answer, yes);
    EXPECT(lofi_round_tell(round, &answer) == LOFI_OK);
    EXPECT_SIZES(answer, lofi_round_tell(round, &answer), "LOFI_ROUND_ANSWER_INIT");
    EXPECT(lofi_round_tell(round, NULL) == LOFI_INVALID);
    lofi_round_destroy(round);
    round = NULL;
    EXPECT_SIZES(options, lofi_round_create(&options, &round), "LOFI_ROUND_OPTIONS_INIT");
    EXPECT(round == NULL);
}

static void test_average_files(void)
{
    static const char *const nowhere[] = {"/nonexistent/a.safetensors"};
    lofi_average_files_options options = LOFI_AVERAGE_FILES_OPTIONS_INIT;

    options.inputs = nowhere;
    options.input_count = 1;
    options.out = "/nonexistent/out.safetensors";
    CUT_AFTER(options, out);
    EXPECT(lofi_average_files_check(&options) == LOFI_OK);
    EXPECT(lofi_average_files(&options, NULL) != LOFI_OK);
    EXPECT_ERROR("/nonexistent/a.safetensors"); /* it came as far as the files */
    EXPECT_SIZES(options, lofi_average_files(&options, NULL), "LOFI_AVERAGE_FILES_OPTIONS_INIT");
    EXPECT_SIZES(options, lofi_average_files_check(&options), "LOFI_AVERAGE_FILES_OPTIONS_INIT");
}

static lofi_status refuse_to_score(void *ctx, const char *path, double *score)
{
    (void)ctx, (void)path, (void)score;
    return LOFI_STATE;
}

static void test_soup(void)
{
    static const char *const nowhere[] = {"/nonexistent/a.safetensors"};
    static const double alphas[] = {0.5};
    lofi_average_files_options average = LOFI_AVERAGE_FILES_OPTIONS_INIT;
    lofi_soup_options options = LOFI_SOUP_OPTIONS_INIT;

    EXPECT(lofi_soup(&options, NULL) == LOFI_INVALID); /* no average */
    average.inputs = nowhere;
    average.input_count = 1;
    average.out = "/nonexistent/out.safetensors";
    options.average = &average;
    EXPECT(lofi_soup(&options, NULL) == LOFI_INVALID); /* nobody scores */
    EXPECT_ERROR("scores");
    options.score = refuse_to_score;
    CUT_AFTER(options, score);
    EXPECT(lofi_soup(&options, NULL) == LOFI_SYSTEM);
    EXPECT_ERROR("/nonexistent/a.safetensors");
    average.base = nowhere[0];
    EXPECT(lofi_soup(&options, NULL) == LOFI_INVALID);
    EXPECT_ERROR("base");
    average.base = NULL;
    average.weights = alphas;
    EXPECT(lofi_soup(&options, NULL) == LOFI_INVALID);
    EXPECT_ERROR("weights");
    options.alphas = alphas;
    EXPECT(lofi_soup(&options, NULL) == LOFI_INVALID); /* of which there are 0 */
    options.alpha_count = 1;
    EXPECT(lofi_soup(&options, NULL) == LOFI_INVALID);
    EXPECT_ERROR("base");
    EXPECT_SIZES(options, lofi_soup(&options, NULL), "LOFI_SOUP_OPTIONS_INIT");
}

int main(void)
{
    unsetenv("LOFI_NODE_SIZE");
    test_read_and_write();
    test_topology_and_mirror();
    test_session();
    test_mix();
    test_comm();
    test_exchange();
    test_round();
    test_average_files();
    test_soup();
    return test_end();
}
