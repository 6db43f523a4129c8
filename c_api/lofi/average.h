/* SPDX-License-Identifier: MIT */
/* The average over nodes: how its data are cut, and the whole for C programs. */
#ifndef LOFI_AVERAGE_H
#define LOFI_AVERAGE_H

#include "lofi/base.h"
#include "lofi/comm.h"
#include "lofi/values.h"

LOFI__DECLARATIONS_BEGIN

/* One step of an average that is streamed in chunks. `count` elements from `begin` are averaged;
 * they are cut into local_size shards, one for each rank of a node, and each shard into `nodes`
 * pieces of `piece_count` elements, one for each node. Past the end of the data the last pieces
 * are padded: local_size * nodes * piece_count >= count. */
typedef struct lofi_chunk {
    uint64_t begin;
    uint64_t count;
    uint64_t piece_count;
} lofi_chunk;

/*
 * Chunk number `index` of `total_count` elements, with chunks of at most `chunk_count` elements
 * (rounded up to a multiple of nodes * local_size). LOFI_INVALID past the last chunk or for
 * sizes < 1. lofi_chunk_total gives the number of chunks; 0 for bad sizes or total_count 0.
 */
lofi_status lofi_chunk_at(uint64_t total_count, int nodes, int local_size, uint64_t chunk_count,
                          uint64_t index, lofi_chunk *chunk);
uint64_t lofi_chunk_total(uint64_t total_count, int nodes, int local_size, uint64_t chunk_count);

/*
 * The average over nodes, for C programs: data = the mean over the nodes, with the rounding of
 * lofi_mean, on every rank. Collective over all ranks of all nodes. `node` connects the ranks of a
 * node, which hold the same `data`; `column` the ranks at this place of all nodes, in node order.
 * `weights` has one for each node (the same on all ranks), or is NULL. Each rank averages its
 * shard with its column, chunk by chunk, and the node gathers the shards: 2 (K-1)/K of the bytes
 * cross for each node, `scratch_bytes` is what it may allocate (0: 64 MiB; at least 4 KiB).
 * After an error `data` is undefined.
 *
 * With both communicators on nccl `data` and the scratch memory lie on the device (lofi_cuda_mean,
 * with the same bits); it begins when what was enqueued on both streams is done, and is done when
 * it returns. LOFI_INVALID if only one of them is.
 */
lofi_status lofi_finalize_average(lofi_comm *node, lofi_comm *column, lofi_dtype dtype, void *data,
                                  size_t count, const double *weights, size_t scratch_bytes);

LOFI__DECLARATIONS_END

#endif /* LOFI_AVERAGE_H */
