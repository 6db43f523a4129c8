/* SPDX-License-Identifier: MIT */
/*
 * How an average is cut into chunks.
 *
 * All chunks but the last are of one size, a multiple of nodes * local_size, so any chunk is
 * found by arithmetic and only the last is padded. To spread the remainder over all chunks would
 * pad each of them.
 */
#include "lofi.h"

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

/* Elements in every chunk but the last; 0 for bad sizes or nothing to cut. */
static uint64_t chunk_step(uint64_t total_count, int nodes, int local_size, uint64_t chunk_count)
{
    if (total_count == 0 || nodes < 1 || local_size < 1 || chunk_count == 0) return 0;
    uint64_t unit = (uint64_t)nodes * (uint64_t)local_size;
    uint64_t units = divide_up(chunk_count, unit);
    /* A chunk that holds everything needs no rounding, which could overflow. */
    if (chunk_count >= total_count || units > total_count / unit) return total_count;
    return units * unit;
}

uint64_t lofi_chunk_total(uint64_t total_count, int nodes, int local_size, uint64_t chunk_count)
{
    uint64_t step = chunk_step(total_count, nodes, local_size, chunk_count);
    return step > 0 ? divide_up(total_count, step) : 0;
}

lofi_status lofi_chunk_at(uint64_t total_count, int nodes, int local_size, uint64_t chunk_count,
                          uint64_t index, lofi_chunk *chunk)
{
    uint64_t step = chunk_step(total_count, nodes, local_size, chunk_count);
    uint64_t total = step > 0 ? divide_up(total_count, step) : 0;

    if (step == 0) {
        lofi_set_error("can't cut %llu elements into chunks of %llu for %d nodes of %d ranks: all "
                       "of these have to be at least 1",
                       (unsigned long long)total_count, (unsigned long long)chunk_count, nodes,
                       local_size);
        return LOFI_INVALID;
    }
    if (index >= total) {
        lofi_set_error("there is no chunk %llu: %llu elements make %llu chunks",
                       (unsigned long long)index, (unsigned long long)total_count,
                       (unsigned long long)total);
        return LOFI_INVALID;
    }
    chunk->begin = index * step;
    chunk->count = total_count - chunk->begin < step ? total_count - chunk->begin : step;
    chunk->piece_count = divide_up(chunk->count, (uint64_t)nodes * (uint64_t)local_size);
    return LOFI_OK;
}
