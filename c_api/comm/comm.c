/* SPDX-License-Identifier: MIT */
/* Communicators: made, asked and ended. */
#include "comm/comm.h"
#include "comm/queue.h"

#include "core/mem.h"
#include "core/options.h"

#include <stdio.h>
#include <string.h>

static const struct lofi__transport *const transports[] = {
    &lofi__transport_shm,
    &lofi__transport_host,
    &lofi__transport_self,
    &lofi__transport_nccl,
};

static const struct lofi__transport *transport_named(const char *name)
{
    for (size_t i = 0; name != NULL && i < sizeof transports / sizeof transports[0]; i++)
        if (strcmp(name, transports[i]->name) == 0) return transports[i];
    return NULL;
}

static lofi_status check_parent(const lofi_comm_options *options)
{
    const lofi_comm *parent = options->parent;

    lofi_status st = lofi__comm_check_process(parent);
    if (st != LOFI_OK) return st;
    if (transport_named(options->transport) != &lofi__transport_nccl ||
        parent->transport != &lofi__transport_nccl)
        lofi_set_error("only communicators of the transport nccl have a parent, which is one, too: "
                       "these are %s, and %s for the parent",
                       options->transport, parent->transport->name);
    else if (options->rank_count > parent->members.count)
        lofi_set_error("%d ranks out of a parent of %d", options->rank_count,
                       parent->members.count);
    else if (options->color < 0)
        lofi_set_error("the color is %d: ranks of a parent that stay together give the same number "
                       ">= 0",
                       options->color);
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

static lofi_status check_options(const lofi_comm_options *options, lofi_allgather_fn allgather,
                                 lofi_comm **out)
{
    if (out == NULL)
        lofi_set_error("a communicator without a place for it");
    else if (transport_named(options->transport) == NULL)
        lofi_set_error("the transport is '%.32s': choose shm, host, self or nccl",
                       options->transport != NULL ? options->transport : "");
    else if (options->rank_count < 1 || options->rank_count > 0xffffff || options->rank < 0 ||
             options->rank >= options->rank_count)
        lofi_set_error("rank %d of a communicator of %d ranks", options->rank, options->rank_count);
    else if (options->timeout_ms < 1)
        lofi_set_error("a communicator's timeout is %d ms: it must be at least 1",
                       options->timeout_ms);
    else if (options->name != NULL && strlen(options->name) >= LOFI__NAME_BYTES)
        lofi_set_error("a communicator's name has %zu bytes: at most %d fit", strlen(options->name),
                       LOFI__NAME_BYTES - 1);
    else if (allgather == NULL && transport_named(options->transport) == &lofi__transport_shm)
        lofi_set_error("the transport shm needs an allgather to find the other ranks");
    else if (options->slot_bytes != 0 &&
             (options->slot_bytes < 4096 || options->slot_bytes > (size_t)1 << 30))
        lofi_set_error("slots of %zu bytes: choose 4096 to 2^30", options->slot_bytes);
    else if (allgather == NULL && options->parent == NULL &&
             transport_named(options->transport) == &lofi__transport_nccl)
        lofi_set_error("the transport nccl needs an allgather to find the other ranks, or a "
                       "parent");
    else
        return options->parent != NULL ? check_parent(options) : LOFI_OK;
    return LOFI_INVALID;
}

static lofi_status fill_members(struct lofi__members *members, const lofi_comm_options *options)
{
    members->rank = options->rank;
    members->count = options->rank_count;
    snprintf(members->name, sizeof members->name, "%s", options->name != NULL ? options->name : "");
    members->label = lofi__mem_create((size_t)members->count, sizeof *members->label);
    if (members->label == NULL) return LOFI_NO_MEMORY;
    for (int rank = 0; rank < members->count; rank++)
        members->label[rank] = options->labels != NULL ? options->labels[rank] : rank;
    return LOFI_OK;
}

lofi_status lofi_comm_create(const lofi_comm_options *given, lofi_allgather_fn allgather, void *ctx,
                             lofi_comm **out)
{
    lofi_comm_options full = LOFI_COMM_OPTIONS_INIT;
    const lofi_comm_options *options = &full;

    lofi_status st = lofi__options_read(&full, sizeof full, given, "LOFI_COMM_OPTIONS_INIT");
    if (st == LOFI_OK) st = check_options(options, allgather, out);
    if (st != LOFI_OK) return st;
    lofi_comm *comm = lofi__mem_create(1, sizeof *comm);
    if (comm == NULL) return LOFI_NO_MEMORY;

    comm->transport = transport_named(options->transport);
    comm->timeout_ms = options->timeout_ms;
    comm->generation = lofi__fork_generation();
    st = fill_members(&comm->members, options);
    if (st != LOFI_OK) goto free_comm;
    st = lofi__queue_create(comm);
    if (st != LOFI_OK) goto free_members;
    st = comm->transport->open(&comm->members, options,
                               options->parent != NULL ? options->parent->state : NULL, allgather,
                               ctx, &comm->state);
    if (st != LOFI_OK) goto end_queue;
    *out = comm;
    return LOFI_OK;

end_queue:
    lofi__queue_destroy(comm);
free_members:
    lofi__mem_destroy(comm->members.label);
free_comm:
    lofi__mem_destroy(comm);
    return st;
}

void lofi_comm_destroy(lofi_comm *comm)
{
    if (comm == NULL) return;
    const int forked = comm->generation != lofi__fork_generation();
    if (!forked) lofi__queue_destroy(comm);
    comm->transport->close(comm->state, forked);
    lofi__mem_destroy(comm->members.label);
    lofi__mem_destroy(comm);
}

int lofi_comm_rank(const lofi_comm *comm)
{
    return comm->members.rank;
}

int lofi_comm_rank_count(const lofi_comm *comm)
{
    return comm->members.count;
}

const char *lofi_comm_transport(const lofi_comm *comm)
{
    return comm->transport->name;
}

void lofi_comm_abort(lofi_comm *comm)
{
    if (lofi__comm_check_process(comm) != LOFI_OK) return;
    pthread_mutex_lock(&comm->lock);
    if (comm->broken == LOFI_OK) {
        comm->broken = LOFI_PEER_LOST;
        snprintf(comm->why, sizeof comm->why, "rank %d has aborted the communicator",
                 comm->members.label[comm->members.rank]);
    }
    pthread_mutex_unlock(&comm->lock);
    if (comm->transport->abort != NULL) comm->transport->abort(comm->state);
}
