/* SPDX-License-Identifier: MIT */
/* Which tensors differ, against a comparison of every pair of ranks, for random tables. */
#include "test.h"

enum { NODES = 4, PLACES = 3, TENSORS = 5 };

static lofi_digest digests[NODES * PLACES * TENSORS];

static int differ(int tensors, int tensor, int rank, int other)
{
    return memcmp(&digests[rank * tensors + tensor], &digests[other * tensors + tensor],
                  sizeof *digests) != 0;
}

/* Of a tensor, by its definition: any two nodes, at the places that hold a value of the node. */
static int brute_force(int nodes, int size, int tensors, int tensor, int shard)
{
    int found = 0;

    for (int rank = 0; rank < nodes * size; rank++)
        for (int other = 0; other < nodes * size; other++) {
            const int same_place = rank % size == other % size;
            const int holds = shard || rank % size == 0;
            if (same_place && holds && differ(tensors, tensor, rank, other))
                found |= LOFI_DIFFERS_BETWEEN;
            if (!shard && rank / size == other / size && differ(tensors, tensor, rank, other))
                found |= LOFI_DIFFERS_INSIDE;
        }
    return found;
}

static void test_random_tables(void)
{
    uint64_t seed = 1;
    unsigned seen = 0;

    for (int round = 0; round < 20000; round++) {
        const int nodes = 1 + (int)(test_random(&seed) % NODES);
        const int size = 1 + (int)(test_random(&seed) % PLACES);
        const int tensors = 1 + (int)(test_random(&seed) % TENSORS);
        unsigned char is_shard[TENSORS], differs[TENSORS];

        memset(digests, 0, sizeof digests);
        for (int i = 0; i < nodes * size * tensors;
             i++) /* most are equal; either word may differ */
            if (test_random(&seed) % 8 == 0) digests[i].word[test_random(&seed) % 2] = 1;
        for (int i = 0; i < tensors; i++)
            is_shard[i] = test_random(&seed) % 2;
        const int any = test_random(&seed) % 4 != 0;
        EXPECT(lofi_differences(digests, nodes, size, (size_t)tensors, any ? is_shard : NULL,
                                differs) == LOFI_OK);
        for (int i = 0; i < tensors; i++) {
            EXPECT(differs[i] == brute_force(nodes, size, tensors, i, any && is_shard[i]));
            seen |= 1u << differs[i];
        }
    }
    EXPECT(seen == 0xf); /* each of the four answers was given */
}

static void test_bad(void)
{
    unsigned char differs = 9;

    EXPECT(lofi_differences(NULL, 1, 1, 1, NULL, &differs) == LOFI_INVALID);
    EXPECT(lofi_differences(digests, 1, 1, 1, NULL, NULL) == LOFI_INVALID);
    EXPECT(lofi_differences(digests, 0, 1, 1, NULL, &differs) == LOFI_INVALID);
    EXPECT_ERROR("differences of 1 tensors of 0 nodes of 1 ranks");
    EXPECT(lofi_differences(digests, 1, -1, 1, NULL, &differs) == LOFI_INVALID);
    EXPECT(lofi_differences(digests, 1, 1, 0, NULL, &differs) == LOFI_INVALID);
    EXPECT(differs == 9);
}

int main(void)
{
    test_random_tables();
    test_bad();
    return test_end();
}
