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

/* With nodes that give nothing, and a base: against lofi_mean_mixed of those that give. */
static void check_mixed(lofi_comm *node, lofi_comm *column, const struct layout *layout,
                        lofi_dtype dtype, size_t count, const double *weights, unsigned who,
                        double alpha)
{
    const size_t each = lofi_dtype_bytes(dtype);
    char *data = malloc(count * each), *want = malloc(count * each), *base = malloc(count * each);
    void *in[RANKS_MOST];
    unsigned char gives[RANKS_MOST];
    double chosen[RANKS_MOST];
    lofi_exchange_options options = LOFI_EXCHANGE_OPTIONS_INIT;
    lofi_mix mix = LOFI_MIX_INIT;

    mix.inputs = 0;
    for (int k = 0; k < layout->nodes; k++) {
        gives[k] = who >> k & 1;
        if (!gives[k]) continue;
        chosen[mix.inputs] = weights[k];
        in[mix.inputs] = malloc(count * each);
        fill(in[mix.inputs++], dtype, count, k);
    }
    fill(base, dtype, count, 99);
    mix.out_dtype = mix.base_dtype = options.dtype = dtype;
    mix.weights = chosen;
    mix.base = options.base = alpha < 1 ? base : NULL;
    mix.alpha = options.alpha = alpha;
    options.weights = weights;
    options.gives = gives;
    options.scratch_bytes = 4096;
    ASSERT(lofi_mean_mixed(&mix, want, (const void *const *)in, count) == LOFI_OK);
    fill(data, dtype, count, lofi_comm_rank(column));
    if (!gives[lofi_comm_rank(column)]) memset(data, 0xff, count * each); /* NaN */
    ASSERT(lofi_exchange(node, column, data, count, &options) == LOFI_OK);
    if (!EXPECT(memcmp(data, want, count * each) == 0))
        fprintf(stderr, "%d nodes of %d, of which %x give, %zu %s, alpha %g\n", layout->nodes,
                layout->local_size, who, count, lofi_dtype_name(dtype), alpha);
    for (int k = 0; k < mix.inputs; k++)
        free(in[k]);
    free(base);
    free(want);
    free(data);
}

static void check_bad_options(lofi_comm *node, lofi_comm *column)
{
    static const unsigned char none[RANKS_MOST] = {0};
    lofi_exchange_options options = LOFI_EXCHANGE_OPTIONS_INIT;
    float one = 1;

    options.gives = none;
    EXPECT(lofi_exchange(node, column, &one, 1, &options) == LOFI_INVALID);
    EXPECT_ERROR("to which none of");
    EXPECT(lofi_exchange(node, column, &one, 1, NULL) == LOFI_INVALID);
    options.size++;
    EXPECT(lofi_exchange(node, column, &one, 1, &options) == LOFI_ABI);
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
    for (int d = 0; d < 4; d++)
        for (unsigned who = 1; who < 1u << layout->nodes; who++) {
            check_mixed(node, column, layout, dtypes[d], 1001, weights, who, 1.0);
            check_mixed(node, column, layout, dtypes[d], 1001, weights, who, 0.3);
        }
    check_bad_options(node, column);
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
