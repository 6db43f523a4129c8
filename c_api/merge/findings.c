/* SPDX-License-Identifier: MIT */
/*
 * An input that is not finite makes the average so, and one look at the average, which is in the
 * cache, does for all inputs: they are looked at one by one only if it shows something, or if they
 * are not in it. E4M3 has no infinity: there its largest number may be
 * one, and the average is taken again in double.
 */
#include "merge/findings.h"
#include "core/mem.h"
#include "merge/mix.h"

#include <inttypes.h>
#include <string.h>

#define RUN_COUNT 256
#define LINES_MOST 10
#define E4M3_MOST 448
#define E4M3_ROUNDED 464 /* up to here 448 is the nearest */

void lofi__findings_create(struct lofi__findings *findings, const struct lofi__plan *plan)
{
    *findings = (struct lofi__findings){.plan = plan};
    pthread_mutex_init(&findings->lock, NULL);
}

void lofi__findings_clear(struct lofi__findings *findings)
{
    lofi__mem_destroy(findings->counts);
    pthread_mutex_destroy(&findings->lock);
}

static int is_finite(double value)
{
    return value - value == 0;
}

static size_t columns(const struct lofi__plan *plan)
{
    return (size_t)plan->source_count + 1;
}

lofi_status lofi__findings_add(struct lofi__findings *f, const struct lofi__job *job, int source,
                               uint64_t count)
{
    const size_t row = (size_t)(job - f->plan->jobs) * columns(f->plan);

    if (count == 0) return LOFI_OK;
    pthread_mutex_lock(&f->lock);
    if (f->counts == NULL)
        f->counts = lofi__mem_create(f->plan->job_count, columns(f->plan) * sizeof *f->counts);
    if (f->counts != NULL) f->counts[row + (size_t)source] += count;
    const int is_done = f->counts != NULL;
    pthread_mutex_unlock(&f->lock);
    return is_done ? LOFI_OK : LOFI_NO_MEMORY;
}

/* A run of numbers, of which some may be findings. */
struct run {
    struct lofi__worker *worker;
    const struct lofi__job *job;
    size_t begin, count;
    double result[RUN_COUNT];
    double numbers[RUN_COUNT];     /* of one source at a time */
    unsigned char odd[RUN_COUNT];  /* the result is not finite, or may be too large */
    unsigned char same[RUN_COUNT]; /* all that is averaged has the number that is the result */
    unsigned char bad[RUN_COUNT];  /* something that is averaged is not finite */
};

static void widen(const struct run *r, lofi_dtype dtype, const void *data, double *numbers)
{
    const char *begin = (const char *)data + r->begin * lofi_dtype_bytes(dtype);
    r->worker->kernels->begin[dtype](numbers, begin, 1.0, r->count);
}

static void widen_source(struct run *r, int source)
{
    widen(r, r->worker->dtypes[source], r->worker->data[source], r->numbers);
}

static void read_result(struct run *r, const char *out)
{
    const lofi_dtype dtype = r->job->kind->dtype;

    widen(r, dtype, out, r->result);
    for (size_t i = 0; i < r->count; i++) {
        const double x = r->result[i];
        const int is_most = dtype == LOFI_F8_E4M3 && (x == E4M3_MOST || x == -E4M3_MOST);
        r->odd[i] = is_most || !is_finite(x);
        r->same[i] = 1;
        r->bad[i] = 0;
    }
}

static void compare_sources(struct run *r)
{
    for (int s = 0; s < r->worker->plan->source_count; s++) {
        if (!r->worker->plan->mixing.is_mixed[s]) continue;
        widen_source(r, s);
        for (size_t i = 0; i < r->count; i++) {
            r->bad[i] |= !is_finite(r->numbers[i]);
            r->same[i] &= r->numbers[i] == r->result[i];
        }
    }
}

/* Counts the numbers of each source that are not finite; 0 * NaN is none of the average's. */
static lofi_status count_sources(struct run *r)
{
    lofi_status st = LOFI_OK;

    for (int s = 0; s < r->worker->plan->source_count && st == LOFI_OK; s++) {
        const int is_mixed = r->worker->plan->mixing.is_mixed[s];
        uint64_t found = 0;
        widen_source(r, s);
        for (size_t i = 0; i < r->count; i++)
            found += !is_finite(r->numbers[i]) && !(is_mixed && r->same[i]);
        st = lofi__findings_add(r->worker->findings, r->job, s, found);
    }
    return st;
}

/* Tells a result that is E4M3's largest number, and rightly so, from one that is beyond it. */
static void find_exact(struct run *r)
{
    if (r->job->kind->dtype == LOFI_F8_E4M3)
        lofi__mix_run(r->worker, LOFI_F64, r->begin, r->numbers, r->count);
    else
        memcpy(r->numbers, r->result, r->count * sizeof *r->numbers);
    for (size_t i = 0; i < r->count; i++)
        if (r->numbers[i] <= E4M3_ROUNDED && r->numbers[i] >= -E4M3_ROUNDED) r->odd[i] = 0;
}

static lofi_status count_large(struct run *r)
{
    uint64_t found = 0;

    find_exact(r);
    for (size_t i = 0; i < r->count; i++)
        found += r->odd[i] && !r->bad[i];
    return lofi__findings_add(r->worker->findings, r->job, r->worker->plan->source_count, found);
}

static lofi_status look_closely(struct lofi__worker *worker, const struct lofi__job *job,
                                const char *out, size_t count)
{
    struct run r = {.worker = worker, .job = job};
    lofi_status st = LOFI_OK;

    for (; r.begin < count && st == LOFI_OK; r.begin += RUN_COUNT) {
        r.count = count - r.begin < RUN_COUNT ? count - r.begin : RUN_COUNT;
        read_result(&r, out);
        compare_sources(&r);
        st = count_sources(&r);
        if (st == LOFI_OK) st = count_large(&r);
    }
    return st;
}

/* 1 also for E4M3's largest number. */
static int may_be_odd(const struct lofi__worker *w, lofi_dtype dtype, const char *out, size_t count)
{
    unsigned found = 0;

    if (dtype != LOFI_F8_E4M3) return w->kernels->any_nonfinite[dtype](out, count);
    for (size_t i = 0; i < count; i++)
        found |= (out[i] & 0x7fu) >= 0x7eu;
    return found != 0;
}

lofi_status lofi__findings_look(struct lofi__worker *w, const struct lofi__job *job,
                                const char *out, size_t count)
{
    int is_odd = may_be_odd(w, job->kind->dtype, out, count);

    for (int s = 0; s < w->plan->source_count && !is_odd; s++)
        if (!w->plan->mixing.is_mixed[s])
            is_odd = w->kernels->any_nonfinite[w->dtypes[s]](w->data[s], count);
    return is_odd ? look_closely(w, job, out, count) : LOFI_OK;
}

static void log_finding(const struct lofi__job *job, const lofi_finding *finding)
{
    const uint64_t numbers = job->work == LOFI__WORK_FACTOR && finding->input >= 0
                                 ? job->places[finding->input]->entry->count
                                 : job->bytes / lofi_dtype_bytes(job->kind->dtype);

    if (finding->input < 0)
        lofi_log(LOFI_LOG_WARN,
                 "%s: in the tensor '%.200s' the average is beyond the range of %s (%" PRIu64
                 " of %" PRIu64 " numbers)",
                 finding->file, finding->tensor, job->kind->name, finding->count, numbers);
    else
        lofi_log(LOFI_LOG_WARN,
                 "%s: the tensor '%.200s' has NaN or infinities (%" PRIu64 " of %" PRIu64
                 " numbers): %s",
                 finding->file, finding->tensor, finding->count, numbers,
                 finding->is_averaged ? "they spoil the average"
                                      : "they are left out of the average, with the factor 0");
}

/* The finding of a job and a source; 0: there is none. */
static int read_finding(const struct lofi__findings *f, uint64_t number, int source,
                        lofi_finding *finding)
{
    const struct lofi__plan *plan = f->plan;
    const struct lofi__job *job = &plan->jobs[number];
    const int is_large = source == plan->source_count;

    *finding = (lofi_finding){.tensor = job->places[0]->entry->name,
                              .input = is_large ? -1 : source,
                              .file = is_large ? plan->outputs[job->file].path
                                               : job->places[source]->file->path,
                              .count = f->counts[number * columns(plan) + (size_t)source],
                              .is_averaged = is_large || plan->mixing.is_mixed[source]};
    return finding->count > 0;
}

void lofi__findings_tell(const struct lofi__findings *f)
{
    const lofi_average_files_options *o = &f->plan->options;
    uint64_t told = 0;
    lofi_finding finding;

    for (uint64_t i = 0; f->counts != NULL && i < f->plan->job_count; i++)
        for (int s = 0; s < (int)columns(f->plan); s++) {
            const enum lofi__work work = f->plan->jobs[i].work;
            const int has_numbers = work == LOFI__WORK_MEAN || work == LOFI__WORK_FACTOR;
            if (!has_numbers || !read_finding(f, i, s, &finding)) continue;
            if (told++ < LINES_MOST) log_finding(&f->plan->jobs[i], &finding);
            if (o->finding != NULL) o->finding(o->ctx, &finding);
        }
    if (told > LINES_MOST)
        lofi_log(LOFI_LOG_WARN, "and %" PRIu64 " more of the kind", told - LINES_MOST);
}
