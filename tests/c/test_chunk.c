/* SPDX-License-Identifier: MIT */
/* Chunks cover the data once, in order, in bounds. */
#include "test.h"

static void check_cover(uint64_t total, int nodes, int local, uint64_t size)
{
    uint64_t chunks = lofi_chunk_total(total, nodes, local, size);
    uint64_t unit = (uint64_t)nodes * (uint64_t)local, end = 0;
    uint64_t largest = (size + unit - 1) / unit * unit;
    lofi_chunk chunk;

    EXPECT(chunks >= 1);
    for (uint64_t i = 0; i < chunks; i++) {
        if (!EXPECT(lofi_chunk_at(total, nodes, local, size, i, &chunk) == LOFI_OK)) return;
        EXPECT(chunk.begin == end && chunk.count >= 1 && chunk.count <= largest);
        EXPECT(chunk.piece_count * unit >= chunk.count);
        EXPECT((chunk.piece_count - 1) * unit < chunk.count);
        EXPECT(i + 1 == chunks || chunk.count == largest); /* only the last is padded */
        end += chunk.count;
    }
    EXPECT(end == total);
    EXPECT(lofi_chunk_at(total, nodes, local, size, chunks, &chunk) == LOFI_INVALID);
}

static void test_bad(void)
{
    lofi_chunk chunk = {7, 7, 7};

    EXPECT(lofi_chunk_total(0, 2, 2, 8) == 0 && lofi_chunk_total(8, 0, 2, 8) == 0);
    EXPECT(lofi_chunk_total(8, 2, -1, 8) == 0 && lofi_chunk_total(8, 2, 2, 0) == 0);
    EXPECT(lofi_chunk_at(0, 2, 2, 8, 0, &chunk) == LOFI_INVALID);
    EXPECT(lofi_chunk_at(8, 0, 2, 8, 0, &chunk) == LOFI_INVALID);
    EXPECT(lofi_chunk_at(8, 2, 0, 8, 0, &chunk) == LOFI_INVALID);
    EXPECT(lofi_chunk_at(8, 2, 2, 0, 0, &chunk) == LOFI_INVALID);
    EXPECT_ERROR("can't cut 8 elements into chunks of 0 for 2 nodes of 2 ranks");
    EXPECT(lofi_chunk_at(8, 2, 2, 4, 2, &chunk) == LOFI_INVALID);
    EXPECT_ERROR("there is no chunk 2: 8 elements make 2 chunks");
    EXPECT(chunk.begin == 7 && chunk.count == 7 && chunk.piece_count == 7);
}

static void test_huge(void)
{
    lofi_chunk chunk;
    const uint64_t huge = UINT64_MAX;

    EXPECT(lofi_chunk_total(huge, 3, 5, huge) == 1);
    EXPECT(lofi_chunk_at(huge, 3, 5, huge, 0, &chunk) == LOFI_OK);
    EXPECT(chunk.begin == 0 && chunk.count == huge && chunk.piece_count == huge / 15);
    EXPECT(lofi_chunk_total(huge, 2147483647, 2147483647, 1) == 5);
    EXPECT(lofi_chunk_at(huge, 2147483647, 2147483647, 1, 4, &chunk) == LOFI_OK);
    EXPECT(chunk.begin + chunk.count == huge && chunk.piece_count == 1);
    EXPECT(lofi_chunk_total(5, 2147483647, 2147483647, huge) == 1);
    EXPECT(lofi_chunk_total(huge, 1, 1, 1) == huge);
    EXPECT(lofi_chunk_at(huge, 1, 1, 1, huge - 1, &chunk) == LOFI_OK);
    EXPECT(chunk.begin == huge - 1 && chunk.count == 1 && chunk.piece_count == 1);
}

int main(void)
{
    for (int nodes = 1; nodes <= 5; nodes++)
        for (int local = 1; local <= 4; local++)
            for (uint64_t total = 1; total <= 70; total++)
                for (uint64_t size = 1; size <= 80; size += 3)
                    check_cover(total, nodes, local, size);
    check_cover(UINT64_C(70000000001), 4, 8, UINT64_C(67108864));
    test_bad();
    test_huge();
    return test_end();
}
