/* SPDX-License-Identifier: MIT */
/* The fingerprint: fixed values, and differences of every small kind. */
#include "test.h"

#define BYTES 200

static int same(lofi_digest a, lofi_digest b)
{
    return a.word[0] == b.word[0] && a.word[1] == b.word[1];
}

/* Stricter than the pair: each half alone must tell the data apart as well. */
static int differ(lofi_digest a, lofi_digest b)
{
    return a.word[0] != b.word[0] && a.word[1] != b.word[1];
}

static int bits_changed(lofi_digest a, lofi_digest b)
{
    int count = 0;
    for (int i = 0; i < 2; i++)
        for (uint64_t x = a.word[i] ^ b.word[i]; x != 0; x &= x - 1)
            count++;
    return count;
}

static void fill(unsigned char *data, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)test_random(&seed);
}

/* The digest is a format: these values never change. */
static void test_format(void)
{
    unsigned char data[BYTES];
    for (int i = 0; i < BYTES; i++)
        data[i] = (unsigned char)(i * 7);
    lofi_digest empty = lofi_digest_of(NULL, 0), full = lofi_digest_of(data, BYTES);
    EXPECT(empty.word[0] == UINT64_C(0xc107664b87ff79a7) &&
           empty.word[1] == UINT64_C(0x8dea06e75dae9643));
    EXPECT(full.word[0] == UINT64_C(0x0d0b27b2c22af49e) &&
           full.word[1] == UINT64_C(0x3279daf2c46bd280));
    if (test_failures > 0)
        printf("empty %016llx %016llx full %016llx %016llx\n", (unsigned long long)empty.word[0],
               (unsigned long long)empty.word[1], (unsigned long long)full.word[0],
               (unsigned long long)full.word[1]);
}

static void test_bit_flips(const unsigned char *pattern)
{
    unsigned char data[BYTES];
    long changed = 0, flips = 0;
    int fewest = 128;

    for (size_t bytes = 1; bytes <= BYTES; bytes = bytes < 70 ? bytes + 1 : bytes + 13) {
        memcpy(data, pattern, bytes);
        lofi_digest before = lofi_digest_of(data, bytes);
        for (size_t bit = 0; bit < 8 * bytes; bit++) {
            data[bit / 8] ^= (unsigned char)(1u << bit % 8);
            lofi_digest after = lofi_digest_of(data, bytes);
            data[bit / 8] ^= (unsigned char)(1u << bit % 8);
            EXPECT(differ(before, after));
            int count = bits_changed(before, after);
            fewest = count < fewest ? count : fewest;
            changed += count;
            flips++;
        }
    }
    double mean = (double)changed / (double)flips;
    EXPECT(mean > 63.5 && mean < 64.5); /* half of the 128 bits */
    EXPECT(fewest > 30);
}

static void test_pairs(const unsigned char *pattern)
{
    unsigned char data[64];
    memcpy(data, pattern, sizeof data);
    lofi_digest before = lofi_digest_of(data, sizeof data);

    for (int a = 0; a < 512; a++) /* any two bits */
        for (int b = 0; b < a; b++) {
            data[a / 8] ^= (unsigned char)(1u << a % 8);
            data[b / 8] ^= (unsigned char)(1u << b % 8);
            EXPECT(differ(before, lofi_digest_of(data, sizeof data)));
            data[a / 8] ^= (unsigned char)(1u << a % 8);
            data[b / 8] ^= (unsigned char)(1u << b % 8);
        }
}

static void test_swaps(void)
{
    unsigned char data[256], other[256];
    fill(data, sizeof data, 5);
    lofi_digest before = lofi_digest_of(data, sizeof data);

    for (size_t unit = 1; unit <= 64; unit *= 2)
        for (size_t a = 0; a < sizeof data; a += unit)
            for (size_t b = 0; b < a; b += unit) {
                memcpy(other, data, sizeof data);
                memcpy(other + a, data + b, unit);
                memcpy(other + b, data + a, unit);
                if (memcmp(other, data, sizeof data) == 0) continue;
                EXPECT(differ(before, lofi_digest_of(other, sizeof other)));
            }
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return x[0] != y[0] ? (x[0] < y[0] ? -1 : 1) : 0;
}

/* Lengths of zeros, lengths of data, and data with zeros at the tail: all different. */
static void test_lengths(void)
{
    static unsigned char zeros[4096], data[4096];
    static uint64_t seen[3 * 4096];
    size_t count = 0;

    fill(data, 512, 9); /* the rest is zero */
    for (size_t bytes = 0; bytes < 4096; bytes++) {
        seen[count++] = lofi_digest_of(zeros, bytes).word[0];
        if (bytes > 0) seen[count++] = lofi_digest_of(data, bytes).word[0];
        if (bytes > 0) seen[count++] = lofi_digest_of(data, bytes).word[1];
    }
    qsort(seen, count, sizeof seen[0], by_value);
    for (size_t i = 1; i < count; i++)
        EXPECT(seen[i] != seen[i - 1]);
}

static void test_random_words(void)
{
    static uint64_t seen[200000];
    size_t count = sizeof seen / sizeof seen[0];

    for (size_t i = 0; i < count; i++) { /* counters: the least entropy there is */
        uint64_t word[5] = {0, 0, 0, 0, 0};
        word[i % 5] = i / 5 + 1;
        seen[i] = lofi_digest_of(word, sizeof word).word[i & 1] & UINT64_C(0xffffffffffffff);
    }
    qsort(seen, count, sizeof seen[0], by_value);
    for (size_t i = 1; i < count; i++)
        EXPECT(seen[i] != seen[i - 1]);
}

static void test_alignment(void)
{
    unsigned char data[BYTES + 16];
    unsigned char copy[BYTES];

    fill(copy, sizeof copy, 3);
    for (size_t offset = 0; offset < 16; offset++) {
        memcpy(data + offset, copy, sizeof copy);
        EXPECT(same(lofi_digest_of(copy, BYTES), lofi_digest_of(data + offset, BYTES)));
    }
}

int main(void)
{
    unsigned char zeros[BYTES] = {0}, random[BYTES];

    fill(random, sizeof random, 1);
    test_format();
    test_bit_flips(zeros);
    test_bit_flips(random);
    test_pairs(zeros);
    test_pairs(random);
    test_swaps();
    test_lengths();
    test_random_words();
    test_alignment();
    return test_end();
}
