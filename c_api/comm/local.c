/* SPDX-License-Identifier: MIT */
/* Shared memory where it can be had: the one place that decides what ranks of one machine use. */
#include "core/options.h"
#include "lofi/comm.h"

#include <stdatomic.h>

static atomic_int has_warned;

static void tell(const lofi_comm_options *options, lofi_status status, const char *otherwise)
{
    const char *name = options->name != NULL ? options->name : "a communicator";

    if (status == LOFI_UNSUPPORTED) {
        lofi_log(LOFI_LOG_INFO, "%s uses %s: %s", name, otherwise, lofi_last_error());
        return;
    }
    const int is_first = options->rank == 0 && !atomic_exchange(&has_warned, 1);
    lofi_log(
        is_first ? LOFI_LOG_WARN : LOFI_LOG_INFO,
        "no memory can be shared in %s, so %s moves its data, more slowly: %s (LOFI_SHM=0 asks "
        "for that, and for no warning)",
        name, otherwise, lofi_last_error());
}

lofi_status lofi_comm_create_local(const lofi_comm_options *given, lofi_allgather_fn allgather,
                                   void *ctx, const char *otherwise, lofi_comm **out)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;

    lofi_status st = lofi__options_read(&options, sizeof options, given, "LOFI_COMM_OPTIONS_INIT");
    if (st != LOFI_OK) return st;
    options.transport = options.rank_count == 1 ? "self" : "shm";
    st = lofi_comm_create(&options, allgather, ctx, out);
    if (st != LOFI_UNSUPPORTED && st != LOFI_SYSTEM) return st;
    tell(&options, st, otherwise != NULL ? otherwise : "another way");
    *out = NULL;
    return LOFI_OK;
}
