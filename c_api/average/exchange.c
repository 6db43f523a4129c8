/* SPDX-License-Identifier: MIT */
/*
 * The exchange on two communicators, one step of the plan after the other.
 *
 * The data stay where they lie: the transport's table does all that is done with memory, on the
 * column's side. Elements travel as bytes of their own dtype until the one rounding in the mean.
 */
#include "average/host_memory.h"
#include "comm/comm.h"
#include "core/mem.h"
#include "core/options.h"

#define SCRATCH_BYTES ((size_t)64 << 20)
#define SCRATCH_LEAST ((size_t)4 << 10)

struct exchange {
    lofi_comm *node, *column;
    const struct lofi__memory *memory;
    void *state; /* of `memory`: the column's */
    lofi_exchange_shape shape;
    int place;
    int givers;
    lofi_dtype dtype;
    size_t each; /* bytes of an element */
    char *data;
    const unsigned char *gives; /* may be NULL */
    double *weights;            /* of those that give; NULL: all equal */
    lofi_mix mix;               /* for a base */
    const char *base;
    char *sent, *got; /* K pieces each */
    char *mean;       /* one piece */
    char *whole;      /* L shards, for the last chunk, which is padded */
    const void **in;  /* the pieces that are averaged, in the process's own memory */
};

/* Bytes of the part of the chunk that begins `offset` elements in, `count` elements long, which lie
 * before the end of the row. */
static size_t bytes_before_end(const struct exchange *x, const lofi_exchange_step *step,
                               uint64_t offset, uint64_t count)
{
    if (offset >= step->count) return 0;
    return (size_t)(step->count - offset < count ? step->count - offset : count) * x->each;
}

static lofi_status all_to_all(const struct exchange *x, size_t bytes)
{
    lofi_task task = LOFI_TASK_INIT;
    task.collective = LOFI_ALL_TO_ALL;
    task.count = bytes;
    task.in = x->sent;
    task.out = x->got;
    return lofi_run(x->column, &task);
}

static lofi_status give(const struct exchange *x, const lofi_exchange_step *step)
{
    const uint64_t shard = step->piece_count * (uint64_t)x->shape.nodes;
    const uint64_t offset = shard * (uint64_t)x->place;
    const size_t own = x->shape.gives ? bytes_before_end(x, step, offset, shard) : 0;

    lofi_status st = x->memory->zero(x->state, x->sent, (size_t)shard * x->each);
    if (st == LOFI_OK && own > 0)
        st = x->memory->copy(x->state, x->sent, x->data + (size_t)(step->begin + offset) * x->each,
                             own);
    /* All pieces are of one size here, so that a node that gives nothing sends zeros. */
    return st == LOFI_OK ? all_to_all(x, (size_t)step->piece_count * x->each) : st;
}

/* The pieces that count, side by side, since a device takes means of such. */
static lofi_status gather_givers(const struct exchange *x, size_t piece)
{
    int giver = 0;

    for (int node = 0; node < x->shape.nodes; node++) {
        if (x->gives != NULL && !x->gives[node]) continue;
        char *to = x->got + piece * (size_t)giver, *from = x->got + piece * (size_t)node;
        lofi_status st = to == from ? LOFI_OK : x->memory->copy(x->state, to, from, piece);
        if (st != LOFI_OK) return st;
        x->in[giver++] = to;
    }
    return LOFI_OK;
}

static lofi_status mix_piece(struct exchange *x, const lofi_exchange_step *step)
{
    const uint64_t shard = step->piece_count * (uint64_t)x->shape.nodes;
    const uint64_t offset =
        shard * (uint64_t)x->place + step->piece_count * (uint64_t)lofi_comm_rank(x->column);
    /* The base ends where the row does; the padding is zero. */
    const size_t bytes = bytes_before_end(x, step, offset, step->piece_count);

    lofi_status st = x->memory->zero(x->state, x->mean, (size_t)step->piece_count * x->each);
    if (st != LOFI_OK || bytes == 0) return st;
    x->mix.base = x->base + (size_t)(step->begin + offset) * x->each;
    return lofi_mean_mixed(&x->mix, x->mean, x->in, bytes / x->each);
}

static lofi_status combine(struct exchange *x, const lofi_exchange_step *step)
{
    const size_t piece = (size_t)step->piece_count * x->each;

    lofi_status st = gather_givers(x, piece);
    if (st == LOFI_OK && x->base != NULL)
        st = mix_piece(x, step);
    else if (st == LOFI_OK)
        st = x->memory->mean(x->state, x->dtype, x->mean, x->in, x->weights, x->givers,
                             (size_t)step->piece_count);
    return st == LOFI_OK ? lofi_all_gather(x->column, x->mean, x->sent, piece) : st;
}

static lofi_status share(const struct exchange *x, const lofi_exchange_step *step)
{
    const size_t shard = (size_t)step->piece_count * (size_t)x->shape.nodes * x->each;
    const size_t chunk = (size_t)step->count * x->each;
    char *data = x->data + (size_t)step->begin * x->each;

    if (chunk == shard * (size_t)x->shape.local_size)
        return lofi_all_gather(x->node, x->sent, data, shard);
    lofi_status st = lofi_all_gather(x->node, x->sent, x->whole, shard);
    return st == LOFI_OK ? x->memory->copy(x->state, data, x->whole, chunk) : st;
}

static lofi_status run_steps(struct exchange *x)
{
    const uint64_t steps = lofi_exchange_steps(&x->shape);
    lofi_status st = LOFI_OK;

    for (uint64_t i = 0; i < steps && st == LOFI_OK; i++) {
        lofi_exchange_step step;
        st = lofi_exchange_step_at(&x->shape, i, &step);
        if (st != LOFI_OK) break;
        if (step.kind == LOFI_EXCHANGE_GIVE)
            st = give(x, &step);
        else
            st = step.kind == LOFI_EXCHANGE_COMBINE ? combine(x, &step) : share(x, &step);
    }
    return st == LOFI_OK ? x->memory->wait(x->state) : st;
}

static const struct lofi__memory *memory_of(const lofi_comm *comm)
{
    return comm->transport->memory != NULL ? comm->transport->memory : &lofi__host_memory;
}

static lofi_status check_comms(const lofi_comm *node, const lofi_comm *column)
{
    if (node == NULL || column == NULL)
        lofi_set_error("an average needs the communicator of the node and that of the column");
    else if (memory_of(node) != memory_of(column))
        lofi_set_error("an average with the node in %s (%s) and the column in %s (%s): make both "
                       "for the memory that the data lie in",
                       memory_of(node)->name, node->transport->name, memory_of(column)->name,
                       column->transport->name);
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

static lofi_status check(const lofi_comm *column, const void *data, size_t count,
                         const lofi_exchange_options *o)
{
    if (lofi_dtype_bytes(o->dtype) == 0)
        lofi_set_error("dtype is %d: lofi.h lists the values 0 to %d", (int)o->dtype,
                       LOFI_DTYPE_COUNT - 1);
    else if (data == NULL && count > 0)
        lofi_set_error("an average of %zu elements without data", count);
    else if (o->scratch_bytes != 0 && o->scratch_bytes < SCRATCH_LEAST)
        lofi_set_error("%zu bytes of scratch memory: an average needs at least %zu",
                       o->scratch_bytes, SCRATCH_LEAST);
    else if (o->base != NULL && memory_of(column) != &lofi__host_memory) {
        lofi_set_error("an average with a base in %s: it is mixed on the host only, take "
                       "communicators of the host",
                       memory_of(column)->name);
        return LOFI_UNSUPPORTED;
    } else
        return LOFI_OK;
    return LOFI_INVALID;
}

/* The nodes that give, and their weights. */
static lofi_status read_givers(struct exchange *x, const lofi_exchange_options *o)
{
    const int nodes = x->shape.nodes;

    x->gives = o->gives;
    x->shape.gives = o->gives == NULL || o->gives[lofi_comm_rank(x->column)] != 0;
    if (o->weights != NULL) {
        x->weights = lofi__mem_create((size_t)nodes, sizeof *x->weights);
        if (x->weights == NULL) return LOFI_NO_MEMORY;
    }
    for (int node = 0; node < nodes; node++) {
        if (o->gives != NULL && !o->gives[node]) continue;
        if (o->weights != NULL) x->weights[x->givers] = o->weights[node];
        x->givers++;
    }
    if (x->givers > 0) return LOFI_OK;
    lofi_set_error("an average to which none of %d nodes gives", nodes);
    return LOFI_INVALID;
}

static void read_base(struct exchange *x, const lofi_exchange_options *o)
{
    const lofi_mix init = LOFI_MIX_INIT;

    x->base = o->base;
    x->mix = init;
    x->mix.out_dtype = x->mix.base_dtype = o->dtype;
    x->mix.weights = x->weights;
    x->mix.inputs = x->givers;
    x->mix.alpha = o->alpha;
}

/* The largest chunk for the scratch memory, or one for the whole row if that is smaller. */
static void choose_chunks(struct exchange *x, size_t scratch_bytes)
{
    const uint64_t unit = (uint64_t)x->shape.nodes * (uint64_t)x->shape.local_size;
    const uint64_t needed = (x->shape.count + unit - 1) / unit * unit;
    const uint64_t fits =
        lofi_exchange_fit(&x->shape, scratch_bytes != 0 ? scratch_bytes : SCRATCH_BYTES, unit);

    x->shape.chunk_count = fits < needed ? fits : needed;
}

/* Waits for all that was begun on either side before the call, and looks where the data lie. */
static lofi_status begin(const struct exchange *x)
{
    lofi_status st = lofi__comm_check_process(x->node);
    if (st == LOFI_OK) st = lofi__comm_check_process(x->column);
    if (st == LOFI_OK) st = x->memory->check(x->state, x->data);
    if (st == LOFI_OK) st = x->memory->wait(x->node->state);
    if (st == LOFI_OK) st = x->memory->wait(x->state);
    return st;
}

static lofi_status allocate_one(const struct exchange *x, uint64_t pieces, char **out)
{
    const uint64_t piece_count =
        x->shape.chunk_count / (uint64_t)x->shape.nodes / (uint64_t)x->shape.local_size;
    void *memory = NULL;

    lofi_status st =
        x->memory->allocate(x->state, (size_t)(pieces * piece_count) * x->each, &memory);
    *out = memory;
    return st;
}

static lofi_status allocate(struct exchange *x)
{
    const uint64_t nodes = (uint64_t)x->shape.nodes;

    x->in = lofi__mem_create((size_t)nodes, sizeof *x->in);
    if (x->in == NULL) return LOFI_NO_MEMORY;
    lofi_status st = allocate_one(x, nodes, &x->sent);
    if (st == LOFI_OK) st = allocate_one(x, nodes, &x->got);
    if (st == LOFI_OK) st = allocate_one(x, 1, &x->mean);
    if (st == LOFI_OK) st = allocate_one(x, nodes * (uint64_t)x->shape.local_size, &x->whole);
    return st;
}

static void release(const struct exchange *x)
{
    x->memory->release(x->state, x->whole);
    x->memory->release(x->state, x->mean);
    x->memory->release(x->state, x->got);
    x->memory->release(x->state, x->sent);
    lofi__mem_destroy(x->in);
    lofi__mem_destroy(x->weights);
}

lofi_status lofi_exchange(lofi_comm *node, lofi_comm *column, void *data, size_t count,
                          const lofi_exchange_options *options)
{
    static const lofi_exchange_shape shape = LOFI_EXCHANGE_SHAPE_INIT;
    lofi_exchange_options o = LOFI_EXCHANGE_OPTIONS_INIT;

    lofi_status st = lofi__options_read(&o, sizeof o, options, "LOFI_EXCHANGE_OPTIONS_INIT");
    if (st == LOFI_OK) st = check_comms(node, column);
    if (st == LOFI_OK) st = check(column, data, count, &o);
    if (st != LOFI_OK || count == 0) return st;

    struct exchange x = {.node = node,
                         .column = column,
                         .memory = memory_of(column),
                         .state = column->state,
                         .shape = shape,
                         .place = lofi_comm_rank(node),
                         .dtype = o.dtype,
                         .each = lofi_dtype_bytes(o.dtype),
                         .data = data};
    x.shape.count = count;
    x.shape.element_bytes = x.each;
    x.shape.nodes = lofi_comm_rank_count(column);
    x.shape.local_size = lofi_comm_rank_count(node);
    choose_chunks(&x, o.scratch_bytes);
    st = read_givers(&x, &o);
    if (st == LOFI_OK) read_base(&x, &o);
    if (st == LOFI_OK) st = begin(&x);
    if (st == LOFI_OK) st = allocate(&x);
    if (st == LOFI_OK) st = run_steps(&x);
    release(&x);
    return st;
}

lofi_status lofi_finalize_average(lofi_comm *node, lofi_comm *column, lofi_dtype dtype, void *data,
                                  size_t count, const double *weights, size_t scratch_bytes)
{
    lofi_exchange_options options = LOFI_EXCHANGE_OPTIONS_INIT;

    options.dtype = dtype;
    options.weights = weights;
    options.scratch_bytes = scratch_bytes;
    return lofi_exchange(node, column, data, count, &options);
}
