/* SPDX-License-Identifier: MIT */
/* A task is checked before a transport sees it. */
#include "comm/comm.h"
#include "core/collective.h"
#include "core/options.h"
#include "kernels/kernels.h"

#include <string.h>

static int is_float(lofi_dtype dtype)
{
    return dtype >= LOFI_F64 && dtype <= LOFI_BF16;
}

static int is_whole(double factor)
{
    return factor > -0x1p63 && factor < 0x1p63 && (double)(int64_t)factor == factor;
}

static lofi_status check_reduction(const lofi_task *task)
{
    const char *name = lofi_collective_name(task->collective);
    const int bits = task->op == LOFI_BAND || task->op == LOFI_BOR || task->op == LOFI_BXOR;

    if ((int)task->op < 0 || task->op >= LOFI_OP_COUNT)
        lofi_set_error("%s with operation %d: lofi.h lists the values 0 to %d", name, (int)task->op,
                       LOFI_OP_COUNT - 1);
    else if (lofi__kernels_get()->fold[LOFI_SUM][task->dtype] == NULL)
        lofi_set_error("%s of %s: nothing is computed with it; give another dtype", name,
                       lofi_dtype_name(task->dtype));
    else if (bits && is_float(task->dtype))
        lofi_set_error("%s with %s of %s: bits are of integers", name, lofi_op_name(task->op),
                       lofi_dtype_name(task->dtype));
    else if (task->op == LOFI_AVG && !is_float(task->dtype))
        lofi_set_error("%s with AVG of %s: the mean of integers is none; take SUM, or floats", name,
                       lofi_dtype_name(task->dtype));
    else if (task->op == LOFI_PREMUL_SUM && !is_float(task->dtype) && !is_whole(task->factor))
        lofi_set_error("%s with factor %g of %s: the factor of integers must be whole", name,
                       task->factor, lofi_dtype_name(task->dtype));
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

/* Checks the buffers of one side: `slots` of them, or none at all. */
static lofi_status check_buffers(const lofi_task *task, const char *side, const void *data,
                                 const void *const *list, int slots)
{
    const size_t each = lofi_dtype_bytes(task->dtype);

    if (task->count == 0 || slots == 0) return LOFI_OK;
    for (int i = 0; i < (list != NULL ? slots : 1); i++) {
        const void *buffer = list != NULL ? list[i] : data;
        if (buffer == NULL) {
            lofi_set_error("%s without %s", lofi_collective_name(task->collective), side);
            return LOFI_INVALID;
        }
        if (((uintptr_t)buffer & (each - 1)) != 0) { /* `each` is a power of two */
            lofi_set_error("%s: %s lies at %p, which is not aligned to its elements of %zu bytes",
                           lofi_collective_name(task->collective), side, buffer, each);
            return LOFI_INVALID;
        }
    }
    return LOFI_OK;
}

/* These tell whether a rank gives, or gets, a slot for each rank: only then is a list read. */
static int gives_to_each(lofi_collective collective)
{
    return collective == LOFI_REDUCE_SCATTER || collective == LOFI_ALL_TO_ALL;
}

static int gets_from_each(lofi_collective collective)
{
    return collective == LOFI_ALL_GATHER || collective == LOFI_GATHER ||
           collective == LOFI_ALL_TO_ALL;
}

/* These count the slots that a rank gives and gets. */
static int slots_in(const lofi_comm *comm, const lofi_task *task)
{
    if (task->collective == LOFI_BROADCAST) return 0;
    return gives_to_each(task->collective) ? comm->members.count : 1;
}

static int slots_out(const lofi_comm *comm, const lofi_task *task)
{
    const int to_root = task->collective == LOFI_REDUCE || task->collective == LOFI_GATHER;

    if (to_root && task->root != comm->members.rank) return 0;
    return gets_from_each(task->collective) ? comm->members.count : 1;
}

static lofi_status check_data(const lofi_comm *comm, const lofi_task *task)
{
    const size_t each = lofi_dtype_bytes(task->dtype);

    if (each == 0) {
        lofi_set_error("%s of dtype %d: lofi.h lists the values 0 to %d",
                       lofi_collective_name(task->collective), (int)task->dtype,
                       LOFI_DTYPE_COUNT - 1);
        return LOFI_INVALID;
    }
    size_t total = 0;
    if (__builtin_mul_overflow(task->count, each * (size_t)comm->members.count, &total) ||
        total > SIZE_MAX / 2) {
        lofi_set_error("%s of %zu elements: more than an address space",
                       lofi_collective_name(task->collective), task->count);
        return LOFI_INVALID;
    }
    if (lofi__has_root(task->collective) && (task->root < 0 || task->root >= comm->members.count)) {
        lofi_set_error("%s with root %d among %d ranks", lofi_collective_name(task->collective),
                       task->root, comm->members.count);
        return LOFI_INVALID;
    }
    return lofi__reduces(task->collective) ? check_reduction(task) : LOFI_OK;
}

/* Fields that a collective does not read must not make ranks differ: they get their defaults. */
static void clear_unread(lofi_task *task)
{
    if (!gives_to_each(task->collective)) task->in_list = NULL;
    if (!gets_from_each(task->collective)) task->out_list = NULL;
    if (!lofi__has_root(task->collective)) task->root = 0;
    if (!lofi__reduces(task->collective)) task->op = LOFI_SUM;
    if (task->op != LOFI_PREMUL_SUM) task->factor = 1;
}

static void clear_all(lofi_task *task)
{
    static const lofi_task none = LOFI_TASK_INIT;
    const lofi_task given = *task;

    *task = none;
    task->collective = given.collective;
    task->timeout_ms = given.timeout_ms;
    task->begun = given.begun;
    task->begun_ctx = given.begun_ctx;
}

static lofi_status check_kind(const lofi_comm *comm, const lofi_task *task)
{
    if ((int)task->collective < 0 || task->collective >= LOFI_COLLECTIVE_COUNT ||
        comm->transport->run[task->collective] == NULL)
        lofi_set_error("collective %s is not one of a communicator",
                       lofi_collective_name(task->collective));
    else if (task->timeout_ms < 0)
        lofi_set_error("%s with a timeout of %d ms", lofi_collective_name(task->collective),
                       task->timeout_ms);
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

/* A small collective takes as long as a few copies of its task, so there is one only. */
lofi_status lofi__task_check(const lofi_comm *comm, const lofi_task *given, lofi_task *checked)
{
    static const lofi_task none = LOFI_TASK_INIT;

    *checked = none;
    lofi_status st = lofi__options_read(checked, sizeof *checked, given, "LOFI_TASK_INIT");
    if (st == LOFI_OK) st = check_kind(comm, checked);
    if (st != LOFI_OK) return st;
    if (checked->timeout_ms == 0) checked->timeout_ms = comm->timeout_ms;
    if (checked->collective == LOFI_BARRIER) {
        clear_all(checked);
        return LOFI_OK;
    }
    st = check_data(comm, checked);
    if (st != LOFI_OK) return st;
    clear_unread(checked);
    st = check_buffers(checked, "input", checked->in, checked->in_list, slots_in(comm, checked));
    if (st != LOFI_OK) return st;
    return check_buffers(checked, "output", checked->out, (const void *const *)checked->out_list,
                         slots_out(comm, checked));
}
