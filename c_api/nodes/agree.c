/* SPDX-License-Identifier: MIT */
/*
 * How ranks agree on the nodes: a pure function of the facts of all of them.
 *
 * Every rank evaluates the same facts in the same order, so every rank stops at the same
 * sentence. That is why ranks are compared with rank 0 and not with the caller. The other way,
 * to let rank 0 decide and send its verdict, needs a second exchange for the same result.
 *
 * Nothing that came from another process is trusted: texts may lack their end, numbers may be
 * anything, the host's allgather may return them in another order.
 */
#include "nodes/facts.h"

#include <string.h>

static int is_terminated(const char *text, size_t bytes)
{
    return memchr(text, '\0', bytes) != NULL;
}

static int is_sound(const struct lofi__facts *facts)
{
    if (facts->source < 0 || facts->source >= LOFI__SOURCE_COUNT) return 0;
    if (facts->source == LOFI__FROM_HOSTS ? facts->node_size != 0 : facts->node_size < 1) return 0;
    return is_terminated(facts->host, sizeof facts->host) &&
           is_terminated(facts->settings, sizeof facts->settings) &&
           is_terminated(facts->problem, sizeof facts->problem);
}

/* Before 1.0 the minor version is the one that may change what ranks do together. */
static int same_release(const struct lofi__facts *a, const struct lofi__facts *b)
{
    return a->layout == b->layout && a->version / 100 == b->version / 100;
}

static lofi_status check_release(const struct lofi__facts *all, int rank)
{
    const struct lofi__facts *first = &all[0], *it = &all[rank];

    if (it->magic != LOFI__FACTS_MAGIC) {
        lofi_set_error("rank %d sent no facts of lofi: does the allgather return the bytes of "
                       "every rank, and are all machines of the same byte order?",
                       rank);
        return LOFI_CORRUPT;
    }
    if (!same_release(first, it)) {
        lofi_set_error("rank 0 runs lofi %u.%u.%u and rank %d runs lofi %u.%u.%u (layouts %u and "
                       "%u): install the same release on every machine",
                       first->version / 10000, first->version / 100 % 100, first->version % 100,
                       rank, it->version / 10000, it->version / 100 % 100, it->version % 100,
                       first->layout, it->layout);
        return LOFI_ABI;
    }
    return LOFI_OK;
}

static lofi_status check_sound(const struct lofi__facts *it, int rank, int world_size)
{
    if (it->layout != LOFI__FACTS_LAYOUT || !is_sound(it)) {
        lofi_set_error("the facts of rank %d are damaged: does the allgather return the bytes of "
                       "every rank as they were given?",
                       rank);
        return LOFI_CORRUPT;
    }
    if (it->rank != rank) {
        lofi_set_error("the allgather returned the facts of rank %d in the place of rank %d: it "
                       "has to return the ranks in order, each with a number of its own",
                       (int)it->rank, rank);
        return LOFI_INVALID;
    }
    if (it->world_size != world_size) {
        lofi_set_error("rank %d is in a world of %d ranks, others are in one of %d: start every "
                       "rank with the same world size",
                       rank, (int)it->world_size, world_size);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static lofi_status check_facts(const struct lofi__facts *all, int world_size)
{
    lofi_status st = LOFI_OK;

    for (int rank = 0; rank < world_size && st == LOFI_OK; rank++)
        st = check_release(all, rank);
    for (int rank = 0; rank < world_size && st == LOFI_OK; rank++)
        st = check_sound(&all[rank], rank, world_size);
    return st;
}

static lofi_status check_problems(const struct lofi__facts *all, int world_size)
{
    for (int rank = 0; rank < world_size; rank++) {
        if (all[rank].problem[0] == '\0') continue;
        lofi_set_error("rank %d: %s", rank, all[rank].problem);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static lofi_status check_settings(const struct lofi__facts *all, int world_size)
{
    for (int rank = 1; rank < world_size; rank++) {
        if (strcmp(all[0].settings, all[rank].settings) == 0) continue;
        lofi_set_error("settings differ: rank 0 has '%s', rank %d has '%s'; give every rank the "
                       "same",
                       all[0].settings, rank, all[rank].settings);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static int is_asked_for(const struct lofi__facts *facts)
{
    return facts->source == LOFI__FROM_ARGUMENT || facts->source == LOFI__FROM_LOFI;
}

static lofi_status refuse_sizes(const struct lofi__facts *all, int rank)
{
    const struct lofi__facts *sized = &all[0], *other = &all[rank];

    if (other->node_size != 0 && sized->node_size != 0) {
        lofi_set_error("node sizes differ: rank 0 has %d (%s), rank %d has %d (%s); nodes must be "
                       "of equal size: set LOFI_NODE_SIZE to the same number on every rank",
                       (int)sized->node_size, lofi__source_name(sized->source), rank,
                       (int)other->node_size, lofi__source_name(other->source));
        return LOFI_INVALID;
    }
    if (sized->node_size == 0) {
        sized = &all[rank];
        other = &all[0];
    }
    lofi_set_error("node sizes differ: rank %d has %d (%s), rank %d has none; give every rank the "
                   "same size, or none to any",
                   (int)sized->rank, (int)sized->node_size, lofi__source_name(sized->source),
                   (int)other->rank);
    return LOFI_INVALID;
}

/* A size that was asked for on some ranks only is a disagreement even if the numbers happen to
 * be equal: the next start on other machines would fail, or worse, wouldn't. */
static lofi_status check_sizes(const struct lofi__facts *all, int world_size)
{
    for (int rank = 1; rank < world_size; rank++) {
        if (all[rank].node_size != all[0].node_size ||
            is_asked_for(&all[rank]) != is_asked_for(&all[0]))
            return refuse_sizes(all, rank);
    }
    return LOFI_OK;
}

static int same_host(const struct lofi__facts *a, const struct lofi__facts *b)
{
    return strcmp(a->host, b->host) == 0;
}

/* The number of consecutive ranks, from `first`, on the host of `first`. */
static int run_length(const struct lofi__facts *all, int world_size, int first)
{
    int end = first + 1;
    while (end < world_size && same_host(&all[first], &all[end]))
        end++;
    return end - first;
}

/* Whether the host of the run that starts at `first` holds an earlier run as well. */
static lofi_status check_new_host(const struct lofi__facts *all, int first)
{
    for (int rank = 0; rank < first; rank++) {
        if (!same_host(&all[rank], &all[first])) continue;
        lofi_set_error("the ranks of host '%s' are not consecutive: rank %d and rank %d run on it, "
                       "but rank %d on '%s'; start the ranks host by host, or set LOFI_NODE_SIZE",
                       all[first].host, rank, first, first - 1, all[first - 1].host);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static lofi_status count_by_host(const struct lofi__facts *all, int world_size, int *node_size)
{
    int size = run_length(all, world_size, 0);

    /* Order first: with ranks dealt out in turn the lengths of runs mean nothing. */
    for (int first = size; first < world_size; first += run_length(all, world_size, first)) {
        lofi_status st = check_new_host(all, first);
        if (st != LOFI_OK) return st;
    }
    for (int first = size; first < world_size; first += size) {
        int length = run_length(all, world_size, first);
        if (length == size) continue;
        lofi_set_error("node sizes differ: host '%s' holds %d ranks (from rank 0), host '%s' holds "
                       "%d (from rank %d); start as many on each host, or set LOFI_NODE_SIZE",
                       all[0].host, size, all[first].host, length, first);
        return LOFI_INVALID;
    }
    *node_size = size;
    return LOFI_OK;
}

/* LOCAL_WORLD_SIZE and Slurm speak of ranks on one host. Where ranks are dealt out over hosts in
 * turn, runs of consecutive ranks would be nodes that no one meant. A size that was asked for is
 * free to join hosts. */
static lofi_status check_hosts(const struct lofi__facts *all, int world_size, int node_size)
{
    for (int rank = 0; rank < world_size; rank++) {
        int first = rank - rank % node_size;
        if (same_host(&all[first], &all[rank])) continue;
        lofi_set_error("%s is %d, but rank %d runs on host '%s' and rank %d on '%s': the ranks of "
                       "a host must be consecutive; start the ranks host by host, or set "
                       "LOFI_NODE_SIZE",
                       lofi__source_name(all[0].source), node_size, first, all[first].host, rank,
                       all[rank].host);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static lofi_status check_divisible(const struct lofi__facts *first, int world_size)
{
    if (world_size % first->node_size == 0) return LOFI_OK;
    lofi_set_error("the world of %d ranks can't be split into nodes of %d ranks (%s): choose a "
                   "node size that divides %d%s",
                   world_size, (int)first->node_size, lofi__source_name(first->source), world_size,
                   is_asked_for(first) ? "" : ", and set LOFI_NODE_SIZE to it");
    return LOFI_INVALID;
}

lofi_status lofi__facts_agree(const struct lofi__facts *all, int world_size, int *node_size)
{
    lofi_status st = check_facts(all, world_size);
    if (st == LOFI_OK) st = check_problems(all, world_size);
    if (st == LOFI_OK) st = check_settings(all, world_size);
    if (st == LOFI_OK) st = check_sizes(all, world_size);
    if (st != LOFI_OK) return st;
    if (all[0].source == LOFI__FROM_HOSTS) return count_by_host(all, world_size, node_size);

    st = check_divisible(&all[0], world_size);
    if (st == LOFI_OK && !is_asked_for(&all[0]))
        st = check_hosts(all, world_size, all[0].node_size);
    if (st == LOFI_OK) *node_size = all[0].node_size;
    return st;
}
