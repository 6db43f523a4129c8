/* SPDX-License-Identifier: MIT */
/*
 * One member's way through a round.
 *
 * A state machine without a board, so that a test can walk it through every order of events. The
 * order of its steps is the argument that all get one answer: a member announces itself before it
 * looks, so the last one to come finds all; and nobody believes in its own list before it has read
 * back which verdict the board holds. Words that differ are found by comparing each with the first
 * one of all, so that nobody has to read all words to tell that they are equal.
 *
 * A member may take its word back at any moment, and nothing can stop another that has listed it
 * from closing the round with it. So a withdrawal is a wish, and the verdict says what became of
 * it; but a round is never closed early by a member that saw enough others and then lists fewer.
 *
 * Rejected: a member that closes rounds for the others (it may be the one that is gone); a vote
 * (the board is one place already, and writes once).
 */
#include "average/round.h"

#include "core/mem.h"
#include "core/options.h"

#include <string.h>

#define MEMBERS_MOST (1 << 20)

static lofi_status check_options(const lofi_round_options *options)
{
    if (options->member_count < 1 || options->member_count > MEMBERS_MOST)
        lofi_set_error("a round of %d members: choose 1 to %d", options->member_count,
                       MEMBERS_MOST);
    else if (options->member < -1 || options->member >= options->member_count)
        lofi_set_error("member %d of a round of %d: choose 0 to %d, or -1 to look on",
                       options->member, options->member_count, options->member_count - 1);
    else if (options->close_at < 0 || options->close_at > options->member_count)
        lofi_set_error("a round of %d members closes at %d: choose 1 to %d, or 0 for all",
                       options->member_count, options->close_at, options->member_count);
    else if ((int)options->kind < 0 || options->kind > LOFI_ROUND_DIFFERS)
        lofi_set_error("the kind of a round's value is %d: lofi/round.h lists 0 to %d",
                       (int)options->kind, LOFI_ROUND_DIFFERS);
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

lofi_status lofi_round_create(const lofi_round_options *given, lofi_round **out)
{
    lofi_round_options full = LOFI_ROUND_OPTIONS_INIT;
    const lofi_round_options *options = &full;

    lofi_status st = lofi__options_read(&full, sizeof full, given, "LOFI_ROUND_OPTIONS_INIT");
    if (st == LOFI_OK && out == NULL) {
        lofi_set_error("a round without a place for it");
        return LOFI_INVALID;
    }
    if (st == LOFI_OK) st = check_options(options);
    if (st != LOFI_OK) return st;
    lofi_round *round = lofi__mem_create(1, sizeof *round);
    if (round == NULL) return LOFI_NO_MEMORY;
    round->is_in = lofi__mem_create((size_t)options->member_count, 1);
    if (round->is_in == NULL) {
        lofi__mem_destroy(round);
        return LOFI_NO_MEMORY;
    }
    round->member_count = options->member_count;
    round->member = options->member;
    round->close_at = options->close_at > 0 ? options->close_at : options->member_count;
    round->kind = options->kind;
    round->step = options->member >= 0 ? LOFI_ROUND_ANNOUNCE : LOFI_ROUND_READ;
    *out = round;
    return LOFI_OK;
}

void lofi_round_destroy(lofi_round *round)
{
    if (round == NULL) return;
    lofi__mem_destroy(round->verdict);
    lofi__mem_destroy(round->is_in);
    lofi__mem_destroy(round);
}

lofi_round_step lofi_round_next(const lofi_round *round)
{
    return round->step;
}

static lofi_status no_answer(const lofi_round *round, const char *what)
{
    lofi_set_error("step %d of a round was answered without %s", (int)round->step, what);
    return LOFI_INVALID;
}

/* The value of these words: NULL is the word of a member that is not in. */
static lofi_status value_of(const lofi_round *round, const char *const *words, int64_t *value)
{
    const char *lowest = NULL;
    int64_t number = 0, least = INT64_MAX;
    int differs = -1;

    for (int i = 0; i < round->member_count; i++) {
        if (words[i] == NULL) continue;
        if (lowest == NULL) lowest = words[i];
        if (differs < 0 && strcmp(words[i], lowest) != 0) differs = i;
        if (round->kind != LOFI_ROUND_LEAST) continue;
        if (!lofi__whole_number(words[i], &number)) {
            char quote[LOFI__QUOTE_BYTES];
            lofi_set_error("member %d announced '%s' to a round of whole numbers: do all ranks run "
                           "the same release of lofi?",
                           i, lofi__quote(words[i], quote));
            return LOFI_CORRUPT;
        }
        if (number < least) least = number;
    }
    *value = round->kind == LOFI_ROUND_LEAST ? least : differs;
    return LOFI_OK;
}

static lofi_status go_to_close(lofi_round *round, const unsigned char *is_in, int64_t value)
{
    char *verdict = lofi__verdict_write(is_in, round->member_count, value);
    if (verdict == NULL) return LOFI_NO_MEMORY;
    lofi__mem_destroy(round->verdict);
    round->verdict = verdict;
    round->step = LOFI_ROUND_CLOSE;
    return LOFI_OK;
}

/* The list may lack a word that this member has seen before, if it was taken back: the round goes
 * on then. */
static lofi_status take_list(lofi_round *round, const char *const *words)
{
    int64_t value = 0;
    int count = 0;

    if (words == NULL) return no_answer(round, "the members' words");
    if (round->kind != LOFI_ROUND_NOTHING) {
        lofi_status st = value_of(round, words, &value);
        if (st != LOFI_OK) return st;
    }
    for (int i = 0; i < round->member_count; i++) {
        round->is_in[i] = words[i] != NULL;
        count += round->is_in[i];
    }
    const int differ = round->kind == LOFI_ROUND_DIFFERS && value >= 0;
    if (round->is_time_up || differ || count >= round->close_at)
        return go_to_close(round, round->is_in, value);
    round->step = LOFI_ROUND_LOOK;
    return LOFI_OK;
}

/* A value of DIFFERS is used as a member's number. */
static int fits_kind(const lofi_round *round)
{
    if (round->kind == LOFI_ROUND_NOTHING) return round->value == 0;
    if (round->kind == LOFI_ROUND_LEAST || round->value == -1) return 1;
    return round->value >= 0 && round->value < round->member_count && round->is_in[round->value];
}

static lofi_status take_verdict(lofi_round *round, const char *verdict)
{
    if (verdict == NULL)
        return round->member < 0 ? LOFI_OK : no_answer(round, "the verdict on the board");
    lofi_status st = lofi__verdict_read(verdict, round->member_count, round->is_in, &round->value);
    if (st != LOFI_OK) return st;
    if (!fits_kind(round)) {
        char quote[LOFI__QUOTE_BYTES];
        lofi_set_error("the verdict '%s' is of another kind of round: do all ranks run the same "
                       "release of lofi, and come to the same point of the program?",
                       lofi__quote(verdict, quote));
        return LOFI_CORRUPT;
    }
    round->step = LOFI_ROUND_CLOSED;
    return LOFI_OK;
}

/* All are here, and the verdict needs no word of theirs. */
static lofi_status close_with_all(lofi_round *round)
{
    memset(round->is_in, 1, (size_t)round->member_count);
    return go_to_close(round, round->is_in, 0);
}

static lofi_status take_look(lofi_round *round, int yes)
{
    const int is_plain =
        round->kind == LOFI_ROUND_NOTHING && round->close_at == round->member_count;

    if (yes && is_plain) return close_with_all(round);
    round->step = yes ? LOFI_ROUND_LIST : LOFI_ROUND_WAIT;
    return LOFI_OK;
}

lofi_status lofi_round_tell(lofi_round *round, const lofi_round_answer *given)
{
    lofi_round_answer full = LOFI_ROUND_ANSWER_INIT;
    const lofi_round_answer *answer = &full;

    lofi_status st = lofi__options_read(&full, sizeof full, given, "LOFI_ROUND_ANSWER_INIT");
    if (st != LOFI_OK) return st;
    if (round == NULL) {
        lofi_set_error("an answer without a round");
        return LOFI_INVALID;
    }
    switch (round->step) {
    case LOFI_ROUND_ANNOUNCE:
        round->step = round->kind == LOFI_ROUND_DIFFERS ? LOFI_ROUND_COMPARE : LOFI_ROUND_LOOK;
        return LOFI_OK;
    case LOFI_ROUND_COMPARE:
        round->step = answer->yes ? LOFI_ROUND_LIST : LOFI_ROUND_LOOK;
        return LOFI_OK;
    case LOFI_ROUND_LOOK:
        return take_look(round, answer->yes);
    case LOFI_ROUND_WAIT:
        round->is_time_up = !answer->yes;
        round->step = answer->yes ? LOFI_ROUND_READ : LOFI_ROUND_LIST;
        return LOFI_OK;
    case LOFI_ROUND_LIST:
        return take_list(round, answer->words);
    case LOFI_ROUND_CLOSE:
    case LOFI_ROUND_READ:
        return take_verdict(round, answer->verdict);
    case LOFI_ROUND_CLOSED:
        break;
    }
    lofi_set_error("this round is closed: there is no next step");
    return LOFI_STATE;
}

const char *lofi_round_verdict(const lofi_round *round)
{
    return round->verdict != NULL ? round->verdict : "";
}

int lofi_round_is_in(const lofi_round *round, int member)
{
    return member >= 0 && member < round->member_count && round->is_in[member];
}

int lofi_round_count(const lofi_round *round)
{
    int count = 0;
    for (int i = 0; i < round->member_count; i++)
        count += round->is_in[i];
    return count;
}

int64_t lofi_round_value(const lofi_round *round)
{
    return round->value;
}

int lofi_progress_is_past(const char *progress, int64_t steps)
{
    int64_t posted;

    if (progress == NULL || *progress == '\0') return 0;
    return !lofi__whole_number(progress, &posted) || posted > steps;
}
