/* SPDX-License-Identifier: MIT */
/*
 * A model with tied weights has one matrix under two names (an embedding and lm_head), and is saved
 * with both or with one. The one that is missing is the other, if the file with both shows that.
 */
#include "merge/tied.h"
#include "core/mem.h"

#include <string.h>

#define RUN_BYTES ((size_t)64 << 10) /* a multiple of every element */

/* Two tensors of one size, run by run. */
struct reader {
    const struct lofi__place *a, *b;
    char *a_data, *b_data;
};

static lofi_status read_run(const struct reader *r, uint64_t begin, size_t *bytes)
{
    const uint64_t left = r->a->entry->bytes - begin;

    *bytes = left < RUN_BYTES ? (size_t)left : RUN_BYTES;
    lofi_status st =
        lofi__file_read(r->a->file, lofi__place_begin(r->a) + begin, r->a_data, *bytes);
    if (st != LOFI_OK) return st;
    return lofi__file_read(r->b->file, lofi__place_begin(r->b) + begin, r->b_data, *bytes);
}

static lofi_status compare_data(const struct reader *r, int *are_equal)
{
    *are_equal = 1;
    for (uint64_t begin = 0; begin < r->a->entry->bytes && *are_equal; begin += RUN_BYTES) {
        size_t bytes;
        lofi_status st = read_run(r, begin, &bytes);
        if (st != LOFI_OK) return st;
        *are_equal = memcmp(r->a_data, r->b_data, bytes) == 0;
    }
    return LOFI_OK;
}

static lofi_status compare(const struct lofi__place *a, const struct lofi__place *b, int *are_equal)
{
    const struct lofi__entry *x = a->entry, *y = b->entry;

    *are_equal = 0;
    if (x->kind != y->kind || x->dims != y->dims ||
        memcmp(x->shape, y->shape, (size_t)x->dims * sizeof *x->shape) != 0)
        return LOFI_OK;
    char *memory = lofi__mem_create(2, RUN_BYTES);
    if (memory == NULL) return LOFI_NO_MEMORY;
    const struct reader r = {a, b, memory, memory + RUN_BYTES};
    lofi_status st = compare_data(&r, are_equal);
    lofi__mem_destroy(memory);
    return st;
}

/* Tells whether all elements are the same: each run is compared with the first element. */
static lofi_status find_constant(const struct lofi__place *place, int *is_constant)
{
    const size_t each = place->entry->kind->bits / 8;
    char *data = lofi__mem_create(1, RUN_BYTES), first[16];
    const struct reader r = {place, place, data, data};
    lofi_status st = data != NULL ? LOFI_OK : LOFI_NO_MEMORY;

    *is_constant = 1;
    for (uint64_t begin = 0; begin < place->entry->bytes && *is_constant && st == LOFI_OK;
         begin += RUN_BYTES) {
        size_t bytes = 0;
        st = read_run(&r, begin, &bytes);
        if (st == LOFI_OK && begin == 0) memcpy(first, data, each);
        for (size_t i = 0; i < bytes && st == LOFI_OK && *is_constant; i += each)
            *is_constant = memcmp(data + i, first, each) == 0;
    }
    lofi__mem_destroy(data);
    return st;
}

/* Looks at tensor `i` of the owner: it adds what it stands for in the other. */
static lofi_status look_at(const lofi_checkpoint *owner, const struct lofi__place *place,
                           uint64_t i, const lofi_checkpoint *other,
                           const struct lofi__place **found, int *is_one)
{
    const struct lofi__place *twin = &owner->tensors[i];
    int are_equal = 0;

    if (twin == place) return LOFI_OK;
    const struct lofi__place *candidate = lofi__checkpoint_find(other, twin->entry->name);
    if (candidate == NULL) return LOFI_OK;
    lofi_status st = compare(place, twin, &are_equal);
    if (st != LOFI_OK || !are_equal) return st;
    if (*found != NULL) st = compare(*found, candidate, is_one);
    if (*found == NULL) *found = candidate;
    return st;
}

lofi_status lofi__tied_find(const lofi_checkpoint *owner, const struct lofi__place *place,
                            const lofi_checkpoint *other, const struct lofi__place **found)
{
    int is_constant = 1, is_one = 1;
    lofi_status st = LOFI_OK;

    *found = NULL;
    if (place->entry->kind->class == LOFI__KIND_FLOAT) st = find_constant(place, &is_constant);
    for (uint64_t i = 0; i < owner->count && !is_constant && is_one && st == LOFI_OK; i++)
        st = look_at(owner, place, i, other, found, &is_one);
    if (!is_one) *found = NULL;
    return st;
}
