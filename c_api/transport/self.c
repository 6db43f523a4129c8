/* SPDX-License-Identifier: MIT */
/* One rank alone: the reference of what a collective leaves, and what groups of one rank use. */
#include "kernels/kernels.h"
#include "transport/transport.h"

#include <string.h>

static lofi_status open_self(const struct lofi__members *members, const lofi_comm_options *options,
                             void *parent, lofi_allgather_fn allgather, void *ctx, void **state)
{
    (void)options, (void)parent, (void)allgather, (void)ctx;
    if (members->count != 1) {
        lofi_set_error("the transport self is for one rank, not for %d", members->count);
        return LOFI_INVALID;
    }
    *state = NULL;
    return LOFI_OK;
}

static lofi_status fold(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    const int scattered = task->collective == LOFI_REDUCE_SCATTER;
    const void *in[1] = {scattered ? lofi__in_slot(task, 0) : task->in};

    (void)state, (void)turn;
    lofi__kernels_get()->fold[task->op][task->dtype](task->out, in, 1, task->factor, task->count);
    return LOFI_OK;
}

static lofi_status copy(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    const int scattered = task->collective == LOFI_ALL_TO_ALL;
    const void *in = scattered ? lofi__in_slot(task, 0) : task->in;
    void *out = lofi__out_slot(task, 0);

    (void)state, (void)turn;
    if (out != in && task->count > 0) memcpy(out, in, lofi__slot_bytes(task));
    return LOFI_OK;
}

static lofi_status nothing(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    (void)state, (void)task, (void)turn;
    return LOFI_OK;
}

static void close_self(void *state, int forked)
{
    (void)state, (void)forked;
}

const struct lofi__transport lofi__transport_self = {
    .name = "self",
    .open = open_self,
    .run = {[LOFI_ALL_REDUCE] = fold,
            [LOFI_REDUCE] = fold,
            [LOFI_BROADCAST] = nothing,
            [LOFI_ALL_GATHER] = copy,
            [LOFI_GATHER] = copy,
            [LOFI_REDUCE_SCATTER] = fold,
            [LOFI_ALL_TO_ALL] = copy,
            [LOFI_BARRIER] = nothing},
    .close = close_self,
};
