/* SPDX-License-Identifier: MIT */
/* How the ranks of a machine come to share memory, and part. */
#ifndef LOFI_TRANSPORT_SHM_OPEN_H
#define LOFI_TRANSPORT_SHM_OPEN_H

#include "transport/transport.h"

lofi_status lofi__shm_open(const struct lofi__members *members, const lofi_comm_options *options,
                           lofi_allgather_fn allgather, void *ctx, void **state);
/* The same with some kinds of memory only: bit k allows enum lofi__shm_kind k. */
lofi_status lofi__shm_open_kinds(const struct lofi__members *members,
                                 const lofi_comm_options *options, lofi_allgather_fn allgather,
                                 void *ctx, unsigned kinds, void **state);
void lofi__shm_close(void *state, int forked);

#endif /* LOFI_TRANSPORT_SHM_OPEN_H */
