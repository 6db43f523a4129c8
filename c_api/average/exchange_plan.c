/* SPDX-License-Identifier: MIT */
/*
 * The plan of an exchange: how a row is cut, and the order of the steps.
 *
 * All chunks but the last are of one size, a multiple of K * L, so any chunk is found by arithmetic
 * and only the last is padded. To spread the remainder over all chunks would pad each of them.
 *
 * With slots to spare, chunk i gives while chunk i - 1 is combined and chunk i - 2 is shared: at
 * time t there is one step of each kind, for the chunk t - kind. Three slots suffice, as the step
 * that ends with a slot comes at time i + 2 and the one that takes it again at i + slots.
 */
#include "lofi/exchange.h"

#include "core/options.h"

#define ALIGNED 16u                    /* elements of a piece */
#define MOST_ELEMENTS (UINT64_MAX / 4) /* so that steps can be counted, whatever the chunks */

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

static uint64_t pieces_of(const lofi_exchange_shape *shape)
{
    return (uint64_t)shape->nodes * (uint64_t)shape->local_size;
}

static lofi_status read_shape(const lofi_exchange_shape *given, lofi_exchange_shape *shape)
{
    static const lofi_exchange_shape init = LOFI_EXCHANGE_SHAPE_INIT;

    *shape = init;
    lofi_status st = lofi__options_read(shape, sizeof *shape, given, "LOFI_EXCHANGE_SHAPE_INIT");
    if (st != LOFI_OK) return st;
    if (shape->count > MOST_ELEMENTS) {
        lofi_set_error("an exchange of %llu elements: there may be %llu",
                       (unsigned long long)shape->count, (unsigned long long)MOST_ELEMENTS);
        return LOFI_INVALID;
    }
    if (shape->nodes >= 1 && shape->local_size >= 1 && shape->slots >= 1 &&
        shape->element_bytes >= 1 && shape->chunk_count >= 1)
        return LOFI_OK;
    lofi_set_error(
        "an exchange of chunks of %llu elements of %llu bytes in %d slots, over %d nodes "
        "of %d ranks: all of these have to be at least 1",
        (unsigned long long)shape->chunk_count, (unsigned long long)shape->element_bytes,
        shape->slots, shape->nodes, shape->local_size);
    return LOFI_INVALID;
}

/* Elements in every chunk but the last. */
static uint64_t chunk_step(const lofi_exchange_shape *shape)
{
    const uint64_t unit = pieces_of(shape);
    const uint64_t units = divide_up(shape->chunk_count, unit);

    /* A chunk that holds everything needs no rounding, which could overflow. */
    if (shape->chunk_count >= shape->count || units > shape->count / unit) return shape->count;
    return units * unit;
}

static uint64_t at_most(uint64_t a, uint64_t most)
{
    return a < most ? a : most;
}

/* Chunks of `kind` whose step comes before time t. */
static uint64_t before(uint64_t t, uint64_t kind, uint64_t chunks)
{
    return t < kind ? 0 : at_most(t - kind, chunks);
}

/* Kind and chunk of step number `index` where they are interleaved. */
static void find_interleaved(uint64_t index, uint64_t chunks, lofi_exchange_step *step)
{
    uint64_t t = index / LOFI_EXCHANGE_KIND_COUNT, first = 0; /* `first` step of time t + 1 */

    for (;; t++) {
        first = 0;
        for (uint64_t kind = 0; kind < LOFI_EXCHANGE_KIND_COUNT; kind++)
            first += before(t + 1, kind, chunks);
        if (first > index) break; /* soon: a time has at most one step of each kind */
    }
    /* Counted back from the last step of time t, which is of the latest kind that it has. */
    for (uint64_t kind = LOFI_EXCHANGE_KIND_COUNT; kind-- > 0;) {
        if (t < kind || t - kind >= chunks) continue;
        if (--first != index) continue;
        step->kind = (lofi_exchange_kind)kind;
        step->chunk = t - kind;
        return;
    }
}

static void find(const lofi_exchange_shape *shape, uint64_t index, uint64_t chunks,
                 lofi_exchange_step *step)
{
    if (shape->slots >= LOFI_EXCHANGE_KIND_COUNT) {
        find_interleaved(index, chunks, step);
        return;
    }
    step->kind = (lofi_exchange_kind)(index % LOFI_EXCHANGE_KIND_COUNT);
    step->chunk = index / LOFI_EXCHANGE_KIND_COUNT;
}

static uint64_t sent_bytes(const lofi_exchange_shape *shape, const lofi_exchange_step *step)
{
    if (step->kind == LOFI_EXCHANGE_SHARE) return 0;
    if (step->kind == LOFI_EXCHANGE_GIVE && !shape->gives) return 0;
    return (uint64_t)(shape->nodes - 1) * step->piece_count * shape->element_bytes;
}

static uint64_t steps_of(const lofi_exchange_shape *shape)
{
    if (shape->count == 0) return 0;
    return divide_up(shape->count, chunk_step(shape)) * LOFI_EXCHANGE_KIND_COUNT;
}

uint64_t lofi_exchange_steps(const lofi_exchange_shape *given)
{
    lofi_exchange_shape shape;

    return read_shape(given, &shape) == LOFI_OK ? steps_of(&shape) : 0;
}

lofi_status lofi_exchange_step_at(const lofi_exchange_shape *given, uint64_t index,
                                  lofi_exchange_step *step)
{
    lofi_exchange_shape shape;

    lofi_status st = read_shape(given, &shape);
    if (st != LOFI_OK) return st;
    const uint64_t steps = steps_of(&shape);
    if (step == NULL || index >= steps) {
        lofi_set_error("there is no step %llu: an exchange of %llu elements has %llu steps",
                       (unsigned long long)index, (unsigned long long)shape.count,
                       (unsigned long long)steps);
        return LOFI_INVALID;
    }
    const uint64_t size = chunk_step(&shape);
    find(&shape, index, steps / LOFI_EXCHANGE_KIND_COUNT, step);
    step->slot = (int)(step->chunk % (uint64_t)shape.slots);
    step->begin = step->chunk * size;
    step->count = at_most(shape.count - step->begin, size);
    step->piece_count = divide_up(step->count, pieces_of(&shape));
    step->sent_bytes = sent_bytes(&shape, step);
    return LOFI_OK;
}

uint64_t lofi_exchange_fit(const lofi_exchange_shape *given, uint64_t scratch_bytes,
                           uint64_t pieces_beside)
{
    lofi_exchange_shape shape;

    if (read_shape(given, &shape) != LOFI_OK) return 0;
    const uint64_t pieces = 2 * (uint64_t)shape.nodes + 1 + pieces_beside;
    const uint64_t fits = scratch_bytes / (uint64_t)shape.slots / pieces / shape.element_bytes;
    const uint64_t piece = fits > ALIGNED ? fits / ALIGNED * ALIGNED : fits;
    return (piece > 1 ? piece : 1) * pieces_of(&shape);
}
