/* SPDX-License-Identifier: MIT */
/*
 * Rounds: every order of events of 1 to 4 members, and the text of verdicts.
 *
 * The members are lofi_round objects, as they run in a job. The board is a model: atomic words. A
 * member takes its steps one at a time; its list of the others is read member by member, so that
 * others may announce in between; its time may be up at any moment of a wait; it may end at any
 * moment for good. States are remembered, so each is visited once, and the number of orders is
 * counted on the way.
 */
#include "average/round.h"
#include "core/mem.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>

#define MEMBERS_MOST 4
#define GONE 7 /* in place of a step: the member has ended */

/* ---- a state of all members and the board, packed into a word ---------------------------------- */

struct member {
    unsigned step, is_in, listed, at; /* `listed`: who was seen so far, up to member `at` */
};

struct state {
    struct member members[MEMBERS_MOST];
    unsigned announced; /* a bit for each member */
    unsigned verdict;   /* the members in it; 0: none is there */
};

static int member_count, may_fail, close_at;
static lofi_round_value_kind kind;

static uint64_t pack(const struct state *s)
{
    uint64_t word = 0;
    for (int m = 0; m < MEMBERS_MOST; m++) {
        const struct member *it = &s->members[m];
        word = word << 14 | it->step << 11 | it->is_in << 7 | it->listed << 3 | it->at;
    }
    return word << 8 | s->announced << 4 | s->verdict;
}

/* ---- states that were visited, with the number of orders from there ----------------------------- */

#define SLOTS (1u << 22)
static uint64_t *keys;
static double *orders;
static size_t visited;

static size_t slot_of(uint64_t key)
{
    size_t slot = (size_t)(key * UINT64_C(0x9e3779b97f4a7c15) >> 42) % SLOTS;
    while (keys[slot] != 0 && keys[slot] != key + 1)
        slot = (slot + 1) % SLOTS;
    return slot;
}

/* ---- one step of one member, by liblofi -------------------------------------------------------- */

static unsigned bits_of(const struct lofi_round *round)
{
    unsigned bits = 0;
    for (int i = 0; i < member_count; i++)
        bits |= (unsigned)lofi_round_is_in(round, i) << i;
    return bits;
}

static struct lofi_round *round_at(const struct member *it, int m)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    struct lofi_round *round;

    options.member_count = member_count;
    options.member = m;
    options.close_at = close_at;
    options.kind = kind;
    ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
    round->step = (lofi_round_step)it->step;
    for (int i = 0; i < member_count; i++)
        round->is_in[i] = it->is_in >> i & 1;
    return round;
}

static int64_t value_of(unsigned in)
{
    if (kind == LOFI_ROUND_NOTHING) return 0;
    for (int i = 0; i < member_count; i++)
        if (in >> i & 1) return kind == LOFI_ROUND_LEAST ? 10 + i : -1;
    return 0;
}

static const char *text_of(unsigned in)
{
    static char *text;
    unsigned char is_in[MEMBERS_MOST];

    for (int i = 0; i < member_count; i++)
        is_in[i] = in >> i & 1;
    lofi__mem_destroy(text);
    text = lofi__verdict_write(is_in, member_count, value_of(in));
    return text;
}

/* The words that member m announces: numbers for LEAST, all the same for DIFFERS. */
static const char *word_of(int m)
{
    static const char *const numbers[] = {"10", "11", "12", "13"};
    return kind == LOFI_ROUND_LEAST ? numbers[m] : "word";
}

/* `yes` answers a wait. */
static void advance(struct state *s, int m, int yes)
{
    struct member *it = &s->members[m];
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
    const char *words[MEMBERS_MOST] = {NULL};

    if (it->step == LOFI_ROUND_LIST && it->at < (unsigned)member_count) {
        it->listed |= s->announced & 1u << it->at++;
        return;
    }
    struct lofi_round *round = round_at(it, m);
    answer.yes = yes;
    if (it->step == LOFI_ROUND_ANNOUNCE) s->announced |= 1u << m;
    if (it->step == LOFI_ROUND_LOOK)
        answer.yes = __builtin_popcount(s->announced) >= (close_at > 0 ? close_at : member_count);
    if (it->step == LOFI_ROUND_LIST) {
        for (int i = 0; i < member_count; i++)
            if (it->listed >> i & 1) words[i] = word_of(i);
        answer.words = words;
    }
    if (it->step == LOFI_ROUND_CLOSE && s->verdict == 0) {
        /* What was in the member's list is what it puts. */
        s->verdict = it->is_in;
        ASSERT((s->verdict & ~s->announced) == 0);
        ASSERT(s->verdict >> m & 1);
    }
    if (it->step == LOFI_ROUND_CLOSE || it->step == LOFI_ROUND_READ)
        answer.verdict = text_of(s->verdict);
    const int was_list = it->step == LOFI_ROUND_LIST || it->step == LOFI_ROUND_LOOK;
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    it->step = (unsigned)lofi_round_next(round);
    it->is_in = bits_of(round);
    it->listed = it->at = 0;
    if (was_list && it->step == LOFI_ROUND_CLOSE)
        ASSERT(strcmp(lofi_round_verdict(round), text_of(it->is_in)) == 0);
    if (it->step == LOFI_ROUND_CLOSED) {
        ASSERT(it->is_in == s->verdict);
        ASSERT(lofi_round_value(round) == value_of(s->verdict));
    }
    lofi_round_destroy(round);
}

/* ---- all orders --------------------------------------------------------------------------------- */

static double visit(const struct state *s);

static double after(const struct state *s, int m, int yes)
{
    struct state next = *s;
    advance(&next, m, yes);
    return visit(&next);
}

static double events_of(const struct state *s, int m)
{
    const struct member *it = &s->members[m];
    double count = 0;

    if (it->step == LOFI_ROUND_CLOSED || it->step == GONE) return 0;
    if (it->step == LOFI_ROUND_WAIT) {
        if (s->verdict != 0) count += after(s, m, 1);
        if (may_fail) count += after(s, m, 0); /* also just before it would have seen a verdict */
    } else {
        count += after(s, m, 0);
    }
    if (may_fail) {
        struct state next = *s;
        next.members[m] = (struct member){.step = GONE};
        count += visit(&next);
    }
    return count;
}

/* Nobody can go on. */
static void check_end(const struct state *s)
{
    unsigned done = 0, gone = 0;

    for (int m = 0; m < member_count; m++) {
        done += s->members[m].step == LOFI_ROUND_CLOSED;
        gone += s->members[m].step == GONE;
    }
    ASSERT(done + gone == (unsigned)member_count); /* nobody waits for ever */
    if (done > 0) ASSERT(s->verdict != 0);
    for (int m = 0; m < member_count; m++)
        if (s->members[m].step == LOFI_ROUND_CLOSED) ASSERT(s->members[m].is_in == s->verdict);
    if (!may_fail && (close_at == 0 || close_at == member_count))
        ASSERT(s->verdict == (1u << member_count) - 1);
}

static double visit(const struct state *s)
{
    const uint64_t key = pack(s);
    const size_t slot = slot_of(key);
    double count = 0;

    if (keys[slot] != 0) return orders[slot];
    for (int m = 0; m < member_count; m++)
        count += events_of(s, m);
    if (count == 0) {
        check_end(s);
        count = 1;
    }
    const size_t own = slot_of(key); /* others were put in meanwhile */
    keys[own] = key + 1;
    orders[own] = count;
    ASSERT(++visited < SLOTS / 2);
    return count;
}

static void enumerate(int count, int fail, int at, lofi_round_value_kind of_kind)
{
    struct state begin = {0};

    member_count = count;
    may_fail = fail;
    close_at = at;
    kind = of_kind;
    visited = 0;
    memset(keys, 0, SLOTS * sizeof *keys);
    const double paths = visit(&begin);
    printf("%d members, %s, close at %d, value %d: %zu states, %.3g orders\n", count,
           fail ? "any may be late or end" : "nobody fails", at, (int)of_kind, visited, paths);
}

static void test_every_order(void)
{
    keys = malloc(SLOTS * sizeof *keys);
    orders = malloc(SLOTS * sizeof *orders);
    ASSERT(keys != NULL && orders != NULL);
    for (int count = 1; count <= MEMBERS_MOST; count++) {
        for (int fail = 0; fail < 2; fail++) {
            enumerate(count, fail, 0, LOFI_ROUND_NOTHING);
            if (count < MEMBERS_MOST || !fail) {
                enumerate(count, fail, 1, LOFI_ROUND_LEAST);
                enumerate(count, fail, 0, LOFI_ROUND_DIFFERS);
                enumerate(count, fail, (count + 1) / 2, LOFI_ROUND_NOTHING);
            }
        }
    }
    free(orders);
    free(keys);
}

/* ---- texts -------------------------------------------------------------------------------------- */

static void test_verdicts_are_read_as_written(void)
{
    for (unsigned bits = 0; bits < 1u << 12; bits++) {
        unsigned char is_in[12], found[12];
        int64_t value = 0;
        for (int i = 0; i < 12; i++)
            is_in[i] = bits >> i & 1;
        char *text = lofi__verdict_write(is_in, 12, (int64_t)bits - 9);
        ASSERT(lofi__verdict_read(text, 12, found, &value) == LOFI_OK);
        ASSERT(memcmp(found, is_in, sizeof found) == 0 && value == (int64_t)bits - 9);
        lofi__mem_destroy(text);
    }
    unsigned char all[6] = {1, 1, 1, 1, 0, 1};
    char *text = lofi__verdict_write(all, 6, 17);
    ASSERT(strcmp(text, "0-3,5;17") == 0);
    lofi__mem_destroy(text);
}

static void test_strange_verdicts_are_refused(void)
{
    static const char *const strange[] = {"",
                                          "0",
                                          "0;",
                                          ";",
                                          "0;x",
                                          "6;0",
                                          "0-6;0",
                                          "3-2;0",
                                          "2-2;0",
                                          "1,0;0",
                                          "0,1;0",
                                          "0-1,2;0",
                                          "-1;0",
                                          "0-;0",
                                          "0,;0",
                                          ",0;0",
                                          "0 ;0",
                                          "0;1 ",
                                          "00000000000000000000000000000000000009;0",
                                          "0;99999999999999999999",
                                          "0;--1",
                                          "0-3-5;0"};
    unsigned char is_in[6] = {1, 0, 1, 0, 1, 0}, before[6] = {1, 0, 1, 0, 1, 0};
    int64_t value = 42;

    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        ASSERT(lofi__verdict_read(strange[i], 6, is_in, &value) == LOFI_CORRUPT);
        ASSERT(memcmp(is_in, before, sizeof before) == 0 && value == 42);
        ASSERT(strstr(lofi_last_error(), "no verdict of a round of 6 members") != NULL);
    }
}

static void test_progress(void)
{
    ASSERT(!lofi_progress_is_past(NULL, 3) && !lofi_progress_is_past("", 3));
    ASSERT(!lofi_progress_is_past("2", 3) && !lofi_progress_is_past("3", 3));
    ASSERT(lofi_progress_is_past("4", 3) && lofi_progress_is_past("123456789", 3));
    ASSERT(lofi_progress_is_past("end", 3) && lofi_progress_is_past("failed", 1000));
}

/* ---- single rounds ------------------------------------------------------------------------------ */

static lofi_round *at_list(lofi_round_value_kind of_kind, int members)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
    lofi_round *round;

    options.member_count = members;
    options.kind = of_kind;
    ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_ANNOUNCE);
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_WAIT);
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_LIST);
    return round;
}

static void check_value(lofi_round_value_kind of_kind, const char *const *words, int count,
                        const char *verdict)
{
    lofi_round *round = at_list(of_kind, count);
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;

    answer.words = words;
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(strcmp(lofi_round_verdict(round), verdict) == 0);
    lofi_round_destroy(round);
}

static void test_values(void)
{
    const char *numbers[] = {"7", "-3", NULL, "12"}, *tags[] = {"a", NULL, "a", "b", "c"};
    const char *equal[] = {"a", "a", NULL};

    check_value(LOFI_ROUND_LEAST, numbers, 4, "0-1,3;-3");
    check_value(LOFI_ROUND_DIFFERS, tags, 5, "0,2-4;3");
    check_value(LOFI_ROUND_DIFFERS, equal, 3, "0-1;-1");
    check_value(LOFI_ROUND_NOTHING, tags, 5, "0,2-4;0");

    lofi_round *round = at_list(LOFI_ROUND_LEAST, 5);
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
    answer.words = tags;
    ASSERT(lofi_round_tell(round, &answer) == LOFI_INVALID);
    ASSERT(strstr(lofi_last_error(), "member 0 announced 'a'") != NULL);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_LIST);
    lofi_round_destroy(round);
}

static void test_an_onlooker_announces_nothing(void)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
    lofi_round *round;

    options.member_count = 3;
    options.member = -1;
    ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_READ);
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_READ);
    answer.verdict = "0,2;5";
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_CLOSED);
    ASSERT(lofi_round_is_in(round, 0) && !lofi_round_is_in(round, 1) &&
           !lofi_round_is_in(round, 3));
    ASSERT(lofi_round_count(round) == 2 && lofi_round_value(round) == 5);
    ASSERT(lofi_round_tell(round, &answer) == LOFI_STATE);
    lofi_round_destroy(round);
}

static void test_wrong_options(void)
{
    const lofi_round_options good = LOFI_ROUND_OPTIONS_INIT;
    lofi_round *round = NULL;
    lofi_round_options o;

    o = good, o.member_count = 0;
    ASSERT(lofi_round_create(&o, &round) == LOFI_INVALID);
    o = good, o.member = 1;
    ASSERT(lofi_round_create(&o, &round) == LOFI_INVALID);
    o = good, o.close_at = 2;
    ASSERT(lofi_round_create(&o, &round) == LOFI_INVALID);
    o = good, o.kind = (lofi_round_value_kind)3;
    ASSERT(lofi_round_create(&o, &round) == LOFI_INVALID);
    ASSERT(lofi_round_create(NULL, &round) == LOFI_INVALID && round == NULL);
    lofi_round_destroy(NULL);
}

int main(void)
{
    test_every_order();
    test_verdicts_are_read_as_written();
    test_strange_verdicts_are_refused();
    test_progress();
    test_values();
    test_an_onlooker_announces_nothing();
    test_wrong_options();
    return test_end();
}
