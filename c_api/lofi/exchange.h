/* SPDX-License-Identifier: MIT */
/* The exchange of an average: who gives which elements to whom, as a plan, and its execution. */
#ifndef LOFI_EXCHANGE_H
#define LOFI_EXCHANGE_H

#include "lofi/base.h"
#include "lofi/comm.h"
#include "lofi/values.h"

LOFI__DECLARATIONS_BEGIN

/*
 * An exchange averages one row of elements over the nodes that take part in it, its members. The
 * row is cut into chunks; a chunk into shards, one for each of the local_size ranks of a node,
 * which hold the same row; a shard into pieces, one for each node. A rank does three things with
 * each chunk, together with its column (the ranks at its place in all members) and with its node:
 *
 *   GIVE     column: piece j of this rank's shard goes to node j, if this node gives anything; from
 *            every node that does comes the piece that is this node's
 *   COMBINE  the pieces that came become one, their weighted mean; column: it goes to all, and
 *            theirs come, so that the shard is whole
 *   SHARE    node: the shard goes to all ranks, and theirs come, so that the chunk is whole
 *
 * A node sends 2 (K-1)/K of the row's bytes, and each rank of it an equal part.
 *
 * The plan is the list of these steps in the order in which every rank of every member carries them
 * out, whatever moves the bytes. It depends on nothing but the shape, which is the same on all
 * ranks but for `gives`. Another try, after a member is lost, is another exchange: over the members
 * that are left, with communicators of its own.
 */
typedef enum lofi_exchange_kind {
    LOFI_EXCHANGE_GIVE = 0,
    LOFI_EXCHANGE_COMBINE = 1,
    LOFI_EXCHANGE_SHARE = 2,
    LOFI_EXCHANGE_KIND_COUNT = 3
} lofi_exchange_kind;

typedef struct lofi_exchange_shape {
    size_t size;
    uint64_t count;         /* elements of the row, >= 1 */
    uint64_t element_bytes; /* >= 1 */
    int nodes;              /* the members, K >= 1 */
    int local_size;         /* ranks of a node that hold the same row, L >= 1; 1 for rows that are
                               each rank's own, such as shards: SHARE then has no one to go to */
    int gives;              /* 0: this node takes the result, and gives nothing */
    int slots;              /* chunks under way at once, each in buffers of its own, >= 1; from 3 on
                               steps of successive chunks are interleaved, so that they overlap */
    uint64_t chunk_count; /* elements of a chunk at most, >= 1; rounded up to a multiple of K * L */
} lofi_exchange_shape;
#define LOFI_EXCHANGE_SHAPE_INIT                                                                   \
    {                                                                                              \
        sizeof(lofi_exchange_shape), 0, 1, 1, 1, 1, 1, 1                                           \
    }

typedef struct lofi_exchange_step {
    lofi_exchange_kind kind;
    int slot;       /* chunk % slots */
    uint64_t chunk; /* its number */
    uint64_t begin; /* its elements are begin ... begin + count of the row */
    uint64_t count;
    uint64_t piece_count; /* of one piece. Past the end of the row the last chunk is padded: L * K *
                             piece_count >= count. No chunk has larger pieces than the first */
    uint64_t sent_bytes;  /* by this rank to other nodes */
} lofi_exchange_step;

/* How many steps there are; 0 for a bad shape, of which lofi_exchange_step_at tells more. */
uint64_t lofi_exchange_steps(const lofi_exchange_shape *shape);

/* Step number `index`. Pure, by arithmetic. LOFI_INVALID for a bad shape or past the last step. */
lofi_status lofi_exchange_step_at(const lofi_exchange_shape *shape, uint64_t index,
                                  lofi_exchange_step *step);

/*
 * The largest chunk_count for which the buffers of all slots fit `scratch_bytes`: two shards and
 * one piece, beside `pieces_beside` further pieces that the executor needs in a slot (K * L where
 * the node's chunk is gathered in it). At least one element a piece, also where that does not fit;
 * pieces are multiples of 16 elements where there is room, since means of aligned pieces are
 * faster. Reads neither count nor chunk_count. 0 for a bad shape.
 */
uint64_t lofi_exchange_fit(const lofi_exchange_shape *shape, uint64_t scratch_bytes,
                           uint64_t pieces_beside);

typedef struct lofi_exchange_options {
    size_t size;
    lofi_dtype dtype;
    const double *weights; /* one for each rank of the column, as in lofi_mean; NULL: all equal */
    const unsigned char *gives; /* one for each rank of the column, 0: its node gives nothing, and
                                   its weight is not read; NULL: all give. At least one gives */
    const void *base; /* NULL: none. Else a row like the data, the same on every rank; the result is
                         (1 - alpha) * base + alpha * mean, as in lofi_mean_mixed */
    double alpha;     /* read with a base */
    size_t scratch_bytes; /* that may be allocated; 0: 64 MiB; at least 4 KiB */
} lofi_exchange_options;
#define LOFI_EXCHANGE_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(lofi_exchange_options), LOFI_F32, NULL, NULL, NULL, 1.0, 0                          \
    }

/*
 * Carries out an exchange: `data`, `count` elements of this node, become the mean over the nodes of
 * the column, with the rounding of lofi_mean, on every rank. Collective over all ranks of all
 * nodes, which give the same options. `node` connects the ranks of a node, which hold the same
 * `data`; `column` the ranks at this place of all members, in node order. A node that is no member
 * costs nothing: it is in no column. After an error `data` is undefined.
 *
 * With both communicators on nccl `data` and the scratch memory lie on the device (lofi_cuda_mean,
 * with the same bits); it begins when what was enqueued on both streams is done, and is done when
 * it returns. LOFI_INVALID if only one of them is, LOFI_UNSUPPORTED for a base there.
 */
lofi_status lofi_exchange(lofi_comm *node, lofi_comm *column, void *data, size_t count,
                          const lofi_exchange_options *options);

LOFI__DECLARATIONS_END

#endif /* LOFI_EXCHANGE_H */
