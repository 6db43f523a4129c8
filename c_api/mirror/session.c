/* SPDX-License-Identifier: MIT */
/*
 * The state of one process: its phase, the scopes in force, its counters.
 *
 * Collectives are issued from the thread that drives training, from autograd's threads and from
 * data loaders, and each asks for the scope; so what they read is atomic and takes no lock. The
 * few writers (phases, scopes) take a mutex, because they change two things at once. A mutex
 * around everything would be simpler and would put a lock into every collective.
 *
 * Relaxed order is enough: the values stand for themselves and publish no other memory.
 */
#include "core/mem.h"
#include "core/options.h"
#include "lofi.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define SCOPE_DEPTH 64
#define NO_SCOPE (-1)

struct lofi_session {
    pthread_mutex_t lock; /* for writers of the phase and the scopes */
    atomic_int phase;
    lofi_phase before; /* the phase that an average, or an evaluation, interrupts */
    atomic_int pushed; /* the innermost pushed scope, or NO_SCOPE */
    int depth;
    lofi_scope scopes[SCOPE_DEPTH];
    atomic_uint_fast64_t collectives[2][LOFI_PURPOSE_COUNT];
    atomic_uint_fast64_t cross_bytes[LOFI_PURPOSE_COUNT];
};

static const char *const event_names[] = {
    [LOFI_EVENT_TRAIN] = "training",
    [LOFI_EVENT_AVERAGE] = "an average",
    [LOFI_EVENT_AVERAGE_BACK] = "the end of an average",
    [LOFI_EVENT_AVERAGE_DONE] = "the end of the final average",
    [LOFI_EVENT_EVALUATE] = "an evaluation",
};

static const lofi_purpose purpose_of_phase[] = {
    [LOFI_PHASE_SETUP] = LOFI_FOR_SETUP,         [LOFI_PHASE_TRAIN] = LOFI_FOR_TRAINING,
    [LOFI_PHASE_AVERAGE] = LOFI_FOR_AVERAGE,     [LOFI_PHASE_DONE] = LOFI_FOR_DONE,
    [LOFI_PHASE_EVALUATE] = LOFI_FOR_EVALUATION,
};

lofi_status lofi_session_create(lofi_session **out)
{
    if (out == NULL) {
        lofi_set_error("lofi_session_create needs a place for the result: it is NULL");
        return LOFI_INVALID;
    }
    lofi_session *session = lofi__mem_create(1, sizeof *session);
    if (session == NULL) return LOFI_NO_MEMORY;

    int error = pthread_mutex_init(&session->lock, NULL);
    if (error != 0) {
        lofi_set_error("the lock of a session can't be made: %s", strerror(error));
        lofi__mem_destroy(session);
        return LOFI_SYSTEM;
    }
    atomic_init(&session->phase, LOFI_PHASE_SETUP);
    atomic_init(&session->pushed, NO_SCOPE);
    for (int purpose = 0; purpose < LOFI_PURPOSE_COUNT; purpose++) {
        atomic_init(&session->collectives[LOFI_SCOPE_WORLD][purpose], 0);
        atomic_init(&session->collectives[LOFI_SCOPE_NODE][purpose], 0);
        atomic_init(&session->cross_bytes[purpose], 0);
    }
    *out = session;
    return LOFI_OK;
}

void lofi_session_destroy(lofi_session *session)
{
    if (session == NULL) return;
    pthread_mutex_destroy(&session->lock);
    lofi__mem_destroy(session);
}

lofi_phase lofi_session_phase(const lofi_session *session)
{
    return (lofi_phase)atomic_load_explicit(&session->phase, memory_order_relaxed);
}

static void enter(lofi_session *session, lofi_phase phase)
{
    atomic_store_explicit(&session->phase, (int)phase, memory_order_relaxed);
}

/* With the lock held. 1 if the phase allows the event. */
static int apply_event(lofi_session *session, lofi_event event)
{
    lofi_phase phase = lofi_session_phase(session);
    int is_averaging = phase == LOFI_PHASE_AVERAGE;
    int is_evaluating = phase == LOFI_PHASE_EVALUATE;
    int is_between = is_averaging || is_evaluating; /* own weights are to come back, or not */

    switch (event) {
    case LOFI_EVENT_TRAIN:
        if (!is_between) enter(session, LOFI_PHASE_TRAIN);
        return 1;
    case LOFI_EVENT_AVERAGE:
        if (is_averaging) return 0;
        if (!is_evaluating) session->before = phase;
        enter(session, LOFI_PHASE_AVERAGE);
        return 1;
    case LOFI_EVENT_AVERAGE_BACK:
        if (is_between) enter(session, session->before);
        return is_between;
    case LOFI_EVENT_AVERAGE_DONE:
        if (is_between) enter(session, LOFI_PHASE_DONE);
        return is_between;
    case LOFI_EVENT_EVALUATE:
        if (is_averaging) enter(session, LOFI_PHASE_EVALUATE);
        return is_averaging;
    }
    return 0;
}

lofi_status lofi_session_event(lofi_session *session, lofi_event event)
{
    if ((int)event < 0 || event > LOFI_EVENT_EVALUATE) {
        lofi_set_error("event is %d: lofi.h lists the values 0 to %d", (int)event,
                       LOFI_EVENT_EVALUATE);
        return LOFI_INVALID;
    }
    pthread_mutex_lock(&session->lock);
    lofi_phase phase = lofi_session_phase(session);
    int is_allowed = apply_event(session, event);
    pthread_mutex_unlock(&session->lock);

    if (is_allowed) return LOFI_OK;
    lofi_set_error("%s is not possible in phase %s: an average begins outside of another one, and "
                   "ends once",
                   event_names[event], lofi_phase_name(phase));
    return LOFI_STATE;
}

lofi_scope lofi_session_scope(const lofi_session *session)
{
    int pushed = atomic_load_explicit(&session->pushed, memory_order_relaxed);

    if (pushed != NO_SCOPE) return (lofi_scope)pushed;
    return lofi_session_phase(session) == LOFI_PHASE_TRAIN ? LOFI_SCOPE_NODE : LOFI_SCOPE_WORLD;
}

lofi_status lofi_session_push_scope(lofi_session *session, lofi_scope scope)
{
    lofi_status st = LOFI_OK;

    if (scope != LOFI_SCOPE_WORLD && scope != LOFI_SCOPE_NODE) {
        lofi_set_error("scope is %d: lofi.h lists the values 0 and 1", (int)scope);
        return LOFI_INVALID;
    }
    pthread_mutex_lock(&session->lock);
    if (session->depth < SCOPE_DEPTH) {
        session->scopes[session->depth++] = scope;
        atomic_store_explicit(&session->pushed, (int)scope, memory_order_relaxed);
    } else {
        lofi_set_error("scopes are %d deep already: is one pushed in a loop and never popped?",
                       SCOPE_DEPTH);
        st = LOFI_STATE;
    }
    pthread_mutex_unlock(&session->lock);
    return st;
}

lofi_status lofi_session_pop_scope(lofi_session *session)
{
    lofi_status st = LOFI_OK;

    pthread_mutex_lock(&session->lock);
    if (session->depth > 0) {
        session->depth--;
        int outer = session->depth > 0 ? (int)session->scopes[session->depth - 1] : NO_SCOPE;
        atomic_store_explicit(&session->pushed, outer, memory_order_relaxed);
    } else {
        lofi_set_error("there is no scope to pop: each pop belongs to one push");
        st = LOFI_STATE;
    }
    pthread_mutex_unlock(&session->lock);
    return st;
}

void lofi_session_count(lofi_session *session, lofi_scope scope, int purpose, uint64_t cross_bytes)
{
    /* Values that are not listed are counted by the phase and the world, never dropped: a byte
     * that crossed must not be missing from the statistics. */
    int row = scope == LOFI_SCOPE_NODE ? LOFI_SCOPE_NODE : LOFI_SCOPE_WORLD;
    if (purpose < 0 || purpose >= LOFI_PURPOSE_COUNT)
        purpose = (int)purpose_of_phase[lofi_session_phase(session)];

    atomic_fetch_add_explicit(&session->collectives[row][purpose], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&session->cross_bytes[purpose], cross_bytes, memory_order_relaxed);
}

lofi_status lofi_session_get_stats(const lofi_session *session, lofi_stats *stats)
{
    lofi_stats full = LOFI_STATS_INIT;

    full.phase = lofi_session_phase(session);
    for (int purpose = 0; purpose < LOFI_PURPOSE_COUNT; purpose++) {
        for (int scope = 0; scope < 2; scope++)
            full.collectives[scope][purpose] =
                atomic_load_explicit(&session->collectives[scope][purpose], memory_order_relaxed);
        full.cross_bytes[purpose] =
            atomic_load_explicit(&session->cross_bytes[purpose], memory_order_relaxed);
    }
    return lofi__options_write(stats, &full, sizeof full, "LOFI_STATS_INIT");
}
