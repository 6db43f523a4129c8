/* SPDX-License-Identifier: MIT */
/*
 * A module is read from all sources into doubles, reduced if a rank is asked for, rounded, written.
 * What reduction and rounding lose is measured by the factors, without the product.
 */
#define _GNU_SOURCE
#include "merge/lora_module.h"
#include "ckpt/path.h"
#include "core/mem.h"
#include "lora/factors.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define STEP_COUNT ((size_t)16 << 10) /* numbers that are read or written at once */

static size_t step_count(const struct lofi__plan *plan)
{
    size_t count = STEP_COUNT; /* at least one row of the widest B */

    for (uint64_t i = 0; i < plan->lora->module_count; i++) {
        const struct lofi__lora_module *m = &plan->lora->modules[i];
        if (m->rank > count) count = m->rank;
        for (int s = 0; s < plan->source_count; s++)
            if (m->places_a[s]->entry->shape[0] > count) count = m->places_a[s]->entry->shape[0];
    }
    return count;
}

lofi_status lofi__stepper_create(struct lofi__stepper *s)
{
    s->count = step_count(s->plan);
    s->raw = lofi__mem_create(s->count, sizeof(double));
    s->found = lofi__mem_create(s->count, sizeof(double));
    s->numbers = lofi__mem_create(s->count, sizeof(double));
    return s->raw != NULL && s->found != NULL && s->numbers != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

void lofi__stepper_clear(struct lofi__stepper *s)
{
    lofi__mem_destroy(s->raw);
    lofi__mem_destroy(s->found);
    lofi__mem_destroy(s->numbers);
}

static size_t least(uint64_t a, uint64_t b)
{
    return (size_t)(a < b ? a : b);
}

static uint64_t count_odd(const double *numbers, size_t count)
{
    uint64_t found = 0;
    for (size_t i = 0; i < count; i++)
        found += !(numbers[i] - numbers[i] == 0);
    return found;
}

/* Notes numbers that are not finite: of a source, or, with `source_count`, of the output only. */
static lofi_status note_odd(const struct lofi__stepper *s, const struct lofi__job *job, int source,
                            uint64_t count)
{
    struct lofi__findings *findings = s->stream->findings;
    if (findings == NULL || s->stream->is_check) return LOFI_OK;
    return lofi__findings_add(findings, job, source, count);
}

/* Reads numbers of a source's tensor from number `begin` on, times `factor`. */
static lofi_status read_numbers(const struct lofi__stepper *s, const struct lofi__job *job,
                                int source, uint64_t begin, double factor, double *out,
                                size_t count)
{
    const struct lofi__place *place = job->places[source];
    const lofi_dtype dtype = place->entry->kind->dtype;
    const size_t each = lofi_dtype_bytes(dtype);
    lofi_status st =
        lofi__file_read(place->file, lofi__place_begin(place) + begin * each, s->raw, count * each);

    if (st != LOFI_OK) return st;
    s->kernels->begin[dtype](out, s->raw, factor, count);
    return note_odd(s, job, source, count_odd(out, count));
}

/* The rows of A are read where they are to be. */
static lofi_status read_a(const struct lofi__stepper *s, const struct lofi__job *job, int source,
                          double *to)
{
    const uint64_t total = job->places[source]->entry->count;
    lofi_status st = LOFI_OK;

    for (uint64_t begin = 0; begin < total && st == LOFI_OK; begin += s->count)
        st = read_numbers(s, job, source, begin, 1.0, to + begin, least(s->count, total - begin));
    return st;
}

/* Columns of B, which lies row by row, are added to what is there. */
static lofi_status add_b(const struct lofi__stepper *s, const struct lofi__job *job, int source,
                         double factor, double *to, size_t rows)
{
    const size_t rank = (size_t)job->places[source]->entry->shape[1];
    const size_t step = s->count / rank;

    for (size_t begin = 0; begin < rows; begin += step) {
        const size_t count = least(step, rows - begin);
        lofi_status st =
            read_numbers(s, job, source, begin * rank, factor, s->numbers, count * rank);
        if (st != LOFI_OK) return st;
        for (size_t i = 0; i < rank; i++)
            for (size_t row = 0; row < count; row++)
                to[i * rows + begin + row] += s->numbers[row * rank + i];
    }
    return LOFI_OK;
}

static uint64_t rank_of(const struct lofi__lora_module *m, int source)
{
    return m->places_a[source]->entry->shape[0];
}

uint64_t lofi__lora_whole_rank(const struct lofi__plan *plan, const struct lofi__lora_module *m)
{
    uint64_t rank = 0;

    if (plan->lora->is_shared) return rank_of(m, 0);
    for (int s = 0; s < plan->source_count; s++)
        if (m->shares[s] != 0) rank += rank_of(m, s);
    return rank;
}

/* Puts the factors of the sources beside each other; of a common A, the B onto each other. */
static lofi_status gather(const struct lofi__stepper *s, const struct lofi__lora_module *m,
                          struct lofi__factors *whole)
{
    const struct lofi__plan *plan = s->plan;
    lofi_status st = LOFI_OK;
    size_t at = 0;

    for (int i = 0; i < plan->source_count && st == LOFI_OK; i++) {
        if (m->shares[i] == 0 && !(plan->lora->is_shared && i == 0)) continue;
        if (i == 0 || !plan->lora->is_shared)
            st = read_a(s, s->jobs[m->a], i, whole->a + at * whole->columns);
        if (st == LOFI_OK)
            st = add_b(s, s->jobs[m->b], i, m->shares[i], whole->b + at * whole->rows, whole->rows);
        if (!plan->lora->is_shared) at += (size_t)rank_of(m, i);
    }
    return st;
}

static lofi_status compare(const struct lofi__stepper *s, const struct lofi__job *job,
                           uint64_t offset, size_t bytes)
{
    const char *path = s->plan->outputs[job->file].path;
    size_t got = 0;

    while (got < bytes) {
        const ssize_t n =
            pread(s->stream->fds[job->file], s->found + got, bytes - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return lofi__path_failed(path, "can't be read again");
        if (n == 0) break;
        got += (size_t)n;
    }
    if (got == bytes && memcmp(s->found, s->raw, bytes) == 0) return LOFI_OK;
    lofi_set_error("%s: the tensor '%.200s' is not what was to be written: the disk, the memory or "
                   "an input is not to be trusted",
                   path, job->places[0]->entry->name);
    return LOFI_CORRUPT;
}

/* Writes numbers, rounded to the output's dtype, from number `begin` on; they become what they are
 * rounded to. */
static lofi_status write_numbers(const struct lofi__stepper *s, const struct lofi__job *job,
                                 uint64_t begin, double *numbers, size_t count)
{
    const struct lofi__output *output = &s->plan->outputs[job->file];
    const lofi_dtype dtype = job->kind->dtype;
    const size_t each = lofi_dtype_bytes(dtype);
    const uint64_t offset = output->header_bytes + job->begin + begin * each;

    const uint64_t odd = count_odd(numbers, count);
    s->kernels->narrow[dtype](s->raw, numbers, count);
    s->kernels->begin[dtype](numbers, s->raw, 1.0, count);
    const uint64_t now = count_odd(numbers, count);
    lofi_status st = note_odd(s, job, s->plan->source_count, now > odd ? now - odd : 0);
    if (st != LOFI_OK) return st;
    if (s->stream->is_check) return compare(s, job, offset, count * each);
    return lofi__file_write(s->stream->fds[job->file], output->path, s->raw, count * each, offset);
}

static lofi_status write_a(const struct lofi__stepper *s, const struct lofi__job *job,
                           struct lofi__factors *f)
{
    const uint64_t total = (uint64_t)f->columns * f->rank;
    lofi_status st = LOFI_OK;

    for (uint64_t begin = 0; begin < total && st == LOFI_OK; begin += s->count)
        st = write_numbers(s, job, begin, f->a + begin, least(s->count, total - begin));
    return st;
}

static lofi_status write_b(const struct lofi__stepper *s, const struct lofi__job *job,
                           struct lofi__factors *f)
{
    const size_t step = s->count / f->rank;
    lofi_status st = LOFI_OK;

    for (size_t begin = 0; begin < f->rows && st == LOFI_OK; begin += step) {
        const size_t count = least(step, f->rows - begin);
        for (size_t i = 0; i < f->rank; i++)
            for (size_t row = 0; row < count; row++)
                s->numbers[row * f->rank + i] = f->b[i * f->rows + begin + row];
        st = write_numbers(s, job, begin * f->rank, s->numbers, count * f->rank);
        for (size_t i = 0; i < f->rank; i++)
            for (size_t row = 0; row < count; row++)
                f->b[i * f->rows + begin + row] = s->numbers[row * f->rank + i];
    }
    return st;
}

static lofi_status copy_factors(const struct lofi__factors *from, struct lofi__factors *to)
{
    lofi_status st = lofi__factors_create(to, from->rows, from->columns, from->rank);
    if (st != LOFI_OK) return st;
    memcpy(to->b, from->b, from->rows * from->rank * sizeof(double));
    memcpy(to->a, from->a, from->columns * from->rank * sizeof(double));
    return LOFI_OK;
}

/* Appends the outer product of (x - y) and z, unless x and y are equal. */
static void append(double *to, double *with, size_t count, size_t with_count, const double *x,
                   const double *y, const double *z, size_t *rank)
{
    if (memcmp(x, y, count * sizeof *x) == 0) return;
    for (size_t i = 0; i < count; i++)
        to[*rank * count + i] = x[i] - y[i];
    memcpy(with + *rank * with_count, z, with_count * sizeof *z);
    (*rank)++;
}

/* The square of what rounding has changed: B'A' - BA = (B' - B) A + B' (A' - A). */
static lofi_status measure_rounding(const struct lofi__factors *exact,
                                    const struct lofi__factors *rounded, double *square)
{
    const size_t rows = exact->rows, columns = exact->columns;
    struct lofi__factors change;

    *square = 0;
    lofi_status st = lofi__factors_create(&change, rows, columns, 2 * exact->rank);
    change.rank = 0;
    for (size_t i = 0; i < exact->rank && st == LOFI_OK; i++) {
        const double *b = exact->b + i * rows, *a = exact->a + i * columns;
        const double *new_b = rounded->b + i * rows, *new_a = rounded->a + i * columns;
        append(change.b, change.a, rows, columns, new_b, b, a, &change.rank);
        append(change.a, change.b, columns, rows, new_a, a, new_b, &change.rank);
    }
    if (st == LOFI_OK) *square = lofi__factors_square(&change);
    lofi__factors_clear(&change);
    return st;
}

static lofi_status write_module(const struct lofi__stepper *s, const struct lofi__lora_module *m,
                                struct lofi__factors *out, double *lost)
{
    struct lofi__factors exact = {0};
    double rounding = 0;

    lofi_status st = copy_factors(out, &exact);
    if (st == LOFI_OK) st = write_a(s, s->jobs[m->a], out);
    if (st == LOFI_OK) st = write_b(s, s->jobs[m->b], out);
    if (st == LOFI_OK) st = measure_rounding(&exact, out, &rounding);
    lofi__factors_clear(&exact);
    *lost += rounding > 0 ? rounding : 0;
    return st;
}

static lofi_status check_finite(const struct lofi__lora_module *m, const struct lofi__factors *f)
{
    const size_t b = f->rows * f->rank, a = f->columns * f->rank;

    if (lofi_find_nonfinite(LOFI_F64, f->b, b) < 0 && lofi_find_nonfinite(LOFI_F64, f->a, a) < 0)
        return LOFI_OK;
    lofi_set_error("the factors '%.200s' and B are not finite in all inputs: they have no best "
                   "approximation",
                   m->places_a[0]->entry->name);
    return LOFI_INVALID;
}

static lofi_status reduce(const struct lofi__lora_module *m, struct lofi__factors *whole,
                          double *square, double *lost)
{
    struct lofi__factors out = {0};

    lofi_status st = check_finite(m, whole);
    if (st == LOFI_OK)
        st = lofi__factors_create(&out, whole->rows, whole->columns, (size_t)m->rank);
    if (st == LOFI_OK) st = lofi__factors_reduce(whole, &out, square, lost);
    lofi__factors_clear(st == LOFI_OK ? whole : &out);
    if (st == LOFI_OK) *whole = out;
    return st;
}

lofi_status lofi__lora_module_run(const struct lofi__stepper *s, const struct lofi__lora_module *m,
                                  double *square, double *lost)
{
    const struct lofi__plan *plan = s->plan;
    struct lofi__factors f = {0};

    *lost = 0;
    lofi_status st = lofi__factors_create(&f, (size_t)m->rows, (size_t)m->columns,
                                          (size_t)lofi__lora_whole_rank(plan, m));
    if (st == LOFI_OK) st = gather(s, m, &f);
    if (st == LOFI_OK && plan->lora->how == LOFI__LORA_SVD)
        st = reduce(m, &f, square, lost);
    else if (st == LOFI_OK)
        *square = lofi__factors_square(&f);
    if (st == LOFI_OK) st = write_module(s, m, &f, lost);
    *square *= m->scale * m->scale; /* what PEFT multiplies with is not in the factors */
    *lost *= m->scale * m->scale;
    lofi__factors_clear(&f);
    return st;
}
