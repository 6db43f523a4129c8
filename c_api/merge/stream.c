/* SPDX-License-Identifier: MIT */
/*
 * Threads take the next block of the next tensor, one after the other, until there is none.
 *
 * Blocks are numbered by a cursor under a lock: one short turn for each few MiB. Tensors are not
 * given to threads as a whole (one large embedding would keep one thread busy at the end), nor
 * are blocks dealt out beforehand (threads of a shared machine are not equally fast). Each number
 * of the output has its own result, so that who computes it does not matter.
 */
#define _GNU_SOURCE
#include "merge/stream.h"
#include "core/error.h"
#include "core/mem.h"
#include "core/thread.h"
#include "merge/block.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#define WORKERS_BYTES ((size_t)48 << 20) /* of the buffers of all threads */
#define THREADS_MOST 256

struct stream {
    const struct lofi__plan *plan;
    const struct lofi__stream_options *options;
    uint64_t total_bytes;
    pthread_mutex_t lock; /* of all below */
    uint64_t job, begin;  /* the next block */
    uint64_t done_bytes;
    lofi_status status;
    char error[LOFI__ERROR_BYTES];
};

static int cpu_count(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    return CPU_COUNT(&set);
}

int lofi__stream_threads(const struct lofi__plan *plan)
{
    const size_t fitting = WORKERS_BYTES / lofi__worker_bytes(plan);
    int threads = plan->options.threads > 0 ? plan->options.threads : cpu_count();
    if (threads > THREADS_MOST) threads = THREADS_MOST;
    if ((size_t)threads > fitting) threads = (int)fitting;
    return threads > 0 ? threads : 1;
}

static uint64_t job_bytes(const struct lofi__plan *plan, const struct lofi__job *job)
{
    uint64_t bytes = 0;
    for (int s = 0; s < lofi__job_sources(plan, job); s++)
        bytes += job->places[s]->entry->bytes;
    return bytes;
}

uint64_t lofi__stream_bytes(const struct lofi__plan *plan)
{
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < plan->job_count; i++)
        bytes += job_bytes(plan, &plan->jobs[i]);
    return bytes;
}

/* Takes the next block. 0: there is none any more, or a thread has failed. */
static int take_block(struct stream *stream, struct lofi__block *block)
{
    const struct lofi__plan *plan = stream->plan;
    int is_taken = 0;

    pthread_mutex_lock(&stream->lock);
    while (stream->status == LOFI_OK && !is_taken && stream->job < plan->job_count) {
        const struct lofi__job *job = &plan->jobs[stream->job];
        const uint64_t left = lofi__job_numbers(job) - stream->begin;
        if (left > 0) {
            const uint64_t most = lofi__job_block(plan, job);
            *block = (struct lofi__block){job, stream->begin, left < most ? left : most};
            stream->begin += block->count;
            is_taken = 1;
        } else {
            stream->job++;
            stream->begin = 0;
        }
    }
    pthread_mutex_unlock(&stream->lock);
    return is_taken;
}

/* Counts a block, or keeps the first failure. Returns the bytes done so far. */
static uint64_t note(struct stream *stream, const struct lofi__block *block, lofi_status st)
{
    pthread_mutex_lock(&stream->lock);
    if (st == LOFI_OK) {
        const uint64_t numbers = lofi__job_numbers(block->job);
        const double part = (double)block->count / (double)numbers;
        stream->done_bytes += (uint64_t)(part * (double)job_bytes(stream->plan, block->job));
    } else if (stream->status == LOFI_OK) {
        stream->status = st;
        snprintf(stream->error, sizeof stream->error, "%s", lofi_last_error());
    }
    const uint64_t done = stream->done_bytes;
    pthread_mutex_unlock(&stream->lock);
    return done;
}

static lofi_status report(const struct stream *stream, uint64_t done)
{
    const lofi_average_files_options *o = &stream->plan->options;
    if (o->progress == NULL || o->progress(o->ctx, done, stream->total_bytes) == 0) return LOFI_OK;
    lofi_set_error("the average was interrupted");
    return LOFI_STATE;
}

static void work(struct stream *stream, int is_caller)
{
    const int is_check = stream->options->is_check;
    struct lofi__block block = {0};
    struct lofi__worker worker;

    lofi_status st = lofi__worker_create(&worker, stream->plan,
                                         is_check ? &lofi__kernels_scalar : lofi__kernels_get());
    worker.findings = stream->options->findings;
    if (st != LOFI_OK) note(stream, &block, st);
    while (st == LOFI_OK && take_block(stream, &block)) {
        st = lofi__block_run(&worker, &block, stream->options->fds[block.job->file], is_check);
        const uint64_t done = note(stream, &block, st);
        if (st != LOFI_OK || !is_caller) continue;
        st = report(stream, done);
        if (st != LOFI_OK) note(stream, &block, st);
    }
    lofi__worker_clear(&worker);
}

static void *run_thread(void *argument)
{
    work(argument, 0);
    return NULL;
}

static int start_threads(struct stream *stream, pthread_t *threads, int count)
{
    int started = 0;

    while (started < count && lofi__thread_create(&threads[started], run_thread, stream) == 0)
        started++; /* fewer of them do it as well */
    return started;
}

lofi_status lofi__stream_run(const struct lofi__plan *plan,
                             const struct lofi__stream_options *options)
{
    struct stream stream = {.plan = plan, .options = options, .status = LOFI_OK};
    pthread_t *threads = lofi__mem_create((size_t)options->threads, sizeof *threads);

    if (threads == NULL) return LOFI_NO_MEMORY;
    stream.total_bytes = lofi__stream_bytes(plan);
    stream.done_bytes = options->done_bytes;
    pthread_mutex_init(&stream.lock, NULL);
    const int started = start_threads(&stream, threads, options->threads - 1);
    work(&stream, 1);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&stream.lock);
    lofi__mem_destroy(threads);
    if (stream.status != LOFI_OK) lofi_set_error("%s", stream.error);
    return stream.status == LOFI_OK ? report(&stream, stream.total_bytes) : stream.status;
}
