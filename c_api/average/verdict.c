/* SPDX-License-Identifier: MIT */
/*
 * The text of a verdict: ranges of members, ascending and apart, then the value.
 *
 * Ranges, and not a bit for each member: in a job of thousands of nodes nearly all come, and their
 * list is a few bytes. The text comes from another process, so nothing in it is trusted.
 */
#include "average/round.h"

#include "core/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NUMBER_BYTES 24 /* a sign, 18 digits, a separator, the end */

int lofi__whole_number(const char *text, int64_t *number)
{
    const int negative = *text == '-';
    const char *at = text + negative;
    int64_t value = 0;
    int digits = 0;

    for (; *at >= '0' && *at <= '9' && digits < 18; at++, digits++)
        value = value * 10 + (*at - '0');
    if (digits == 0 || *at != '\0') return 0;
    *number = negative ? -value : value;
    return 1;
}

const char *lofi__quote(const char *text, char *quote)
{
    size_t n = 0;

    for (; text[n] != '\0' && n + 1 < LOFI__QUOTE_BYTES; n++)
        quote[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
    quote[n] = '\0';
    return quote;
}

static int end_of_range(const unsigned char *is_in, int member_count, int first)
{
    while (first + 1 < member_count && is_in[first + 1])
        first++;
    return first;
}

char *lofi__verdict_write(const unsigned char *is_in, int member_count, int64_t value)
{
    size_t ranges = 1;
    for (int i = 0; i < member_count; i++)
        if (is_in[i]) ranges += i == 0 || !is_in[i - 1];

    const size_t bytes = (2 * ranges + 1) * NUMBER_BYTES;
    char *text = lofi__mem_create(bytes, 1);
    if (text == NULL) return NULL;
    size_t used = 0;
    for (int first = 0; first < member_count; first++) {
        if (!is_in[first]) continue;
        const int last = end_of_range(is_in, member_count, first);
        used += (size_t)snprintf(text + used, bytes - used, used > 0 ? ",%d" : "%d", first);
        if (last > first) used += (size_t)snprintf(text + used, bytes - used, "-%d", last);
        first = last;
    }
    snprintf(text + used, bytes - used, ";%" PRId64, value);
    return text;
}

/* A member's number at *at, which moves behind it; -1 if there is none. */
static int read_member(const char **at, int member_count)
{
    int number = 0, digits = 0;

    for (; **at >= '0' && **at <= '9'; (*at)++, digits++) {
        number = number * 10 + (**at - '0');
        if (number >= member_count) return -1;
    }
    return digits > 0 ? number : -1;
}

/* Fills is_in; returns where the ranges end, or NULL. */
static const char *read_ranges(const char *text, int member_count, unsigned char *is_in)
{
    const char *at = text;
    int next = 0; /* the lowest member that the next range may begin with */

    while (*at != ';') {
        if (at != text && *at++ != ',') return NULL;
        const int first = read_member(&at, member_count);
        int last = first;
        if (first >= 0 && *at == '-') {
            at++;
            last = read_member(&at, member_count);
            if (last <= first) return NULL;
        }
        if (first < next) return NULL;
        memset(is_in + first, 1, (size_t)(last - first + 1));
        next = last + 2; /* neighbours are one range */
    }
    return at;
}

lofi_status lofi__verdict_read(const char *text, int member_count, unsigned char *is_in,
                               int64_t *value)
{
    unsigned char *found = lofi__mem_create((size_t)member_count, 1);
    if (found == NULL) return LOFI_NO_MEMORY;

    const char *end = read_ranges(text, member_count, found);
    int64_t number = 0;
    const int is_sound = end != NULL && lofi__whole_number(end + 1, &number);
    if (is_sound) {
        memcpy(is_in, found, (size_t)member_count);
        *value = number;
    } else {
        char quote[LOFI__QUOTE_BYTES];
        lofi_set_error("'%s' is no verdict of a round of %d members: do all ranks run the same "
                       "release of lofi?",
                       lofi__quote(text, quote), member_count);
    }
    lofi__mem_destroy(found);
    return is_sound ? LOFI_OK : LOFI_CORRUPT;
}
