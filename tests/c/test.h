/* SPDX-License-Identifier: MIT */
/*
 * A test is a program: exit 0 passed, 1 failed, 77 skipped. EXPECT notes a failure and goes on,
 * ASSERT stops the program.
 */
#ifndef LOFI_TESTS_TEST_H
#define LOFI_TESTS_TEST_H

#include "lofi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long test_checks, test_failures;

/* Returns `ok`, so that a loop may stop at its first failure. */
static inline int test_note(int ok, const char *what, const char *file, int line)
{
    test_checks++;
    if (ok) return 1;
    if (++test_failures <= 20)
        fprintf(stderr, "%s:%d: failed: %s (last error: %s)\n", file, line, what,
                lofi_last_error());
    return 0;
}

static inline void test_stop(int ok)
{
    if (!ok) exit(1);
}

#define EXPECT(condition) test_note((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
#define ASSERT(condition) test_stop(EXPECT(condition))
#define EXPECT_TEXT(text, part) test_note(test_has(text, part), #part, __FILE__, __LINE__)
#define EXPECT_ERROR(part) EXPECT_TEXT(lofi_last_error(), part)

static inline int test_has(const char *text, const char *part)
{
    if (strstr(text, part) != NULL) return 1;
    fprintf(stderr, "'%s' lacks '%s'\n", text, part);
    return 0;
}

static inline int test_end(void)
{
    printf("%lu checks, %lu failed\n", test_checks, test_failures);
    return test_failures == 0 ? 0 : 1;
}

/* Random numbers of the tests: splitmix64, the same everywhere. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline int test_below(uint64_t *state, int bound)
{
    return (int)(test_random(state) % (uint64_t)bound);
}

#endif /* LOFI_TESTS_TEST_H */
