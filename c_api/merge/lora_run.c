/* SPDX-License-Identifier: MIT */
/*
 * Threads take the modules of an average of products, one after the other. A module is not cut
 * into blocks: each number of its result depends on all of its inputs, and there are many modules.
 */
#define _GNU_SOURCE
#include "core/error.h"
#include "core/mem.h"
#include "core/thread.h"
#include "merge/lora_module.h"

#include <math.h>
#include <stdio.h>

#define MEMORY_MOST ((uint64_t)1 << 30) /* of the factors of all threads, if one has room */
#define THREADS_MOST 64

struct run {
    const struct lofi__plan *plan;
    const struct lofi__job **jobs; /* by their order */
    const struct lofi__stream_options *stream;
    pthread_mutex_t lock; /* of all below */
    uint64_t next;        /* module */
    uint64_t done_bytes;
    double lost, square; /* of all products */
    double worst;
    const struct lofi__lora_module *worst_module;
    lofi_status status;
    char error[LOFI__ERROR_BYTES];
};

static uint64_t bytes_of(const struct lofi__plan *plan, const struct lofi__lora_module *m)
{
    uint64_t bytes = 0;
    for (int s = 0; s < plan->source_count; s++)
        bytes += m->places_a[s]->entry->bytes + m->places_b[s]->entry->bytes;
    return bytes;
}

static const struct lofi__lora_module *take(struct run *run)
{
    const struct lofi__lora *lora = run->plan->lora;

    pthread_mutex_lock(&run->lock);
    const int is_taken = run->status == LOFI_OK && run->next < lora->module_count;
    const struct lofi__lora_module *m = is_taken ? &lora->modules[run->next++] : NULL;
    pthread_mutex_unlock(&run->lock);
    return m;
}

static void note_failure(struct run *run, lofi_status st)
{
    pthread_mutex_lock(&run->lock);
    if (run->status == LOFI_OK) {
        run->status = st;
        snprintf(run->error, sizeof run->error, "%s", lofi_last_error());
    }
    pthread_mutex_unlock(&run->lock);
}

/* A part of nothing is nothing. */
static double root_of(double lost, double square)
{
    return square > 0 ? sqrt(lost / square) : 0;
}

/* Returns the bytes read so far. */
static uint64_t note(struct run *run, const struct lofi__lora_module *m, double square, double lost)
{
    const double part = root_of(lost, square);

    pthread_mutex_lock(&run->lock);
    run->square += square;
    run->lost += lost;
    const int is_first = part == run->worst && part > 0 && m < run->worst_module;
    if (part > run->worst || part != part || is_first) {
        run->worst = part;
        run->worst_module = m; /* of equal ones the first, whichever thread was faster */
    }
    run->done_bytes += bytes_of(run->plan, m);
    const uint64_t done = run->done_bytes;
    pthread_mutex_unlock(&run->lock);
    return done;
}

static lofi_status report(const struct run *run, uint64_t done)
{
    const lofi_average_files_options *o = &run->plan->options;
    if (o->progress == NULL || o->progress(o->ctx, done, lofi__stream_bytes(run->plan)) == 0)
        return LOFI_OK;
    lofi_set_error("the average was interrupted");
    return LOFI_STATE;
}

static void work(struct run *run, int is_caller)
{
    const struct lofi__lora_module *m;
    double square = 0, lost = 0;
    struct lofi__stepper stepper = {.plan = run->plan,
                                    .stream = run->stream,
                                    .kernels = run->stream->is_check ? &lofi__kernels_scalar
                                                                     : lofi__kernels_get(),
                                    .jobs = run->jobs};

    lofi_status st = lofi__stepper_create(&stepper);
    while (st == LOFI_OK && (m = take(run)) != NULL) {
        st = lofi__lora_module_run(&stepper, m, &square, &lost);
        if (st != LOFI_OK) break;
        const uint64_t done = note(run, m, square, lost);
        if (is_caller) st = report(run, done);
    }
    if (st != LOFI_OK) note_failure(run, st);
    lofi__stepper_clear(&stepper);
}

static void *run_thread(void *argument)
{
    work(argument, 0);
    return NULL;
}

/* As many as have room for the largest module. */
static int count_threads(const struct lofi__plan *plan, int threads)
{
    uint64_t largest = 1;

    for (uint64_t i = 0; i < plan->lora->module_count; i++) {
        const struct lofi__lora_module *m = &plan->lora->modules[i];
        const double numbers = (double)(m->rows + m->columns) *
                               ((double)lofi__lora_whole_rank(plan, m) + 4 * (double)m->rank);
        if (numbers * sizeof(double) > (double)largest)
            largest = numbers < 1e17 ? (uint64_t)(numbers * sizeof(double)) : MEMORY_MOST;
    }
    if (threads > THREADS_MOST) threads = THREADS_MOST;
    if ((uint64_t)threads > MEMORY_MOST / largest) threads = (int)(MEMORY_MOST / largest);
    return threads > 0 ? threads : 1;
}

static lofi_status list_jobs(struct run *run)
{
    run->jobs = lofi__mem_create(run->plan->job_count, sizeof *run->jobs);
    if (run->jobs == NULL) return LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < run->plan->job_count; i++)
        run->jobs[run->plan->jobs[i].order] = &run->plan->jobs[i];
    return LOFI_OK;
}

static void run_threads(struct run *run, int count)
{
    pthread_t threads[THREADS_MOST];
    int started = 0;

    while (started < count - 1 && lofi__thread_create(&threads[started], run_thread, run) == 0)
        started++; /* fewer of them do it as well */
    work(run, 1);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
}

lofi_status lofi__lora_run(const struct lofi__plan *plan,
                           const struct lofi__stream_options *options,
                           struct lofi__lora_error *error)
{
    struct run run = {.plan = plan, .stream = options};

    lofi_status st = list_jobs(&run);
    if (st != LOFI_OK) return st;
    pthread_mutex_init(&run.lock, NULL);
    run_threads(&run, count_threads(plan, options->threads));
    pthread_mutex_destroy(&run.lock);
    lofi__mem_destroy(run.jobs);
    if (run.status != LOFI_OK) lofi_set_error("%s", run.error);
    if (error != NULL)
        *error = (struct lofi__lora_error){
            .worst = run.worst,
            .whole = root_of(run.lost, run.square),
            .worst_name =
                run.worst_module != NULL ? run.worst_module->places_a[0]->entry->name : NULL};
    return run.status;
}
