/* SPDX-License-Identifier: MIT */
/*
 * How two tensors differ. Sums are taken in double, in runs whose partial sums are added: enough
 * for a report, which is no place for bits that have to be the same everywhere.
 */
#include "ckpt/checkpoint.h"
#include "core/mem.h"
#include "kernels/kernels.h"

#include <string.h>

#define RUN_COUNT 8192
#define NUMBER_BYTES 8 /* of the largest number */

static void add_run(lofi_difference *d, const double *x, const double *y, size_t count)
{
    double square = 0, dot = 0, square_a = 0, square_b = 0, max = d->max;

    for (size_t i = 0; i < count; i++) {
        const int are_equal = x[i] == y[i] || (x[i] != x[i] && y[i] != y[i]);
        const double difference = are_equal ? 0 : x[i] - y[i]; /* also of two that are infinite */
        const double size = difference < 0 ? -difference : difference;
        if (!are_equal) d->equal = 0;
        max = size <= max || max != max ? max : size; /* a NaN comes, and stays */
        square += difference * difference;
        if (are_equal && !(x[i] - x[i] == 0)) continue;
        dot += x[i] * y[i];
        square_a += x[i] * x[i];
        square_b += y[i] * y[i];
    }
    d->max = max;
    d->square += square;
    d->dot += dot;
    d->square_a += square_a;
    d->square_b += square_b;
    d->count += count;
}

struct side {
    const struct lofi__place *place;
    size_t each; /* bytes of a number, or 1 */
    char *data;
    double *numbers;
};

static lofi_status read_run(struct side *side, uint64_t begin, size_t count)
{
    return lofi__file_read(side->place->file, lofi__place_begin(side->place) + begin * side->each,
                           side->data, count * side->each);
}

static void widen(struct side *side, size_t count)
{
    const lofi_dtype dtype = side->place->entry->kind->dtype;
    lofi__kernels_get()->begin[dtype](side->numbers, side->data, 1.0, count);
}

static lofi_status run(struct side *a, struct side *b, int are_floats, lofi_difference *d)
{
    const uint64_t total = a->place->entry->bytes / a->each;

    for (uint64_t begin = 0; begin < total; begin += RUN_COUNT) {
        const size_t n = total - begin < RUN_COUNT ? (size_t)(total - begin) : RUN_COUNT;
        lofi_status st = read_run(a, begin, n);
        if (st == LOFI_OK) st = read_run(b, begin, n);
        if (st != LOFI_OK) return st;
        if (!are_floats) {
            if (memcmp(a->data, b->data, n) != 0) d->equal = 0;
            continue;
        }
        widen(a, n);
        widen(b, n);
        add_run(d, a->numbers, b->numbers, n);
    }
    return LOFI_OK;
}

lofi_status lofi_checkpoint_compare(const lofi_checkpoint *a, uint64_t index_a,
                                    const lofi_checkpoint *b, uint64_t index_b,
                                    lofi_difference *difference)
{
    const struct lofi__place *x = lofi__checkpoint_place(a, index_a);
    const struct lofi__place *y = x != NULL ? lofi__checkpoint_place(b, index_b) : NULL;
    lofi_difference result = {.equal = 1};

    if (x == NULL || y == NULL) return LOFI_INVALID;
    lofi_status st = lofi__place_check_pair(x, y);
    if (st != LOFI_OK) return st;
    const int are_floats = x->entry->kind->class == LOFI__KIND_FLOAT;
    char *memory = lofi__mem_create(4 * (size_t)RUN_COUNT, NUMBER_BYTES);
    if (memory == NULL) return LOFI_NO_MEMORY;
    double *numbers = (double *)(void *)memory;
    struct side left = {x, 1, memory + 2 * (size_t)RUN_COUNT * NUMBER_BYTES, numbers};
    struct side right = {y, 1, memory + 3 * (size_t)RUN_COUNT * NUMBER_BYTES, numbers + RUN_COUNT};
    if (are_floats) left.each = lofi_dtype_bytes(x->entry->kind->dtype);
    if (are_floats) right.each = lofi_dtype_bytes(y->entry->kind->dtype);
    st = run(&left, &right, are_floats, &result);
    lofi__mem_destroy(memory);
    if (st == LOFI_OK) *difference = result;
    return st;
}
