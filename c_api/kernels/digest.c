/* SPDX-License-Identifier: MIT */
/*
 * A 128-bit fingerprint of bytes.
 *
 * Four lanes of 64 bits take turns at the words of the data, so that four chains of
 * multiplications run side by side. A step multiplies, rotates and multiplies: it can be undone,
 * so data that differ in one word of a lane never meet again inside it. Folding both halves of a
 * 128-bit product is faster still, but loses what it multiplies by zero. The lanes start and
 * step with constants of their own, so that words that change places change the result.
 *
 * The length goes in first at the end, so zeros at the tail count although the last words are
 * padded with zeros. The constants are odd, otherwise arbitrary (digits of pi and e). What is
 * here is a format: nodes compare digests, and so do files.
 */
#include "lofi.h"

#include <string.h>

#define LANES 4
#define STRIPE_BYTES (8 * LANES)

static const uint64_t start[LANES] = {UINT64_C(0x243f6a8885a308d3), UINT64_C(0x13198a2e03707345),
                                      UINT64_C(0xa4093822299f31d1), UINT64_C(0x082efa98ec4e6c89)};
static const uint64_t odd[LANES] = {UINT64_C(0xb7e151628aed2a6b), UINT64_C(0xbf7158809cf4f3c7),
                                    UINT64_C(0x62e7160f38b4da57), UINT64_C(0xa784d9045190cfef)};
static const uint64_t step = UINT64_C(0x9e3779b97f4a7c15);

static uint64_t rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static uint64_t read_little(const unsigned char *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static void take_stripe(uint64_t lane[LANES], const unsigned char *data)
{
    for (int i = 0; i < LANES; i++)
        lane[i] = rotate(lane[i] + read_little(data + 8 * i) * odd[i], 29) * step;
}

static uint64_t avalanche(uint64_t x)
{
    x = (x ^ x >> 32) * UINT64_C(0x452821e638d01377);
    x = (x ^ x >> 29) * UINT64_C(0xbe5466cf34e90c6d);
    return x ^ x >> 32;
}

/* Each step can be undone as well: with equal lanes, different lengths stay different. */
static uint64_t fold(uint64_t seed, const uint64_t lane[LANES], int first)
{
    uint64_t h = seed;
    for (int i = 0; i < LANES; i++)
        h = avalanche(h ^ lane[(first + i) % LANES]) + odd[i];
    return avalanche(h);
}

lofi_digest lofi_digest_of(const void *data, size_t bytes)
{
    const unsigned char *at = data;
    uint64_t lane[LANES];
    lofi_digest digest;
    size_t left = bytes;

    memcpy(lane, start, sizeof lane);
    for (; left >= STRIPE_BYTES; left -= STRIPE_BYTES, at += STRIPE_BYTES)
        take_stripe(lane, at);
    if (left > 0) {
        unsigned char tail[STRIPE_BYTES] = {0};
        memcpy(tail, at, left);
        take_stripe(lane, tail);
    }
    digest.word[0] = fold((uint64_t)bytes * step, lane, 0);
    digest.word[1] = fold(~((uint64_t)bytes * step), lane, 2);
    return digest;
}
