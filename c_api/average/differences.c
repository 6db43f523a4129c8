/* SPDX-License-Identifier: MIT */
#include "lofi/average.h"

static int are_equal(const lofi_digest *a, const lofi_digest *b)
{
    return a->word[0] == b->word[0] && a->word[1] == b->word[1];
}

lofi_status lofi_differences(const lofi_digest *digests, int nodes, int node_size, size_t tensors,
                             const unsigned char *is_shard, unsigned char *differs)
{
    if (digests == NULL || differs == NULL || nodes < 1 || node_size < 1 || tensors < 1) {
        lofi_set_error(
            "differences of %zu tensors of %d nodes of %d ranks: all of these have to be "
            "at least 1, and there have to be digests and a place for the answers",
            tensors, nodes, node_size);
        return LOFI_INVALID;
    }
    for (size_t tensor = 0; tensor < tensors; tensor++)
        differs[tensor] = 0;
    /* Rank by rank, as the digests lie. */
    for (size_t rank = 0; rank < (size_t)nodes * (size_t)node_size; rank++) {
        const size_t place = rank % (size_t)node_size;
        const lofi_digest *mine = digests + rank * tensors;
        const lofi_digest *image = digests + place * tensors;
        const lofi_digest *first = digests + (rank - place) * tensors;
        for (size_t tensor = 0; tensor < tensors; tensor++) {
            const int shard = is_shard != NULL && is_shard[tensor];
            if ((shard || place == 0) && !are_equal(mine + tensor, image + tensor))
                differs[tensor] |= LOFI_DIFFERS_BETWEEN;
            if (!shard && !are_equal(mine + tensor, first + tensor))
                differs[tensor] |= LOFI_DIFFERS_INSIDE;
        }
    }
    return LOFI_OK;
}
