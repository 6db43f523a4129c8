/* SPDX-License-Identifier: MIT */
/* The state of a round, for the test that enumerates it, and the text of a verdict. */
#ifndef LOFI_AVERAGE_ROUND_H
#define LOFI_AVERAGE_ROUND_H

#include "lofi.h"

struct lofi_round {
    int member_count, member, close_at;
    lofi_round_value_kind kind;
    lofi_round_step step;
    int is_time_up; /* 1: this member closes the round with those that it lists, however few */
    unsigned char *is_in; /* one for each member */
    int64_t value;
    char *verdict; /* the text to put; NULL before it is needed */
};

/* "0-3,5;17" for the members with is_in != 0 and the value; NULL without memory. */
char *lofi__verdict_write(const unsigned char *is_in, int member_count, int64_t value);

/* Fills is_in and value, or changes neither: LOFI_CORRUPT, with a sentence. Does not ask whether
 * the value is one of the round's kind. */
lofi_status lofi__verdict_read(const char *text, int member_count, unsigned char *is_in,
                               int64_t *value);

/* Copies the beginning of a foreign word, fit for a sentence: what is not printable becomes '?'. */
#define LOFI__QUOTE_BYTES 41
const char *lofi__quote(const char *text, char *quote);

/* 1 and the number if `text` is a whole decimal number of at most 18 digits. */
int lofi__whole_number(const char *text, int64_t *number);

#endif /* LOFI_AVERAGE_ROUND_H */
