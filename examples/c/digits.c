/* SPDX-License-Identifier: MIT */
#include "digits.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 1024 /* 65 numbers of two digits, with commas, need 195 */

static int allocate(struct digits *digits, size_t count)
{
    digits->count = count;
    digits->pixels = malloc((count + 1) * DIGITS_PIXELS * sizeof *digits->pixels);
    digits->label = malloc(count + 1);
    if (digits->pixels != NULL && digits->label != NULL) return 0;
    digits_free(digits);
    return -1;
}

/* Reads one number and what ends it. Returns -1 unless it is a whole number of 0 to `most`. */
static int read_number(const char **text, int most, char end)
{
    char *after = NULL;

    if (**text < '0' || **text > '9') return -1; /* strtol would pass over spaces and signs */
    long number = strtol(*text, &after, 10);
    if (number > most || *after != end) return -1;
    *text = after + 1;
    return (int)number;
}

/* Column that is wrong, counted from 1; 0: none. */
static int read_line(const char *line, float *pixels, uint8_t *label)
{
    for (int i = 0; i < DIGITS_PIXELS; i++) {
        int value = read_number(&line, DIGITS_WHITE, ',');
        if (value < 0) return i + 1;
        pixels[i] = (float)value / DIGITS_WHITE;
    }
    int value = read_number(&line, DIGITS_CLASSES - 1, '\0');
    if (value < 0) return DIGITS_PIXELS + 1;
    *label = (uint8_t)value;
    return 0;
}

static int read_lines(FILE *file, const char *path, struct digits *out, char *error,
                      size_t error_bytes)
{
    char line[LINE_BYTES];
    size_t room = 0;

    while (fgets(line, sizeof line, file) != NULL) {
        if (out->count == room) {
            struct digits more;
            room = room > 0 ? 2 * room : 1024;
            if (allocate(&more, room) != 0) {
                snprintf(error, error_bytes, "%s: out of memory at line %zu", path, out->count + 1);
                return -1;
            }
            if (out->count > 0) {
                memcpy(more.pixels, out->pixels, out->count * DIGITS_PIXELS * sizeof *more.pixels);
                memcpy(more.label, out->label, out->count);
            }
            more.count = out->count;
            digits_free(out);
            *out = more;
        }
        line[strcspn(line, "\r\n")] = '\0';
        int wrong =
            read_line(line, out->pixels + out->count * DIGITS_PIXELS, out->label + out->count);
        if (wrong != 0) {
            snprintf(error, error_bytes,
                     "%s, line %zu, column %d: a line must hold %d pixels of 0 to %d and a label "
                     "of 0 to %d, with a comma between them",
                     path, out->count + 1, wrong, DIGITS_PIXELS, DIGITS_WHITE, DIGITS_CLASSES - 1);
            return -1;
        }
        out->count++;
    }
    if (ferror(file)) {
        snprintf(error, error_bytes, "can't read %s: %s", path, strerror(errno));
        return -1;
    }
    if (out->count == 0) {
        snprintf(error, error_bytes, "%s is empty: write it with write_digits.py", path);
        return -1;
    }
    return 0;
}

int digits_read(const char *path, struct digits *out, char *error, size_t error_bytes)
{
    *out = (struct digits){0, NULL, NULL};
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        snprintf(error, error_bytes, "can't open %s: %s", path, strerror(errno));
        return -1;
    }
    int result = read_lines(file, path, out, error, error_bytes);
    if (result != 0) digits_free(out);
    fclose(file);
    return result;
}

int digits_pick(const struct digits *all, size_t first, size_t step, size_t count,
                struct digits *out)
{
    if (allocate(out, count) != 0) return -1;
    for (size_t i = 0; i < count; i++) {
        const size_t from = first + i * step;
        memcpy(out->pixels + i * DIGITS_PIXELS, all->pixels + from * DIGITS_PIXELS,
               DIGITS_PIXELS * sizeof *out->pixels);
        out->label[i] = all->label[from];
    }
    return 0;
}

void digits_free(struct digits *digits)
{
    free(digits->pixels);
    free(digits->label);
    *digits = (struct digits){0, NULL, NULL};
}
