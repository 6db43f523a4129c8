/* SPDX-License-Identifier: MIT */
/* Phases, scopes, statistics; alone and with many threads. */
#include "test.h"

#include <pthread.h>

static void test_phases(void)
{
    lofi_session *session = NULL;

    ASSERT(lofi_session_create(&session) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_SETUP);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_WORLD);
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_BACK) == LOFI_STATE);
    EXPECT_ERROR("the end of an average is not possible in phase setup");
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_DONE) == LOFI_STATE);

    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK); /* from setup, and back */
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_BACK) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_SETUP);

    EXPECT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_TRAIN);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_NODE);

    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_WORLD);
    EXPECT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK); /* no-op within */
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_AVERAGE);
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_STATE);
    EXPECT_ERROR("an average is not possible in phase average");
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_BACK) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_TRAIN);

    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_DONE) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_DONE);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_WORLD);
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_BACK) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_DONE);
    EXPECT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_TRAIN);
    EXPECT(lofi_session_event(session, (lofi_event)5) == LOFI_INVALID);
    EXPECT(lofi_session_event(session, (lofi_event)-1) == LOFI_INVALID);
    lofi_session_destroy(session);
    lofi_session_destroy(NULL);
    EXPECT(lofi_session_create(NULL) == LOFI_INVALID);

    EXPECT(strcmp(lofi_phase_name(LOFI_PHASE_SETUP), "setup") == 0);
    EXPECT(strcmp(lofi_phase_name(LOFI_PHASE_DONE), "done") == 0);
    EXPECT(strcmp(lofi_phase_name(LOFI_PHASE_EVALUATE), "evaluate") == 0);
    EXPECT(strcmp(lofi_phase_name((lofi_phase)5), "unknown") == 0);
    EXPECT(strcmp(lofi_purpose_name(LOFI_FOR_SETUP), "setup") == 0);
    EXPECT(strcmp(lofi_purpose_name(LOFI_FOR_DONE), "done") == 0);
    EXPECT(strcmp(lofi_purpose_name(LOFI_PURPOSE_COUNT), "unknown") == 0);
}

static void test_evaluation(void)
{
    lofi_session *session = NULL;
    lofi_stats stats = LOFI_STATS_INIT;

    ASSERT(lofi_session_create(&session) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_EVALUATE) == LOFI_STATE);
    ASSERT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK);
    ASSERT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_EVALUATE) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_EVALUATE);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_WORLD);
    EXPECT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK); /* no-op within */
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_EVALUATE);
    lofi_session_count(session, LOFI_SCOPE_WORLD, -1, 3);
    ASSERT(lofi_session_get_stats(session, &stats) == LOFI_OK);
    EXPECT(stats.cross_bytes[LOFI_FOR_EVALUATION] == 3);

    /* A second model is averaged meanwhile; then training goes on. */
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_EVALUATE) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_BACK) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_TRAIN);

    ASSERT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK);
    ASSERT(lofi_session_event(session, LOFI_EVENT_EVALUATE) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_AVERAGE_DONE) == LOFI_OK);
    EXPECT(lofi_session_phase(session) == LOFI_PHASE_DONE);
    lofi_session_destroy(session);
}

static void test_scopes(void)
{
    lofi_session *session = NULL;

    ASSERT(lofi_session_create(&session) == LOFI_OK);
    EXPECT(lofi_session_pop_scope(session) == LOFI_STATE);
    EXPECT(lofi_session_push_scope(session, LOFI_SCOPE_NODE) == LOFI_OK);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_NODE);
    EXPECT(lofi_session_push_scope(session, LOFI_SCOPE_WORLD) == LOFI_OK);
    EXPECT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_WORLD); /* pushed, although training */
    EXPECT(lofi_session_pop_scope(session) == LOFI_OK);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_NODE);
    EXPECT(lofi_session_pop_scope(session) == LOFI_OK);
    EXPECT(lofi_session_scope(session) == LOFI_SCOPE_NODE); /* of the phase */
    EXPECT(lofi_session_push_scope(session, (lofi_scope)2) == LOFI_INVALID);

    for (int i = 0; i < 64; i++)
        EXPECT(lofi_session_push_scope(session, (lofi_scope)(i % 3 == 0)) == LOFI_OK);
    EXPECT(lofi_session_push_scope(session, LOFI_SCOPE_NODE) == LOFI_STATE);
    EXPECT_ERROR("64 deep");
    for (int i = 63; i >= 0; i--) {
        EXPECT(lofi_session_scope(session) == (lofi_scope)(i % 3 == 0));
        EXPECT(lofi_session_pop_scope(session) == LOFI_OK);
    }
    EXPECT(lofi_session_pop_scope(session) == LOFI_STATE);
    lofi_session_destroy(session);
}

static void test_stats(void)
{
    lofi_session *session = NULL;
    lofi_stats stats = LOFI_STATS_INIT;

    ASSERT(lofi_session_create(&session) == LOFI_OK);
    lofi_session_count(session, LOFI_SCOPE_WORLD, -1, 100);
    ASSERT(lofi_session_event(session, LOFI_EVENT_TRAIN) == LOFI_OK);
    lofi_session_count(session, LOFI_SCOPE_NODE, -1, 0);
    lofi_session_count(session, LOFI_SCOPE_NODE, LOFI_FOR_EVALUATION, 0);
    lofi_session_count(session, LOFI_SCOPE_WORLD, LOFI_FOR_BYPASS, 7);
    lofi_session_count(session, (lofi_scope)9, 99, 3); /* not listed: world, by the phase */
    ASSERT(lofi_session_get_stats(session, &stats) == LOFI_OK);
    EXPECT(stats.phase == LOFI_PHASE_TRAIN && stats.size == sizeof stats);
    EXPECT(stats.collectives[LOFI_SCOPE_WORLD][LOFI_FOR_SETUP] == 1);
    EXPECT(stats.cross_bytes[LOFI_FOR_SETUP] == 100);
    EXPECT(stats.collectives[LOFI_SCOPE_NODE][LOFI_FOR_TRAINING] == 1);
    EXPECT(stats.collectives[LOFI_SCOPE_NODE][LOFI_FOR_EVALUATION] == 1);
    EXPECT(stats.collectives[LOFI_SCOPE_WORLD][LOFI_FOR_BYPASS] == 1);
    EXPECT(stats.cross_bytes[LOFI_FOR_BYPASS] == 7);
    EXPECT(stats.collectives[LOFI_SCOPE_WORLD][LOFI_FOR_TRAINING] == 1);
    EXPECT(stats.cross_bytes[LOFI_FOR_TRAINING] == 3);
    ASSERT(lofi_session_event(session, LOFI_EVENT_AVERAGE) == LOFI_OK);
    lofi_session_count(session, LOFI_SCOPE_WORLD, -1, 1);
    ASSERT(lofi_session_event(session, LOFI_EVENT_AVERAGE_DONE) == LOFI_OK);
    lofi_session_count(session, LOFI_SCOPE_WORLD, -1, 2);
    ASSERT(lofi_session_get_stats(session, &stats) == LOFI_OK);
    EXPECT(stats.cross_bytes[LOFI_FOR_AVERAGE] == 1 && stats.cross_bytes[LOFI_FOR_DONE] == 2);
    stats.size = 4;
    EXPECT(lofi_session_get_stats(session, &stats) == LOFI_INVALID);
    lofi_session_destroy(session);
}

#define THREADS 4
#define ROUNDS 20000

static void *count_many(void *ctx)
{
    lofi_session *session = ctx;
    for (int i = 0; i < ROUNDS; i++)
        lofi_session_count(session, lofi_session_scope(session), LOFI_FOR_TRAINING, 2);
    return NULL;
}

static void *change_much(void *ctx)
{
    lofi_session *session = ctx;
    lofi_stats stats = LOFI_STATS_INIT;

    for (int i = 0; i < ROUNDS / 10; i++) {
        lofi_session_push_scope(session, (lofi_scope)(i & 1));
        lofi_session_event(session, LOFI_EVENT_TRAIN);
        lofi_session_event(session, LOFI_EVENT_AVERAGE);
        lofi_session_event(session, LOFI_EVENT_AVERAGE_BACK);
        lofi_session_get_stats(session, &stats);
        lofi_session_pop_scope(session);
    }
    return NULL;
}

static void test_threads(void)
{
    lofi_session *session = NULL;
    lofi_stats stats = LOFI_STATS_INIT;
    pthread_t threads[THREADS + 2];

    ASSERT(lofi_session_create(&session) == LOFI_OK);
    for (int i = 0; i < THREADS + 2; i++)
        ASSERT(pthread_create(&threads[i], NULL, i < THREADS ? count_many : change_much, session) ==
               0);
    for (int i = 0; i < THREADS + 2; i++)
        pthread_join(threads[i], NULL);
    ASSERT(lofi_session_get_stats(session, &stats) == LOFI_OK);
    EXPECT(stats.collectives[0][LOFI_FOR_TRAINING] + stats.collectives[1][LOFI_FOR_TRAINING] ==
           (uint64_t)THREADS * ROUNDS);
    EXPECT(stats.cross_bytes[LOFI_FOR_TRAINING] == (uint64_t)THREADS * ROUNDS * 2);
    EXPECT(lofi_session_pop_scope(session) == LOFI_STATE); /* pushes and pops came out even */
    lofi_session_destroy(session);
}

int main(void)
{
    test_phases();
    test_evaluation();
    test_scopes();
    test_stats();
    test_threads();
    return test_end();
}
