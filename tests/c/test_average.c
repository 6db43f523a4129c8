/* SPDX-License-Identifier: MIT */
/*
 * The average over nodes on two communicators, against lofi_mean over everybody's data: the same
 * bits on every rank, for several cuts into nodes, dtypes, sizes that divide badly, and weights.
 */
#define _GNU_SOURCE
#include "ranks.h"

struct layout {
    int nodes, local_size;
    struct ranks_board *node[RANKS_MOST], *column[RANKS_MOST];
};

static lofi_comm *join(struct ranks_board *board, int rank, int count)
{
    struct rank place = {rank, count, NULL, board, 0, 10000};
    return ranks_comm(&place, 10000);
}

/* The weights of a node: the same on all of its ranks. */
static void fill(char *data, lofi_dtype dtype, size_t count, int node)
{
    uint64_t seed = (uint64_t)node * 977 + count;
    const size_t each = lofi_dtype_bytes(dtype);

    for (size_t i = 0; i < count; i++) {
        uint64_t bits = test_random(&seed);
        double wide = (double)(int)(bits % 20011) / 777.0 - 9.0;
        float narrow = (float)wide;
        uint16_t half = (uint16_t)(0x3000 + bits % 0x1400); /* of either 16-bit format */
        const void *from = dtype == LOFI_F64   ? (const void *)&wide
                           : dtype == LOFI_F32 ? (const void *)&narrow
                           : each == 2         ? (const void *)&half
                                               : (const void *)&bits;
        memcpy(data + i * each, from, each);
    }
}

static void check(lofi_comm *node, lofi_comm *column, const struct layout *layout, lofi_dtype dtype,
                  size_t count, const double *weights, size_t scratch_bytes)
{
    const size_t each = lofi_dtype_bytes(dtype);
    char *data = malloc((count + 1) * each), *want = malloc((count + 1) * each);
    void *in[RANKS_MOST];

    for (int k = 0; k < layout->nodes; k++) {
        in[k] = malloc((count + 1) * each);
        fill(in[k], dtype, count, k);
    }
    ASSERT(lofi_mean(dtype, want, (const void *const *)in, weights, layout->nodes, count) ==
           LOFI_OK);
    memset(data, 0x5a, (count + 1) * each);
    fill(data, dtype, count, lofi_comm_rank(column));
    ASSERT(lofi_finalize_average(node, column, dtype, data, count, weights, scratch_bytes) ==
           LOFI_OK);
    if (!EXPECT(memcmp(data, want, count * each) == 0))
        fprintf(stderr, "%d nodes of %d, %zu %s, scratch %zu\n", layout->nodes, layout->local_size,
                count, lofi_dtype_name(dtype), scratch_bytes);
    EXPECT(data[count * each] == 0x5a); /* nothing past the end */
    for (int k = 0; k < layout->nodes; k++)
        free(in[k]);
    free(want);
    free(data);
}

static int average(struct rank *rank)
{
    static const lofi_dtype dtypes[] = {LOFI_F64, LOFI_F32, LOFI_BF16, LOFI_F16, LOFI_I64};
    static const size_t counts[] = {1, 5, 64, 1001, 20000};
    static const double weights[] = {1, 2.5, 3, 0.25};
    const struct layout *layout = rank->arg;
    const int k = rank->rank / layout->local_size, place = rank->rank % layout->local_size;
    lofi_comm *node = join(layout->node[k], place, layout->local_size);
    lofi_comm *column = join(layout->column[place], k, layout->nodes);
    float one = 1;

    for (int d = 0; d < 5; d++)
        for (int c = 0; c < 5; c++) {
            check(node, column, layout, dtypes[d], counts[c], NULL, 0);
            check(node, column, layout, dtypes[d], counts[c], weights, 4096);
        }
    EXPECT(lofi_finalize_average(node, column, LOFI_F32, NULL, 0, NULL, 0) == LOFI_OK);
    EXPECT(lofi_finalize_average(node, NULL, LOFI_F32, &one, 1, NULL, 0) == LOFI_INVALID);
    EXPECT(lofi_finalize_average(node, column, LOFI_F32, NULL, 1, NULL, 0) == LOFI_INVALID);
    EXPECT(lofi_finalize_average(node, column, LOFI_F32, &one, 1, NULL, 100) == LOFI_INVALID);
    EXPECT_ERROR("4096");
    EXPECT(lofi_finalize_average(node, column, (lofi_dtype)50, &one, 1, NULL, 0) == LOFI_INVALID);
    lofi_comm_destroy(column);
    lofi_comm_destroy(node);
    return test_failures != 0;
}

int main(void)
{
    static const struct layout layouts[] = {{.nodes = 2, .local_size = 2},
                                            {.nodes = 3, .local_size = 1},
                                            {.nodes = 1, .local_size = 3},
                                            {.nodes = 4, .local_size = 2},
                                            {.nodes = 2, .local_size = 3}};

    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        struct layout layout = layouts[i];
        for (int k = 0; k < layout.nodes; k++)
            layout.node[k] = ranks_board();
        for (int place = 0; place < layout.local_size; place++)
            layout.column[place] = ranks_board();
        EXPECT(ranks_all_passed(layout.nodes * layout.local_size, 60, average, &layout));
    }
    return test_end();
}
