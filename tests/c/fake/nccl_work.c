/* SPDX-License-Identifier: MIT */
/* The fake NCCL: what its operations do when a stream comes to them. */
#define _GNU_SOURCE
#include "fake/nccl_inside.h"
#include "kernels/halffloat.h"

#include <stdlib.h>
#include <string.h>

size_t fake__type_bytes(lofi__nccl_type type)
{
    static const unsigned char bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return type >= 0 && type < (int)sizeof bytes ? bytes[type] : 0;
}

static int is_float(lofi__nccl_type type)
{
    return type >= LOFI__NCCL_FLOAT16;
}

/* ---- numbers ---- */

/* One of the two is read. */
struct number {
    double real;
    uint64_t whole; /* in two's complement */
};

static struct number load(lofi__nccl_type type, const char *from)
{
    struct number x = {0, 0};
    uint16_t half;
    float narrow;
    int32_t word;

    switch (type) {
    case LOFI__NCCL_FLOAT64:
        memcpy(&x.real, from, sizeof x.real);
        break;
    case LOFI__NCCL_FLOAT32:
        memcpy(&narrow, from, sizeof narrow);
        x.real = narrow;
        break;
    case LOFI__NCCL_FLOAT16:
        memcpy(&half, from, sizeof half);
        x.real = lofi__f16_to_f64(half);
        break;
    case LOFI__NCCL_BFLOAT16:
        memcpy(&half, from, sizeof half);
        x.real = lofi__bf16_to_f64(half);
        break;
    case LOFI__NCCL_INT8:
        x.whole = (uint64_t)(int64_t)(int8_t)*from;
        break;
    case LOFI__NCCL_UINT8:
        x.whole = (uint8_t)*from;
        break;
    case LOFI__NCCL_INT32:
        memcpy(&word, from, sizeof word);
        x.whole = (uint64_t)(int64_t)word;
        break;
    default:
        memcpy(&x.whole, from, sizeof x.whole);
        break;
    }
    return x;
}

static void store(lofi__nccl_type type, struct number x, char *to)
{
    const float narrow = (float)x.real;
    uint16_t half = 0;

    if (type == LOFI__NCCL_FLOAT64) {
        memcpy(to, &x.real, sizeof x.real);
    } else if (type == LOFI__NCCL_FLOAT32) {
        memcpy(to, &narrow, sizeof narrow);
    } else if (is_float(type)) {
        half = type == LOFI__NCCL_FLOAT16 ? lofi__f64_to_f16(x.real) : lofi__f64_to_bf16(x.real);
        memcpy(to, &half, sizeof half);
    } else {
        memcpy(to, &x.whole, fake__type_bytes(type)); /* little-endian, as all GPUs' hosts are */
    }
}

static struct number combine(lofi__nccl_type type, lofi__nccl_op op, struct number a,
                             struct number b)
{
    const int less = is_float(type) ? b.real < a.real : (int64_t)b.whole < (int64_t)a.whole;

    switch (op) {
    case LOFI__NCCL_PRODUCT:
        return (struct number){a.real * b.real, a.whole * b.whole};
    case LOFI__NCCL_MIN:
        return less ? b : a;
    case LOFI__NCCL_MAX:
        return less ? a : b;
    default:
        return (struct number){a.real + b.real, a.whole + b.whole};
    }
}

/* Element `i` of call `index` of all ranks, from the last to the first. */
static struct number reduce(const struct world *world, int index, size_t i)
{
    struct number sum = {0, 0};

    for (int rank = world->count - 1; rank >= 0; rank--) {
        const struct call *call = &world->now[rank]->call[index];
        struct number x =
            load(call->type, (const char *)call->in + i * fake__type_bytes(call->type));
        if (call->op == FAKE__FIRST_OP) {
            const struct number factor = load(call->type, call->scalar);
            x.real *= factor.real;
            x.whole *= factor.whole;
        }
        sum = rank == world->count - 1 ? x : combine(call->type, call->op, sum, x);
    }
    if (world->now[0]->call[index].op == LOFI__NCCL_AVG) sum.real /= world->count;
    return sum;
}

/* ---- calls ---- */

static int is(const struct call *call, const char *name)
{
    return strcmp(call->name, name) == 0;
}

/* The slots of a call on this side. */
static size_t slots(const struct call *call, int ranks, int of_output)
{
    return is(call, of_output ? "ncclAllGather" : "ncclReduceScatter") ? (size_t)ranks : 1;
}

/* All that a call touches is on a device. */
static int is_on_device(const struct call *call, int rank, int ranks)
{
    const size_t bytes = call->count * fake__type_bytes(call->type);
    const int reads = !is(call, "ncclRecv") && (!is(call, "ncclBroadcast") || call->peer == rank);
    const int writes = !is(call, "ncclSend") && (!is(call, "ncclReduce") || call->peer == rank);

    if (reads && !fake_cuda_is_device(call->in, slots(call, ranks, 0) * bytes)) return 0;
    return !writes || fake_cuda_is_device(call->out, slots(call, ranks, 1) * bytes);
}

/* How many elements of a slot get a result: with one rank, and a factor, not always all of them.
 * NVIDIA/nccl issue 1950: the share of a block is rounded down before it is rounded up to 16 bytes. */
static size_t reached(const struct world *world, const struct call *call)
{
    const size_t each = fake__type_bytes(call->type), pack = 16 / each;
    const size_t needed = (call->count * each + 16383) / 16384;
    const int has_factor = call->op == FAKE__FIRST_OP || call->op == LOFI__NCCL_AVG;

    if (world->count > 1 || !has_factor || call->count == 0) return call->count;
    const size_t blocks = needed < 32 ? needed : 32;
    const size_t share = (call->count / blocks + pack - 1) / pack * pack;
    return share * blocks < call->count ? share * blocks : call->count;
}

/* Collective number `index` of all ranks. */
static void run_collective(const struct world *world, int index)
{
    const struct call *first = &world->now[0]->call[index];
    const size_t each = fake__type_bytes(first->type), bytes = first->count * each;
    const size_t ranks = (size_t)world->count;
    const int reduces = !is(first, "ncclBroadcast") && !is(first, "ncclAllGather");
    const size_t blocks = is(first, "ncclAllGather") || is(first, "ncclReduceScatter") ? ranks : 1;
    char *result = malloc(blocks * bytes + 1);

    if (result == NULL) abort();
    for (size_t i = 0; reduces && i < blocks * first->count; i++)
        store(first->type, reduce(world, index, i), result + i * each);
    if (is(first, "ncclBroadcast")) memcpy(result, world->now[first->peer]->call[index].in, bytes);
    for (size_t rank = 0; is(first, "ncclAllGather") && rank < ranks; rank++)
        memcpy(result + rank * bytes, world->now[rank]->call[index].in, bytes);
    for (size_t rank = 0; rank < ranks; rank++) {
        const struct call *call = &world->now[rank]->call[index];
        if (is(call, "ncclReduce") && call->peer != (int)rank) continue;
        if (is(call, "ncclReduceScatter"))
            memcpy(call->out, result + rank * bytes, reached(world, call) * each);
        else
            memcpy(call->out, result, blocks * reached(world, call) * each);
    }
    free(result);
}

static int is_peer_call(const struct call *call)
{
    return is(call, "ncclSend") || is(call, "ncclRecv");
}

static struct call *find_peer(const struct world *world, int rank, const struct call *call)
{
    struct part *part = world->now[call->peer];
    for (int i = 0; i < part->count; i++) {
        struct call *other = &part->call[i];
        if (is_peer_call(other) && !is(other, call->name) && other->peer == rank &&
            other->count == call->count && other->type == call->type)
            return other;
    }
    return NULL;
}

static int is_same(const struct call *a, const struct call *b)
{
    return is(a, b->name) && a->count == b->count && a->type == b->type && a->op == b->op &&
           a->peer == b->peer && memcmp(a->scalar, b->scalar, sizeof a->scalar) == 0;
}

/* Each send has its receive and the other way round, and all else is the same on all ranks. */
static int fits(const struct world *world)
{
    for (int rank = 0; rank < world->count; rank++) {
        const struct part *part = world->now[rank], *first = world->now[0];
        for (int i = 0; i < part->count; i++) {
            const struct call *call = &part->call[i];
            if (is_peer_call(call) ? find_peer(world, rank, call) == NULL
                                   : i >= first->count || !is_same(call, &first->call[i]))
                return 0;
        }
        if (!is_peer_call(&part->call[0]) && part->count != first->count) return 0;
    }
    return 1;
}

static lofi__cu_result run_all(struct world *world)
{
    for (int rank = 0; rank < world->count; rank++)
        for (int i = 0; i < world->now[rank]->count; i++)
            if (!is_on_device(&world->now[rank]->call[i], rank, world->count))
                return FAKE_CUDA_ILLEGAL_ADDRESS;
    for (int i = 0; i < world->now[0]->count; i++)
        if (!is_peer_call(&world->now[0]->call[i])) run_collective(world, i);
    for (int rank = 0; rank < world->count; rank++)
        for (int i = 0; i < world->now[rank]->count; i++) {
            const struct call *call = &world->now[rank]->call[i];
            if (is(call, "ncclSend"))
                memmove(find_peer(world, rank, call)->out, call->in,
                        call->count * fake__type_bytes(call->type));
        }
    return 0;
}

lofi__cu_result fake__run_part(void *ctx)
{
    struct part *part = ctx;
    struct world *world = part->world;
    lofi__cu_result result = 0;

    if (world->is_aborted || world->number > part->number) return 0;
    if (!part->has_come) {
        part->has_come = 1;
        world->now[part->rank] = part;
        world->waiting++;
    }
    if (world->waiting < world->count || world->is_stuck) return LOFI__CU_NOT_READY;
    if (!fits(world)) {
        fake__note_mismatch();
        world->is_stuck = 1;
        return LOFI__CU_NOT_READY;
    }
    result = run_all(world);
    world->waiting = 0;
    world->number++;
    return result;
}
