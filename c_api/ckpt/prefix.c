/* SPDX-License-Identifier: MIT */
/*
 * A wrapper (DDP, torch.compile, a trainer) puts its name before all others. It is taken off where
 * all names have it, and nowhere else: that of a part of the model, which has the same name by
 * chance, stays. Names in order have the first and the last to show what they all have in common,
 * and stay in order without it.
 */
#include "ckpt/checkpoint.h"
#include "core/mem.h"

#include <stdio.h>
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

enum { UNUSED, USED, USED_HERE };

/* Takes each prefix off once, in whatever order they stand in the names. */
static void strip_all(lofi_checkpoint *c, const char *const *prefixes, int count, char *state)
{
    for (int round = 0; round < count; round++)
        for (int i = 0; i < count; i++) {
            if (state[i] == USED_HERE || !all_begin_with(c, prefixes[i])) continue;
            strip(c, prefixes[i]);
            state[i] = USED_HERE;
        }
    for (int i = 0; i < count; i++)
        if (state[i] == USED_HERE) state[i] = USED;
}

lofi_status lofi_checkpoints_strip(lofi_checkpoint *const *checkpoints, int count,
                                   const char *const *prefixes, int prefix_count)
{
    char *state = lofi__mem_create((size_t)prefix_count, 1);
    lofi_status st = state != NULL ? LOFI_OK : LOFI_NO_MEMORY;

    for (int c = 0; c < count && st == LOFI_OK; c++)
        strip_all(checkpoints[c], prefixes, prefix_count, state);
    for (int i = 0; i < prefix_count && st == LOFI_OK; i++) {
        if (state[i] == USED) continue;
        lofi_set_error("strip_prefix (--strip-prefix) is '%.200s': there is no checkpoint whose "
                       "names all begin with that",
                       prefixes[i]);
        st = LOFI_INVALID;
    }
    lofi__mem_destroy(state);
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

/* Describes the prefix of one checkpoint behind what is there; nothing if its length is 0. */
static void describe(const lofi_checkpoint *c, size_t length, char *text, size_t bytes)
{
    const size_t used = strlen(text);
    const char *name = name_at(c, 0);
    const int shown = length < 200 ? (int)length : 200;

    if (length == 0) return;
    snprintf(text + used, bytes - used,
             "; all names in %s begin with '%.*s'%s: --strip-prefix %.*s (strip_prefix) takes that "
             "off",
             c->path, shown, name, wrapper_of(name, length), shown, name);
}

void lofi_checkpoints_hint(const lofi_checkpoint *a, const lofi_checkpoint *b, char *text,
                           size_t bytes)
{
    size_t of_a[PARTS_MOST], of_b[PARTS_MOST];

    text[0] = '\0';
    if (a->count == 0 || b->count == 0) return;
    const int a_count = find_lengths(a, of_a), b_count = find_lengths(b, of_b);
    for (int parts = 0; parts <= a_count + b_count - 2; parts++)
        for (int i = 0; i <= parts; i++) {
            const int j = parts - i;
            if (i >= a_count || j >= b_count || !do_fit(a, of_a[i], b, of_b[j])) continue;
            describe(a, of_a[i], text, bytes);
            describe(b, of_b[j], text, bytes);
            return;
        }
}
