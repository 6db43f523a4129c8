/* SPDX-License-Identifier: MIT */
/* The average over nodes: which tensors differ, and the whole for C programs. */
#ifndef LOFI_AVERAGE_H
#define LOFI_AVERAGE_H

#include "lofi/base.h"
#include "lofi/comm.h"
#include "lofi/values.h"

LOFI__DECLARATIONS_BEGIN

/* How a tensor differs, a sum of: */
#define LOFI_DIFFERS_BETWEEN 1 /* a node's value is not that of another: it is averaged */
#define LOFI_DIFFERS_INSIDE 2  /* a rank's value is not that of the first rank of its node */

/*
 * Tells which of `tensors` tensors differ, by the digests that all ranks of all nodes took of them:
 * `digests` holds nodes * node_size * tensors of them, rank after rank, tensor after tensor. A
 * node's value is its first rank's; of a tensor with is_shard[i] != 0 (NULL: there is none) each
 * place has a value of its own, which is compared with that of the same place in the other nodes.
 * Pure. Writes `tensors` answers to `differs`. LOFI_INVALID for NULL or sizes < 1.
 */
lofi_status lofi_differences(const lofi_digest *digests, int nodes, int node_size, size_t tensors,
                             const unsigned char *is_shard, unsigned char *differs);

/*
 * The average over nodes, for C programs: lofi_exchange (exchange.h) in which all nodes of the
 * column give. data = the mean over the nodes, on every rank; `weights` has one for each node, or
 * is NULL.
 */
lofi_status lofi_finalize_average(lofi_comm *node, lofi_comm *column, lofi_dtype dtype, void *data,
                                  size_t count, const double *weights, size_t scratch_bytes);

LOFI__DECLARATIONS_END

#endif /* LOFI_AVERAGE_H */
