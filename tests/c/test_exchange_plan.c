/* SPDX-License-Identifier: MIT */
/*
 * The plan of an exchange: chunks cover the row once, in bounds, and the steps come in an order in
 * which each chunk is given, combined and shared, in buffers that no other chunk uses meanwhile.
 */
#include "test.h"

static lofi_exchange_shape shape_of(uint64_t count, int nodes, int local_size, int slots,
                                    uint64_t chunk_count)
{
    lofi_exchange_shape shape = LOFI_EXCHANGE_SHAPE_INIT;

    shape.count = count;
    shape.element_bytes = 4;
    shape.nodes = nodes;
    shape.local_size = local_size;
    shape.slots = slots;
    shape.chunk_count = chunk_count;
    return shape;
}

/* What has been seen of a plan: by slot, the chunk in it and the step that it is at. */
struct seen {
    int64_t chunk[8];
    int next_kind[8];
    uint64_t given, end;
};

static void check_cut(const lofi_exchange_shape *shape, const lofi_exchange_step *step,
                      uint64_t end)
{
    const uint64_t unit = (uint64_t)shape->nodes * (uint64_t)shape->local_size;
    const uint64_t largest = (shape->chunk_count + unit - 1) / unit * unit;

    EXPECT(step->begin == end && step->count >= 1 && step->count <= largest);
    EXPECT(step->piece_count * unit >= step->count);
    EXPECT((step->piece_count - 1) * unit < step->count);
    /* Only the last is padded. */
    EXPECT(step->begin + step->count == shape->count || step->count == largest);
}

/* A chunk takes a slot when it is given, goes through its steps there, and leaves it when shared. */
static void check_slot(struct seen *seen, const lofi_exchange_step *step)
{
    const int slot = step->slot;

    if (step->kind == LOFI_EXCHANGE_GIVE) {
        EXPECT(seen->chunk[slot] == -1 && step->chunk == seen->given);
        seen->chunk[slot] = (int64_t)step->chunk;
        seen->next_kind[slot] = LOFI_EXCHANGE_COMBINE;
        seen->given++;
        seen->end += step->count;
        return;
    }
    EXPECT(seen->chunk[slot] == (int64_t)step->chunk && seen->next_kind[slot] == (int)step->kind);
    seen->next_kind[slot]++;
    if (step->kind == LOFI_EXCHANGE_SHARE) seen->chunk[slot] = -1;
}

static void check_plan(uint64_t count, int nodes, int local_size, int slots, uint64_t chunk_count)
{
    const lofi_exchange_shape shape = shape_of(count, nodes, local_size, slots, chunk_count);
    const uint64_t steps = lofi_exchange_steps(&shape);
    struct seen seen = {.given = 0};
    lofi_exchange_step step;

    for (int slot = 0; slot < 8; slot++)
        seen.chunk[slot] = -1;
    EXPECT(steps >= 3 && steps % 3 == 0);
    for (uint64_t i = 0; i < steps; i++) {
        if (!EXPECT(lofi_exchange_step_at(&shape, i, &step) == LOFI_OK)) return;
        EXPECT(step.slot >= 0 && step.slot < slots);
        if (step.kind == LOFI_EXCHANGE_GIVE) check_cut(&shape, &step, seen.end);
        check_slot(&seen, &step);
    }
    for (int slot = 0; slot < slots; slot++)
        EXPECT(seen.chunk[slot] == -1);
    EXPECT(seen.end == count && seen.given == steps / 3);
    EXPECT(lofi_exchange_step_at(&shape, steps, &step) == LOFI_INVALID);
}

/* From three slots on, a chunk is given before the one before it is combined. */
static void test_interleaved(void)
{
    static const struct {
        int kind, chunk;
    } want[] = {{0, 0}, {0, 1}, {1, 0}, {0, 2}, {1, 1}, {2, 0},
                {0, 3}, {1, 2}, {2, 1}, {1, 3}, {2, 2}, {2, 3}};
    const lofi_exchange_shape shape = shape_of(8, 2, 1, 3, 2);
    lofi_exchange_step step;

    EXPECT(lofi_exchange_steps(&shape) == 12);
    for (uint64_t i = 0; i < 12; i++) {
        EXPECT(lofi_exchange_step_at(&shape, i, &step) == LOFI_OK);
        EXPECT((int)step.kind == want[i].kind && step.chunk == (uint64_t)want[i].chunk);
    }
}

/* Who gives or not changes the bytes that are sent, and nothing else. */
static void test_bytes(void)
{
    uint64_t sent[2] = {0, 0};

    for (int gives = 0; gives < 2; gives++) {
        lofi_exchange_shape shape = shape_of(1000, 4, 2, 1, 250);
        shape.gives = gives;
        for (uint64_t i = 0; i < lofi_exchange_steps(&shape); i++) {
            lofi_exchange_step step;
            EXPECT(lofi_exchange_step_at(&shape, i, &step) == LOFI_OK);
            sent[gives] += step.sent_bytes;
        }
    }
    /* Chunks of 256 (and 232) elements: each rank has half a chunk, and sends 3/4 of it, twice. */
    EXPECT(sent[1] == UINT64_C(2) * 3 * (3 * 32 + 29) * 4);
    EXPECT(sent[0] == sent[1] / 2);
}

static void test_bad(void)
{
    lofi_exchange_step step = {LOFI_EXCHANGE_SHARE, 7, 7, 7, 7, 7, 7};
    lofi_exchange_shape shape = shape_of(8, 2, 2, 1, 4);

    EXPECT(lofi_exchange_step_at(&shape, 6, &step) == LOFI_INVALID);
    EXPECT_ERROR("there is no step 6: an exchange of 8 elements has 6 steps");
    shape = shape_of(0, 2, 2, 1, 8);
    EXPECT(lofi_exchange_steps(&shape) == 0);
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_INVALID);
    shape = shape_of(8, 0, 2, 1, 8);
    EXPECT(lofi_exchange_steps(&shape) == 0 && lofi_exchange_fit(&shape, 1 << 20, 0) == 0);
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_INVALID);
    EXPECT_ERROR("over 0 nodes of 2 ranks: all of these have to be at least 1");
    shape = shape_of(8, 2, -1, 1, 8);
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_INVALID);
    shape = shape_of(8, 2, 2, 0, 8);
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_INVALID);
    shape = shape_of(8, 2, 2, 1, 0);
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_INVALID);
    shape = shape_of(UINT64_MAX, 2, 2, 1, 1);
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_INVALID);
    shape = shape_of(8, 2, 2, 1, 4);
    EXPECT(lofi_exchange_step_at(&shape, 0, NULL) == LOFI_INVALID);
    EXPECT(lofi_exchange_step_at(NULL, 0, &step) == LOFI_INVALID);
    shape.size = sizeof shape + 1;
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_ABI);
    EXPECT(step.kind == LOFI_EXCHANGE_SHARE && step.chunk == 7 && step.sent_bytes == 7);
}

static void test_huge(void)
{
    const uint64_t huge = UINT64_MAX / 4;
    lofi_exchange_step step;

    lofi_exchange_shape shape = shape_of(huge, 3, 5, 1, huge);
    EXPECT(lofi_exchange_steps(&shape) == 3);
    EXPECT(lofi_exchange_step_at(&shape, 0, &step) == LOFI_OK);
    EXPECT(step.begin == 0 && step.count == huge && step.piece_count == huge / 15 + 1);
    shape = shape_of(huge, 2147483647, 2147483647, 1, 1);
    EXPECT(lofi_exchange_steps(&shape) == 6);
    EXPECT(lofi_exchange_step_at(&shape, 3, &step) == LOFI_OK);
    EXPECT(step.begin + step.count == huge && step.piece_count == 1);
    for (int slots = 1; slots <= 3; slots += 2) {
        shape = shape_of(huge, 1, 1, slots, 1);
        EXPECT(lofi_exchange_steps(&shape) == huge * 3);
        EXPECT(lofi_exchange_step_at(&shape, huge * 3 - 1, &step) == LOFI_OK);
        EXPECT(step.kind == LOFI_EXCHANGE_SHARE && step.begin == huge - 1 && step.count == 1);
    }
}

/* The buffers fit; a piece more for each node, or alignment, would not. */
static void test_fit(void)
{
    for (int nodes = 1; nodes <= 5; nodes++)
        for (int local_size = 1; local_size <= 3; local_size++)
            for (uint64_t scratch = 1; scratch < 70000; scratch = scratch * 3 + 1) {
                const lofi_exchange_shape shape = shape_of(1, nodes, local_size, 4, 1);
                const uint64_t unit = (uint64_t)nodes * (uint64_t)local_size;
                const uint64_t chunk = lofi_exchange_fit(&shape, scratch, unit);
                const uint64_t piece = chunk / unit;
                const uint64_t each = 4 * 4 * (2 * (uint64_t)nodes + 1 + unit);
                EXPECT(chunk % unit == 0 && piece >= 1);
                EXPECT(piece == 1 || piece * each <= scratch);
                EXPECT((piece + 16) * each > scratch);
                EXPECT(piece < 16 || piece % 16 == 0);
            }
}

int main(void)
{
    for (int nodes = 1; nodes <= 5; nodes++)
        for (int local_size = 1; local_size <= 4; local_size++)
            for (uint64_t count = 1; count <= 70; count += 1 + count / 20)
                for (uint64_t chunk_count = 1; chunk_count <= 80; chunk_count += 3)
                    for (int slots = 1; slots <= 5; slots++)
                        check_plan(count, nodes, local_size, slots, chunk_count);
    check_plan(UINT64_C(70000000001), 4, 8, 4, UINT64_C(67108864));
    test_interleaved();
    test_bytes();
    test_bad();
    test_huge();
    test_fit();
    return test_end();
}
