/* SPDX-License-Identifier: MIT */
/* Pictures of hand-written digits, from a CSV file: 64 pixels of 0 to 16 and a label of 0 to 9 in
 * each line, no header. write_digits.py writes such a file. */
#ifndef DIGITS_H
#define DIGITS_H

#include <stddef.h>
#include <stdint.h>

#define DIGITS_PIXELS 64
#define DIGITS_CLASSES 10
#define DIGITS_WHITE 16 /* the largest value of a pixel in the file */

struct digits {
    size_t count;
    float *pixels;  /* count * DIGITS_PIXELS, from 0 to 1 */
    uint8_t *label; /* count */
};

/* Reads the whole file. On failure it returns -1, and `error` is a sentence with the file, the line
 * and what is wrong there. */
int digits_read(const char *path, struct digits *out, char *error, size_t error_bytes);

/* A copy of `count` pictures: number `first`, and every `step`-th after it. -1: out of memory. */
int digits_pick(const struct digits *all, size_t first, size_t step, size_t count,
                struct digits *out);

void digits_free(struct digits *digits);

#endif /* DIGITS_H */
