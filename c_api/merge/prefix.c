/* SPDX-License-Identifier: MIT */
/*
 * A wrapper (DDP, torch.compile, a trainer) puts its name before all others. It is taken off where
 * all names have it, and nowhere else: that of a part of the model, which has the same name by
 * chance, stays. Names in order have the first and the last to show what they all have in common,
 * and stay in order without it.
 */
#include "merge/prefix.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <string.h>

#define PARTS_MOST 8

static const char *name_at(const lofi_checkpoint *c, uint64_t number)
{
    return c->tensors[c->by_name[number]].entry->name;
}

static int begins_with(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0 && name[strlen(prefix)] != '\0';
}

static int all_begin_with(const lofi_checkpoint *c, const char *prefix)
{
    return c->count > 0 && begins_with(name_at(c, 0), prefix) &&
           begins_with(name_at(c, c->count - 1), prefix);
}

static void strip(lofi_checkpoint *c, const char *prefix)
{
    for (uint64_t f = 0; f < c->file_count; f++)
        for (uint64_t i = 0; i < c->files[f].header.count; i++)
            c->files[f].header.entries[i].name += strlen(prefix);
}

/* Takes each prefix off once, in whatever order they stand in the names. */
static void strip_all(lofi_checkpoint *c, const lofi_average_files_options *o, char *is_used)
{
    for (int round = 0; round < o->strip_count; round++)
        for (int i = 0; i < o->strip_count; i++) {
            if (is_used[i] == 2 || !all_begin_with(c, o->strip_prefixes[i])) continue;
            strip(c, o->strip_prefixes[i]);
            is_used[i] = 2;
        }
    for (int i = 0; i < o->strip_count; i++)
        is_used[i] = is_used[i] > 0;
}

lofi_status lofi__prefixes_strip(struct lofi__plan *plan)
{
    const lofi_average_files_options *o = &plan->options;
    char *is_used = lofi__mem_create((size_t)o->strip_count, 1);
    lofi_status st = is_used != NULL ? LOFI_OK : LOFI_NO_MEMORY;

    for (int s = 0; s < plan->source_count && st == LOFI_OK; s++)
        strip_all(plan->sources[s], o, is_used);
    for (int i = 0; i < o->strip_count && st == LOFI_OK; i++) {
        if (is_used[i]) continue;
        lofi_set_error("strip_prefix (--strip-prefix) is '%.200s': there is no input whose names "
                       "all begin with that",
                       o->strip_prefixes[i]);
        st = LOFI_INVALID;
    }
    lofi__mem_destroy(is_used);
    return st;
}

/* Lengths of what all names begin with, up to a point each: from 0 on. */
static int find_lengths(const lofi_checkpoint *c, size_t *lengths)
{
    const char *first = name_at(c, 0), *last = name_at(c, c->count - 1);
    int count = 1;

    lengths[0] = 0;
    for (size_t i = 0; first[i] != '\0' && first[i] == last[i] && count < PARTS_MOST; i++)
        if (first[i] == '.' && first[i + 1] != '\0') lengths[count++] = i + 1;
    return count;
}

static int has(const lofi_checkpoint *c, size_t skipped, const char *name)
{
    uint64_t low = 0, high = c->count;

    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        const int order = strcmp(name_at(c, middle) + skipped, name);
        if (order == 0) return 1;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* 1: without the first bytes of their names, half of the tensors of the smaller one are in both. */
static int do_fit(const lofi_checkpoint *a, size_t a_length, const lofi_checkpoint *b,
                  size_t b_length)
{
    const uint64_t smaller = a->count < b->count ? a->count : b->count;
    uint64_t found = 0;

    for (uint64_t i = 0; i < a->count; i++)
        found += (uint64_t)has(b, b_length, name_at(a, i) + a_length);
    return 2 * found >= smaller;
}

static const char *wrapper_of(const char *name, size_t length)
{
    static const struct {
        const char *prefix, *wrapper;
    } known[] = {
        {"module.", " (as in DistributedDataParallel)"},
        {"_orig_mod.", " (as from torch.compile)"},
        {"_fsdp_wrapped_module.", " (as in FullyShardedDataParallel)"},
    };

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strlen(known[i].prefix) == length && strncmp(name, known[i].prefix, length) == 0)
            return known[i].wrapper;
    return "";
}

/* Describes the prefix of one checkpoint; "" if its length is 0. */
static char *describe(const lofi_checkpoint *c, size_t length)
{
    const char *name = name_at(c, 0);
    const int shown = length < 200 ? (int)length : 200;

    if (length == 0) return lofi__text_create("%s", "");
    return lofi__text_create("; all names in %s begin with '%.*s'%s: --strip-prefix %.*s "
                             "(strip_prefix) takes that off",
                             c->path, shown, name, wrapper_of(name, length), shown, name);
}

char *lofi__prefix_hint(const lofi_checkpoint *a, const lofi_checkpoint *b)
{
    size_t of_a[PARTS_MOST], of_b[PARTS_MOST];

    if (a->count == 0 || b->count == 0) return lofi__text_create("%s", "");
    const int a_count = find_lengths(a, of_a), b_count = find_lengths(b, of_b);
    for (int parts = 0; parts <= a_count + b_count - 2; parts++)
        for (int i = 0; i <= parts; i++) {
            const int j = parts - i;
            if (i >= a_count || j >= b_count || !do_fit(a, of_a[i], b, of_b[j])) continue;
            char *first = describe(a, of_a[i]), *second = describe(b, of_b[j]);
            char *both =
                first != NULL && second != NULL ? lofi__text_create("%s%s", first, second) : NULL;
            lofi__mem_destroy(first);
            lofi__mem_destroy(second);
            return both;
        }
    return lofi__text_create("%s", "");
}
