/* SPDX-License-Identifier: MIT */
/*
 * The average over nodes on two communicators.
 *
 * Chunk by chunk (lofi_chunk_at): rank i of each node takes shard i, in K pieces. The K ranks at
 * place i give each other the pieces (all_to_all), each takes the mean of one, they gather the means
 * (all_gather), and so does then the node. What is averaged is bytes in the tensors' own dtype until
 * the one rounding in lofi_mean.
 *
 * The data stay where they lie: what is done with memory is done by the transport's table, on the
 * column's side.
 */
#include "average/host_memory.h"
#include "comm/comm.h"
#include "core/mem.h"

#define SCRATCH_BYTES ((size_t)64 << 20)
#define SCRATCH_LEAST ((size_t)4 << 10)

struct average {
    lofi_comm *node, *column;
    const struct lofi__memory *memory;
    void *state;           /* of `memory`: the column's */
    int nodes, local_size; /* K, L */
    int place;
    lofi_dtype dtype;
    size_t each; /* bytes of an element */
    char *data;
    const double *weights;
    char *sent, *got; /* K pieces each */
    char *mean;       /* one piece */
    char *whole;      /* L shards, for the last chunk, which is padded */
    const void **in;  /* K, in the process's own memory */
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

    const size_t own = bytes_of_shard(a, chunk, a->place);
    lofi_status st = a->memory->zero(a->state, a->sent, shard);
    if (st == LOFI_OK && own > 0)
        st = a->memory->copy(a->state, a->sent, data + shard * (size_t)a->place, own);
    if (st == LOFI_OK) st = all_to_all(a, piece);
    if (st != LOFI_OK) return st;
    for (int node = 0; node < a->nodes; node++)
        a->in[node] = a->got + piece * (size_t)node;
    st = a->memory->mean(a->state, a->dtype, a->mean, a->in, a->weights, a->nodes,
                         (size_t)chunk->piece_count);
    if (st == LOFI_OK) st = lofi_all_gather(a->column, a->mean, a->sent, piece);
    if (st != LOFI_OK) return st;
    if (chunk->count * a->each == shard * (size_t)a->local_size)
        return lofi_all_gather(a->node, a->sent, data, shard);
    st = lofi_all_gather(a->node, a->sent, a->whole, shard);
    if (st == LOFI_OK)
        st = a->memory->copy(a->state, data, a->whole, (size_t)chunk->count * a->each);
    return st;
}

static const struct lofi__memory *memory_of(const lofi_comm *comm)
{
    return comm->transport->memory != NULL ? comm->transport->memory : &lofi__host_memory;
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
    else if (memory_of(node) != memory_of(column))
        lofi_set_error("an average with the node in %s (%s) and the column in %s (%s): make both "
                       "for the memory that the data lie in",
                       memory_of(node)->name, node->transport->name, memory_of(column)->name,
                       column->transport->name);
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

/* What was begun on either side before the call is done, and the data are where they belong. */
static lofi_status begin(const struct average *a)
{
    lofi_status st = lofi__comm_check_process(a->node);
    if (st == LOFI_OK) st = lofi__comm_check_process(a->column);
    if (st == LOFI_OK) st = a->memory->check(a->state, a->data);
    if (st == LOFI_OK) st = a->memory->wait(a->node->state);
    if (st == LOFI_OK) st = a->memory->wait(a->state);
    return st;
}

/* Of a piece: pieces lie side by side, and means of aligned ones are faster. */
#define PIECE_COUNT 16u

/* Elements of a chunk, such that sent, got, mean and whole fit. */
static uint64_t chunk_count_of(const struct average *a, size_t scratch_bytes)
{
    const uint64_t unit = (uint64_t)a->nodes * (uint64_t)a->local_size;
    const uint64_t fits =
        scratch_bytes / a->each / (uint64_t)(a->local_size + 3) * (uint64_t)a->local_size / unit;
    const uint64_t piece = fits > PIECE_COUNT ? fits / PIECE_COUNT * PIECE_COUNT : fits;
    return piece > 1 ? piece * unit : unit;
}

static lofi_status allocate_one(const struct average *a, size_t bytes, char **out)
{
    void *memory = NULL;
    lofi_status st = a->memory->allocate(a->state, bytes, &memory);
    *out = memory;
    return st;
}

static lofi_status allocate(struct average *a, uint64_t chunk_count)
{
    const size_t shard = (size_t)chunk_count / (size_t)a->local_size * a->each;

    a->in = lofi__mem_create((size_t)a->nodes, sizeof *a->in);
    if (a->in == NULL) return LOFI_NO_MEMORY;
    lofi_status st = allocate_one(a, shard, &a->sent);
    if (st == LOFI_OK) st = allocate_one(a, shard, &a->got);
    if (st == LOFI_OK) st = allocate_one(a, shard / (size_t)a->nodes, &a->mean);
    if (st == LOFI_OK) st = allocate_one(a, (size_t)chunk_count * a->each, &a->whole);
    return st;
}

static void release(const struct average *a)
{
    a->memory->release(a->state, a->whole);
    a->memory->release(a->state, a->mean);
    a->memory->release(a->state, a->got);
    a->memory->release(a->state, a->sent);
    lofi__mem_destroy(a->in);
}

lofi_status lofi_finalize_average(lofi_comm *node, lofi_comm *column, lofi_dtype dtype, void *data,
                                  size_t count, const double *weights, size_t scratch_bytes)
{
    lofi_status st = check(node, column, dtype, data, count, scratch_bytes);
    if (st != LOFI_OK || count == 0) return st;

    struct average a = {.node = node,
                        .column = column,
                        .memory = memory_of(column),
                        .state = column->state,
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
    st = begin(&a);
    if (st != LOFI_OK) return st;
    st = allocate(&a, chunk_count);
    const uint64_t chunks = lofi_chunk_total(count, a.nodes, a.local_size, chunk_count);
    for (uint64_t i = 0; i < chunks && st == LOFI_OK; i++) {
        lofi_chunk chunk;
        st = lofi_chunk_at(count, a.nodes, a.local_size, chunk_count, i, &chunk);
        if (st == LOFI_OK) st = average_chunk(&a, &chunk);
    }
    if (st == LOFI_OK) st = a.memory->wait(a.state);
    release(&a);
    return st;
}
