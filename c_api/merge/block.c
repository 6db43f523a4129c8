/* SPDX-License-Identifier: MIT */
/*
 * A block is worked off in steps whose inputs fit the second cache together: read from each
 * source, average, write. Memory sees each input once, and the page cache the output once.
 *
 * Writing through a mapping of the output was slower: its pages are faulted in one by one.
 */
#define _GNU_SOURCE
#include "merge/block.h"
#include "ckpt/path.h"
#include "core/mem.h"
#include "merge/findings.h"
#include "merge/mix.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)8 << 20)
#define STEP_MOST ((size_t)128 << 10) /* of one buffer */
#define STEP_LEAST ((size_t)8 << 10)
#define STEP_ALL ((size_t)640 << 10) /* of the buffers of all sources, if they are not many */
#define NAN_COUNT 256

static size_t buffer_bytes(const struct lofi__plan *plan)
{
    const size_t share = STEP_ALL / (size_t)plan->source_count / 4096 * 4096;
    if (share < STEP_LEAST) return STEP_LEAST;
    return share < STEP_MOST ? share : STEP_MOST;
}

size_t lofi__worker_bytes(const struct lofi__plan *plan)
{
    return buffer_bytes(plan) * ((size_t)plan->source_count + 2);
}

lofi_status lofi__worker_create(struct lofi__worker *worker, const struct lofi__plan *plan,
                                const struct lofi__kernels *kernels)
{
    const size_t sources = (size_t)plan->source_count;

    *worker = (struct lofi__worker){.plan = plan, .kernels = kernels};
    worker->buffer_bytes = buffer_bytes(plan);
    worker->memory = lofi__mem_create(sources + 2, worker->buffer_bytes);
    worker->dtypes = lofi__mem_create(sources, sizeof *worker->dtypes);
    worker->data = lofi__mem_create(sources, sizeof *worker->data);
    worker->mixed_dtypes = lofi__mem_create(sources, sizeof *worker->mixed_dtypes);
    worker->mixed = lofi__mem_create(sources, sizeof *worker->mixed);
    const int is_done = worker->memory != NULL && worker->dtypes != NULL && worker->data != NULL &&
                        worker->mixed_dtypes != NULL && worker->mixed != NULL;
    return is_done ? LOFI_OK : LOFI_NO_MEMORY;
}

void lofi__worker_clear(struct lofi__worker *worker)
{
    lofi__mem_destroy(worker->memory);
    lofi__mem_destroy(worker->dtypes);
    lofi__mem_destroy(worker->data);
    lofi__mem_destroy(worker->mixed_dtypes);
    lofi__mem_destroy(worker->mixed);
}

/* Bytes of a number in source `s`, or, for s < 0, in the output. */
static size_t number_bytes(const struct lofi__job *job, int s)
{
    if (job->work != LOFI__WORK_MEAN) return 1;
    return lofi_dtype_bytes(s < 0 ? job->kind->dtype : job->places[s]->entry->kind->dtype);
}

static size_t largest_bytes(const struct lofi__plan *plan, const struct lofi__job *job)
{
    size_t largest = number_bytes(job, -1);
    for (int s = 0; s < lofi__job_sources(plan, job); s++)
        if (number_bytes(job, s) > largest) largest = number_bytes(job, s);
    return largest;
}

uint64_t lofi__job_numbers(const struct lofi__job *job)
{
    return job->work == LOFI__WORK_FACTOR ? 0 : job->bytes / number_bytes(job, -1);
}

uint64_t lofi__job_block(const struct lofi__plan *plan, const struct lofi__job *job)
{
    return BLOCK_BYTES / largest_bytes(plan, job);
}

int lofi__job_sources(const struct lofi__plan *plan, const struct lofi__job *job)
{
    return job->work == LOFI__WORK_COPY ? 1 : plan->source_count;
}

static char *buffer(const struct lofi__worker *worker, int number)
{
    return worker->memory + (size_t)number * worker->buffer_bytes;
}

static lofi_status read_sources(struct lofi__worker *w, const struct lofi__job *job, uint64_t begin,
                                size_t count)
{
    lofi_status st = LOFI_OK;
    for (int s = 0; s < lofi__job_sources(w->plan, job) && st == LOFI_OK; s++) {
        const size_t each = number_bytes(job, s);
        const uint64_t from = lofi__place_begin(job->places[s]) + begin * each;
        st = lofi__file_read(job->places[s]->file, from, buffer(w, s), count * each);
        w->data[s] = buffer(w, s);
        w->dtypes[s] = job->places[s]->entry->kind->dtype;
    }
    return st;
}

static lofi_status check_same(const struct lofi__worker *w, const struct lofi__job *job,
                              size_t count)
{
    const struct lofi__place *first = job->places[0];
    for (int s = 1; s < lofi__job_sources(w->plan, job); s++) {
        if (memcmp(w->data[0], w->data[s], count) == 0) continue;
        const char *why = job->kind->class == LOFI__KIND_EXACT
                              ? "is not averaged: take the first input's (--int first; in Python "
                                "integers=\"first\"), or skip it"
                              : "is not averaged: convert it, or skip it";
        lofi_set_error("the tensor '%.200s' is not the same in %s and in %s, and %s %s",
                       first->entry->name, first->file->path, job->places[s]->file->path,
                       job->kind->name, why);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

/* A NaN is as good as another: the sums of different kernels may keep another one. */
static int are_equal(const struct lofi__worker *w, const struct lofi__job *job, const char *a,
                     const char *b, size_t count)
{
    const size_t each = number_bytes(job, -1);
    double x[NAN_COUNT], y[NAN_COUNT];

    if (memcmp(a, b, count * each) == 0) return 1;
    if (job->work != LOFI__WORK_MEAN) return 0;
    for (size_t begin = 0; begin < count; begin += NAN_COUNT) {
        const size_t n = count - begin < NAN_COUNT ? count - begin : NAN_COUNT;
        const char *left = a + begin * each, *right = b + begin * each;
        w->kernels->begin[job->kind->dtype](x, left, 1.0, n);
        w->kernels->begin[job->kind->dtype](y, right, 1.0, n);
        for (size_t i = 0; i < n; i++) {
            const int are_nan = x[i] != x[i] && y[i] != y[i];
            if (!are_nan && memcmp(left + i * each, right + i * each, each) != 0) return 0;
        }
    }
    return 1;
}

static lofi_status check_output(const struct lofi__worker *w, const struct lofi__job *job,
                                const char *out, size_t count, int fd, uint64_t offset)
{
    const struct lofi__output *output = &w->plan->outputs[job->file];
    const size_t bytes = count * number_bytes(job, -1);
    char *found = buffer(w, w->plan->source_count + 1);
    size_t got = 0;

    while (got < bytes) {
        const ssize_t n = pread(fd, found + got, bytes - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return lofi__path_failed(output->path, "can't be read again");
        if (n == 0) break;
        got += (size_t)n;
    }
    if (got == bytes && are_equal(w, job, out, found, count)) return LOFI_OK;
    lofi_set_error("%s: the tensor '%.200s' is not what was to be written: the disk, the memory or "
                   "an input is not to be trusted",
                   output->path, job->places[0]->entry->name);
    return LOFI_CORRUPT;
}

static lofi_status run_step(struct lofi__worker *w, const struct lofi__job *job, uint64_t begin,
                            size_t count, int fd, int is_check)
{
    const struct lofi__output *output = &w->plan->outputs[job->file];
    const size_t each = number_bytes(job, -1);
    const uint64_t offset = output->header_bytes + job->begin + begin * each;
    char *out = buffer(w, job->work == LOFI__WORK_MEAN ? w->plan->source_count : 0);

    lofi_status st = read_sources(w, job, begin, count);
    if (st == LOFI_OK && job->work == LOFI__WORK_SAME) st = check_same(w, job, count);
    if (st != LOFI_OK) return st;
    if (job->work == LOFI__WORK_MEAN) lofi__mix_run(w, job->kind->dtype, 0, out, count);
    if (is_check) return check_output(w, job, out, count, fd, offset);
    if (job->work == LOFI__WORK_MEAN) st = lofi__findings_look(w, job, out, count);
    if (st != LOFI_OK) return st;
    return lofi__file_write(fd, output->path, out, count * each, offset);
}

/* Asks for what comes, so that the disk is busy with all sources at once. */
static void read_ahead(const struct lofi__worker *w, const struct lofi__block *block)
{
    for (int s = 0; s < lofi__job_sources(w->plan, block->job); s++) {
        const struct lofi__place *place = block->job->places[s];
        const size_t each = number_bytes(block->job, s);
        posix_fadvise(place->file->fd, (off_t)(lofi__place_begin(place) + block->begin * each),
                      (off_t)(block->count * each), POSIX_FADV_WILLNEED);
    }
}

lofi_status lofi__block_run(struct lofi__worker *worker, const struct lofi__block *block, int fd,
                            int is_check)
{
    const size_t step = worker->buffer_bytes / largest_bytes(worker->plan, block->job);

    read_ahead(worker, block);
    for (uint64_t done = 0; done < block->count; done += step) {
        const uint64_t left = block->count - done;
        lofi_status st = run_step(worker, block->job, block->begin + done,
                                  left < step ? (size_t)left : step, fd, is_check);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}
