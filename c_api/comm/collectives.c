/* SPDX-License-Identifier: MIT */
/* The most common collectives, as tasks made from a few arguments. */
#include "lofi/comm.h"

static lofi_status reduce(lofi_comm *comm, lofi_collective collective, const void *in, void *out,
                          size_t count, lofi_dtype dtype, lofi_op op)
{
    lofi_task task = LOFI_TASK_INIT;
    task.collective = collective;
    task.dtype = dtype;
    task.op = op;
    task.count = count;
    task.in = in;
    task.out = out;
    return lofi_run(comm, &task);
}

lofi_status lofi_all_reduce(lofi_comm *comm, const void *in, void *out, size_t count,
                            lofi_dtype dtype, lofi_op op)
{
    return reduce(comm, LOFI_ALL_REDUCE, in, out, count, dtype, op);
}

lofi_status lofi_broadcast(lofi_comm *comm, void *data, size_t bytes, int root)
{
    lofi_task task = LOFI_TASK_INIT;
    task.collective = LOFI_BROADCAST;
    task.root = root;
    task.count = bytes;
    task.out = data;
    return lofi_run(comm, &task);
}

lofi_status lofi_all_gather(lofi_comm *comm, const void *in, void *out, size_t bytes)
{
    lofi_task task = LOFI_TASK_INIT;
    task.collective = LOFI_ALL_GATHER;
    task.count = bytes;
    task.in = in;
    task.out = out;
    return lofi_run(comm, &task);
}

lofi_status lofi_reduce_scatter(lofi_comm *comm, const void *in, void *out, size_t count,
                                lofi_dtype dtype, lofi_op op)
{
    return reduce(comm, LOFI_REDUCE_SCATTER, in, out, count, dtype, op);
}

lofi_status lofi_barrier(lofi_comm *comm)
{
    lofi_task task = LOFI_TASK_INIT;
    return lofi_run(comm, &task);
}
