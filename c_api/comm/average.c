/* SPDX-License-Identifier: MIT */
/*
 * The average over nodes on two communicators.
 *
 * Chunk by chunk (lofi_chunk_at): rank i of each node takes shard i, in K pieces. The K ranks at
 * place i give each other the pieces (all_to_all), each takes the mean of one, they gather the means
 * (all_gather), and so does then the node. What is averaged is bytes in the tensors' own dtype until
 * the one rounding in lofi_mean.
 */
#include "core/mem.h"
#include "lofi.h"

#include <string.h>

#define SCRATCH_BYTES ((size_t)64 << 20)
#define SCRATCH_LEAST ((size_t)4 << 10)

struct average {
    lofi_comm *node, *column;
    int nodes, local_size; /* K, L */
    int place;
    lofi_dtype dtype;
    size_t each; /* bytes of an element */
    char *data;
    const double *weights;
    char *sent, *got; /* K pieces each */
    char *mean;       /* one piece */
    char *whole;      /* L shards, for the last chunk, which is padded */
    const void **in;  /* K */
};

/* How much of the shard of `place` lies before the end of the chunk. */
static size_t bytes_of_shard(const struct average *a, const lofi_chunk *chunk, int place)
{
    const uint64_t shard = chunk->piece_count * (uint64_t)a->nodes;
    const uint64_t begin = shard * (uint64_t)place;

    if (begin >= chunk->count) return 0;
    return (size_t)(chunk->count - begin < shard ? chunk->count - begin : shard) * a->each;
}

static lofi_status all_to_all(const struct average *a, size_t bytes)
{
    lofi_task task = LOFI_TASK_INIT;
    task.collective = LOFI_ALL_TO_ALL;
    task.count = bytes;
    task.in = a->sent;
    task.out = a->got;
    return lofi_run(a->column, &task);
}

static lofi_status average_chunk(struct average *a, const lofi_chunk *chunk)
{
    const size_t piece = (size_t)chunk->piece_count * a->each;
    const size_t shard = piece * (size_t)a->nodes;
    char *data = a->data + (size_t)chunk->begin * a->each;

    memset(a->sent, 0, shard);
    const size_t own = bytes_of_shard(a, chunk, a->place);
    if (own > 0) memcpy(a->sent, data + shard * (size_t)a->place, own);
    lofi_status st = all_to_all(a, piece);
    if (st != LOFI_OK) return st;
    for (int node = 0; node < a->nodes; node++)
        a->in[node] = a->got + piece * (size_t)node;
    st = lofi_mean(a->dtype, a->mean, a->in, a->weights, a->nodes, (size_t)chunk->piece_count);
    if (st == LOFI_OK) st = lofi_all_gather(a->column, a->mean, a->sent, piece);
    if (st != LOFI_OK) return st;
    if (chunk->count * a->each == shard * (size_t)a->local_size)
        return lofi_all_gather(a->node, a->sent, data, shard);
    st = lofi_all_gather(a->node, a->sent, a->whole, shard);
    if (st == LOFI_OK) memcpy(data, a->whole, (size_t)chunk->count * a->each);
    return st;
}

static lofi_status check(const lofi_comm *node, const lofi_comm *column, lofi_dtype dtype,
                         const void *data, size_t count, size_t scratch_bytes)
{
    if (node == NULL || column == NULL)
        lofi_set_error("an average needs the communicator of the node and that of the column");
    else if (lofi_dtype_bytes(dtype) == 0)
        lofi_set_error("dtype is %d: lofi.h lists the values 0 to %d", (int)dtype,
                       LOFI_DTYPE_COUNT - 1);
    else if (data == NULL && count > 0)
        lofi_set_error("an average of %zu elements without data", count);
    else if (scratch_bytes != 0 && scratch_bytes < SCRATCH_LEAST)
        lofi_set_error("%zu bytes of scratch memory: an average needs at least %zu", scratch_bytes,
                       SCRATCH_LEAST);
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

/* Elements of a chunk, such that sent, got, mean and whole fit. */
static uint64_t chunk_count_of(const struct average *a, size_t scratch_bytes)
{
    const uint64_t unit = (uint64_t)a->nodes * (uint64_t)a->local_size;
    const uint64_t fits = scratch_bytes / a->each / (uint64_t)(a->local_size + 3) *
                          (uint64_t)a->local_size / unit * unit;
    return fits > unit ? fits : unit;
}

static lofi_status allocate(struct average *a, uint64_t chunk_count)
{
    const size_t shard = (size_t)chunk_count / (size_t)a->local_size * a->each;

    a->sent = lofi__mem_create(shard, 1);
    a->got = lofi__mem_create(shard, 1);
    a->mean = lofi__mem_create(shard / (size_t)a->nodes, 1);
    a->whole = lofi__mem_create((size_t)chunk_count, a->each);
    a->in = lofi__mem_create((size_t)a->nodes, sizeof *a->in);
    return a->sent != NULL && a->got != NULL && a->mean != NULL && a->whole != NULL && a->in != NULL
               ? LOFI_OK
               : LOFI_NO_MEMORY;
}

lofi_status lofi_finalize_average(lofi_comm *node, lofi_comm *column, lofi_dtype dtype, void *data,
                                  size_t count, const double *weights, size_t scratch_bytes)
{
    lofi_status st = check(node, column, dtype, data, count, scratch_bytes);
    if (st != LOFI_OK || count == 0) return st;

    struct average a = {.node = node,
                        .column = column,
                        .nodes = lofi_comm_rank_count(column),
                        .local_size = lofi_comm_rank_count(node),
                        .place = lofi_comm_rank(node),
                        .dtype = dtype,
                        .each = lofi_dtype_bytes(dtype),
                        .data = data,
                        .weights = weights};
    uint64_t chunk_count = chunk_count_of(&a, scratch_bytes != 0 ? scratch_bytes : SCRATCH_BYTES);
    const uint64_t unit = (uint64_t)a.nodes * (uint64_t)a.local_size;
    const uint64_t needed = (count + unit - 1) / unit * unit;
    if (chunk_count > needed) chunk_count = needed;
    st = allocate(&a, chunk_count);
    const uint64_t chunks = lofi_chunk_total(count, a.nodes, a.local_size, chunk_count);
    for (uint64_t i = 0; i < chunks && st == LOFI_OK; i++) {
        lofi_chunk chunk;
        st = lofi_chunk_at(count, a.nodes, a.local_size, chunk_count, i, &chunk);
        if (st == LOFI_OK) st = average_chunk(&a, &chunk);
    }
    lofi__mem_destroy(a.in);
    lofi__mem_destroy(a.whole);
    lofi__mem_destroy(a.mean);
    lofi__mem_destroy(a.got);
    lofi__mem_destroy(a.sent);
    return st;
}
