/* SPDX-License-Identifier: MIT */
/*
 * Rounds: every order of events of 1 to 4 processes, and the text of verdicts.
 *
 * The processes are lofi_round objects, as they run in a job; several may be one member. The board
 * is a model: atomic words. A process takes its steps one at a time; its list of the others is read
 * member by member, so that others may announce in between, or withdraw; its time may be up at any
 * moment of a wait; it may withdraw once while it waits, and come back; it may end at any moment
 * for good. States are remembered, so each is visited once, and the number of orders is counted on
 * the way.
 */
#include "average/round.h"
#include "core/mem.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>

#define PROCESSES_MOST 4
#define MEMBERS_MOST PROCESSES_MOST
#define GONE 8 /* in place of a step: the process has ended */

/* ---- a state of all processes and the board, packed into two words --------------------------- */

struct process {
    unsigned step, is_time_up, is_in;
    unsigned listed, at; /* the members that were seen so far, up to member `at` */
};

struct state {
    struct process processes[PROCESSES_MOST];
    unsigned announced; /* a bit for each member */
    unsigned first;     /* 1 + the member whose word is the first one of all; 0: there is none */
    unsigned verdict;   /* the members in it; 0: none is there */
    unsigned withdrew;  /* a bit for each member that has taken its word back, or had */
};

struct key {
    uint64_t low, high;
};

/* The case that is enumerated now. */
static struct {
    int members, processes;
    int member_of[PROCESSES_MOST];
    const char *words[MEMBERS_MOST]; /* that the members announce */
    int may_fail, may_withdraw, close_at;
    lofi_round_value_kind kind;
} now;

static struct key pack(const struct state *s)
{
    uint64_t half[2] = {0, 0};

    for (int p = 0; p < PROCESSES_MOST; p++) {
        const struct process *it = &s->processes[p];
        half[p / 2] = half[p / 2] << 16 | it->step << 12 | it->is_time_up << 11 | it->is_in << 7 |
                      it->listed << 3 | it->at;
    }
    half[1] = half[1] << 16 | s->withdrew << 12 | s->first << 8 | s->announced << 4 | s->verdict;
    return (struct key){half[0] + 1, half[1]}; /* never all zeros, which is an empty slot */
}

/* ---- states that were visited, with the number of orders from there -------------------------- */

#define SLOTS (1u << 22)
static struct key *keys;
static double *orders;
static size_t visited, visited_in_all;

static size_t slot_of(struct key key)
{
    const uint64_t mixed =
        (key.low ^ key.high * UINT64_C(0xbf58476d1ce4e5b9)) * UINT64_C(0x9e3779b97f4a7c15);
    size_t slot = (size_t)(mixed >> 42) % SLOTS;

    while (keys[slot].low != 0 && (keys[slot].low != key.low || keys[slot].high != key.high))
        slot = (slot + 1) % SLOTS;
    return slot;
}

/* ---- one step of one process, by liblofi ----------------------------------------------------- */

static unsigned bits_of(const struct lofi_round *round)
{
    unsigned bits = 0;
    for (int i = 0; i < now.members; i++)
        bits |= (unsigned)lofi_round_is_in(round, i) << i;
    return bits;
}

/* By the definition of each kind. */
static int64_t value_of(unsigned in)
{
    int lowest = -1, differs = -1;
    long least = 0;

    for (int i = 0; i < now.members; i++) {
        if (!(in >> i & 1)) continue;
        const long number = strtol(now.words[i], NULL, 10);
        if (lowest < 0 || number < least) least = number;
        if (lowest < 0) lowest = i;
        if (differs < 0 && strcmp(now.words[i], now.words[lowest]) != 0) differs = i;
    }
    if (now.kind == LOFI_ROUND_NOTHING) return 0;
    return now.kind == LOFI_ROUND_LEAST ? least : differs;
}

static struct lofi_round *round_at(const struct process *it, int member)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    struct lofi_round *round;

    options.member_count = now.members;
    options.member = member;
    options.close_at = now.close_at;
    options.kind = now.kind;
    ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
    round->step = (lofi_round_step)it->step;
    round->is_time_up = (int)it->is_time_up;
    for (int i = 0; i < now.members; i++)
        round->is_in[i] = it->is_in >> i & 1;
    if (it->step == LOFI_ROUND_CLOSE)
        round->verdict = lofi__verdict_write(round->is_in, now.members, value_of(it->is_in));
    return round;
}

static const char *text_of(unsigned in)
{
    static char *text;
    unsigned char is_in[MEMBERS_MOST];

    for (int i = 0; i < now.members; i++)
        is_in[i] = in >> i & 1;
    lofi__mem_destroy(text);
    text = lofi__verdict_write(is_in, now.members, value_of(in));
    return text;
}

/* The board takes the step, which may change it, and answers. `yes` answers a wait. */
static lofi_round_answer take_on_board(struct state *s, const struct process *it, int member,
                                       int yes, const char **words)
{
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;

    answer.yes = yes;
    switch (it->step) {
    case LOFI_ROUND_ANNOUNCE:
        s->announced |= 1u << member;
        break;
    case LOFI_ROUND_COMPARE:
        if (s->first == 0) s->first = (unsigned)member + 1;
        answer.yes = strcmp(now.words[s->first - 1], now.words[member]) != 0;
        break;
    case LOFI_ROUND_LOOK:
        answer.yes =
            __builtin_popcount(s->announced) >= (now.close_at > 0 ? now.close_at : now.members);
        break;
    case LOFI_ROUND_LIST:
        for (int i = 0; i < now.members; i++)
            words[i] = it->listed >> i & 1 ? now.words[i] : NULL;
        answer.words = words;
        break;
    case LOFI_ROUND_CLOSE:
        if (s->verdict == 0) {
            s->verdict = it->is_in; /* what was in the list is what it puts */
            ASSERT((s->verdict & ~(s->announced | s->withdrew)) == 0);
            ASSERT(s->verdict >> member & 1);
        }
        answer.verdict = text_of(s->verdict);
        break;
    case LOFI_ROUND_READ:
        answer.verdict = text_of(s->verdict);
        break;
    default:
        break;
    }
    return answer;
}

static void advance(struct state *s, int p, int yes)
{
    struct process *it = &s->processes[p];
    const char *words[MEMBERS_MOST] = {NULL};
    const unsigned step = it->step;

    if (step == LOFI_ROUND_LIST && it->at < (unsigned)now.members) {
        it->listed |= s->announced & 1u << it->at++;
        return;
    }
    struct lofi_round *round = round_at(it, now.member_of[p]);
    const lofi_round_answer answer = take_on_board(s, it, now.member_of[p], yes, words);
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    it->step = (unsigned)lofi_round_next(round);
    it->is_time_up = (unsigned)round->is_time_up;
    it->is_in = bits_of(round);
    it->listed = it->at = 0;
    if (step != LOFI_ROUND_CLOSE && it->step == LOFI_ROUND_CLOSE)
        ASSERT(strcmp(lofi_round_verdict(round), text_of(it->is_in)) == 0);
    if (it->step == LOFI_ROUND_CLOSED) {
        ASSERT(it->is_in == s->verdict);
        ASSERT(lofi_round_value(round) == value_of(s->verdict));
    } else if (it->step != LOFI_ROUND_CLOSE) {
        it->is_in = 0; /* it has no meaning at other steps */
    }
    lofi_round_destroy(round);
}

/* ---- all orders ------------------------------------------------------------------------------ */

static double visit(const struct state *s);

static double after(const struct state *s, int p, int yes)
{
    struct state next = *s;
    advance(&next, p, yes);
    return visit(&next);
}

static double events_of(const struct state *s, int p)
{
    const struct process *it = &s->processes[p];
    double count = 0;

    if (it->step == LOFI_ROUND_CLOSED || it->step == GONE) return 0;
    if (it->step == LOFI_ROUND_WAIT) {
        if (s->verdict != 0) count += after(s, p, 1);
        if (now.may_fail) count += after(s, p, 0); /* also just before it would see a verdict */
    } else {
        count += after(s, p, 0);
    }
    if (now.may_fail) {
        struct state next = *s;
        next.processes[p] = (struct process){.step = GONE};
        count += visit(&next);
    }
    return count;
}

/* A member that waits takes its word back, whatever the board holds by now, and comes back. */
static double withdrawals_of(const struct state *s, int p)
{
    const unsigned bit = 1u << now.member_of[p];
    struct state next = *s;

    if (!now.may_withdraw || s->processes[p].step != LOFI_ROUND_WAIT || s->withdrew & bit) return 0;
    next.announced &= ~bit;
    next.withdrew |= bit;
    next.processes[p] = (struct process){.step = LOFI_ROUND_ANNOUNCE};
    return visit(&next);
}

/* Nobody can go on. */
static void check_end(const struct state *s)
{
    int done = 0, gone = 0;

    for (int p = 0; p < now.processes; p++) {
        done += s->processes[p].step == LOFI_ROUND_CLOSED;
        gone += s->processes[p].step == GONE;
        if (s->processes[p].step == LOFI_ROUND_CLOSED) ASSERT(s->processes[p].is_in == s->verdict);
    }
    ASSERT(done + gone == now.processes); /* nobody waits for ever */
    if (done > 0) ASSERT(s->verdict != 0);
    if (now.may_fail) return;
    const unsigned all = (1u << now.members) - 1;
    const int differ = now.kind == LOFI_ROUND_DIFFERS && value_of(all) >= 0;
    if (differ)
        ASSERT(value_of(s->verdict) >= 0);
    else if (now.close_at == 0 || now.close_at == now.members)
        ASSERT(s->verdict == all);
    else
        ASSERT(__builtin_popcount(s->verdict) >= now.close_at);
}

/* If all who live only wait, no two of them have announced words that differ: unless the word to
 * compare with was taken back. */
static void check_told_at_once(const struct state *s)
{
    const char *word = NULL;

    if (now.kind != LOFI_ROUND_DIFFERS || s->verdict != 0 || s->withdrew != 0) return;
    for (int p = 0; p < now.processes; p++)
        if (s->processes[p].step != LOFI_ROUND_WAIT && s->processes[p].step != GONE) return;
    for (int p = 0; p < now.processes; p++) {
        if (s->processes[p].step == GONE) continue;
        if (word == NULL) word = now.words[now.member_of[p]];
        ASSERT(strcmp(word, now.words[now.member_of[p]]) == 0);
    }
}

static double visit(const struct state *s)
{
    const struct key key = pack(s);
    const size_t slot = slot_of(key);
    double count = 0;

    if (keys[slot].low != 0) return orders[slot];
    check_told_at_once(s);
    for (int p = 0; p < now.processes; p++)
        count += events_of(s, p);
    if (count == 0) {
        check_end(s);
        count = 1;
    }
    /* nobody may depend on a withdrawal to go on, so check_end comes before */
    for (int p = 0; p < now.processes; p++)
        count += withdrawals_of(s, p);
    const size_t own = slot_of(key); /* others were put in meanwhile */
    keys[own] = key;
    orders[own] = count;
    ASSERT(++visited < SLOTS / 2);
    return count;
}

static unsigned first_step(int member)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    struct lofi_round *round;

    options.member_count = now.members;
    options.member = member;
    ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
    const unsigned step = (unsigned)lofi_round_next(round);
    lofi_round_destroy(round);
    return step;
}

static void enumerate(int may_fail, int at, lofi_round_value_kind kind)
{
    struct state begin = {0};

    now.may_fail = may_fail;
    now.close_at = at;
    now.kind = kind;
    for (int p = 0; p < now.processes; p++)
        begin.processes[p].step = first_step(now.member_of[p]);
    visited = 0;
    memset(keys, 0, SLOTS * sizeof *keys);
    const double paths = visit(&begin);
    visited_in_all += visited;
    printf("%d processes of %d members, words", now.processes, now.members);
    for (int i = 0; i < now.members; i++)
        printf(" %s", now.words[i]);
    printf(", %s%s, close at %d, value %d: %zu states, %.3g orders\n",
           may_fail ? "any may be late or end" : "nobody fails",
           now.may_withdraw ? ", any may withdraw" : "", at, (int)kind, visited, paths);
}

static void set_members(int members)
{
    static const char *const numbers[] = {"12", "11", "10", "13"};

    now.members = now.processes = members;
    for (int i = 0; i < members; i++) {
        now.member_of[i] = i;
        now.words[i] = numbers[i];
    }
}

/* Words that differ: each way in which members can have one of two, by the symmetry of these. */
static void enumerate_words(int may_fail)
{
    for (unsigned other = 0; other < 1u << (now.members - 1); other++) {
        for (int i = 0; i < now.members; i++)
            now.words[i] = i > 0 && other >> (i - 1) & 1 ? "b" : "a";
        enumerate(may_fail, 0, LOFI_ROUND_DIFFERS);
    }
}

static void test_every_order(void)
{
    for (int members = 1; members <= MEMBERS_MOST; members++) {
        for (int may_fail = 0; may_fail < 2; may_fail++) {
            set_members(members);
            enumerate(may_fail, 0, LOFI_ROUND_NOTHING);
            if (members == MEMBERS_MOST && may_fail) continue; /* too many orders for a test */
            enumerate(may_fail, 1, LOFI_ROUND_LEAST);
            enumerate(may_fail, 0, LOFI_ROUND_LEAST);
            enumerate(may_fail, (members + 1) / 2, LOFI_ROUND_NOTHING);
            enumerate_words(may_fail);
        }
    }
}

/* The ranks of a node, each of which speaks for it. */
static void test_several_processes_for_a_member(void)
{
    static const int members_of[][PROCESSES_MOST] = {{0, 0}, {0, 0, 1}, {0, 1, 1, 0}};

    for (int i = 0; i < 3; i++)
        for (int may_fail = 0; may_fail < 2; may_fail++) {
            set_members(i > 0 ? 2 : 1);
            now.processes = i + 2;
            memcpy(now.member_of, members_of[i], sizeof now.member_of);
            enumerate(may_fail, 0, LOFI_ROUND_NOTHING);
            if (now.processes == PROCESSES_MOST && may_fail) continue;
            enumerate(may_fail, 0, LOFI_ROUND_LEAST);
            enumerate_words(may_fail);
        }
}

/* Two members and three: four would have too many orders for a test. */
static void test_withdrawals(void)
{
    now.may_withdraw = 1;
    for (int members = 2; members < MEMBERS_MOST; members++)
        for (int may_fail = 0; may_fail < 2; may_fail++) {
            set_members(members);
            enumerate(may_fail, 0, LOFI_ROUND_NOTHING);
            enumerate(may_fail, 0, LOFI_ROUND_LEAST);
            enumerate(may_fail, 2, LOFI_ROUND_LEAST);
            enumerate_words(may_fail);
        }
    now.may_withdraw = 0;
}

/* ---- texts ----------------------------------------------------------------------------------- */

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

/* ---- single rounds --------------------------------------------------------------------------- */

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
    if (of_kind == LOFI_ROUND_DIFFERS) ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
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
    tags[0] = "\033[2Ja word of forty characters, and then some more";
    answer.words = tags;
    ASSERT(lofi_round_tell(round, &answer) == LOFI_CORRUPT);
    EXPECT_ERROR("member 0 announced '?[2Ja word of forty characters, and then' to a");
    ASSERT(lofi_round_next(round) == LOFI_ROUND_LIST);
    lofi_round_destroy(round);
}

/* A verdict of another kind of round, which would be taken for a member's number, say. */
static void test_values_that_do_not_fit(void)
{
    static const struct {
        lofi_round_value_kind kind;
        const char *verdict;
        lofi_status status;
    } cases[] = {
        {LOFI_ROUND_DIFFERS, "0-2;-1", LOFI_OK},     {LOFI_ROUND_DIFFERS, "0-2;2", LOFI_OK},
        {LOFI_ROUND_DIFFERS, "0-2;3", LOFI_CORRUPT}, {LOFI_ROUND_DIFFERS, "0-2;-2", LOFI_CORRUPT},
        {LOFI_ROUND_DIFFERS, "0,2;1", LOFI_CORRUPT}, {LOFI_ROUND_NOTHING, "0-2;0", LOFI_OK},
        {LOFI_ROUND_NOTHING, "0-2;7", LOFI_CORRUPT}, {LOFI_ROUND_LEAST, "0-2;-77", LOFI_OK}};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
        lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
        lofi_round *round;
        options.member_count = 3;
        options.member = -1;
        options.kind = cases[i].kind;
        ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
        answer.verdict = cases[i].verdict;
        EXPECT(lofi_round_tell(round, &answer) == cases[i].status);
        EXPECT((lofi_round_next(round) == LOFI_ROUND_CLOSED) == (cases[i].status == LOFI_OK));
        lofi_round_destroy(round);
    }
}

/* The one whose word differed has taken it back: the round goes on. */
static void test_a_word_that_was_taken_back(void)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
    const char *words[] = {NULL, "b", "b"};
    lofi_round *round;

    options.member_count = 3;
    options.member = 1;
    options.kind = LOFI_ROUND_DIFFERS;
    ASSERT(lofi_round_create(&options, &round) == LOFI_OK);
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_COMPARE);
    answer.yes = 1;
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_LIST);
    answer.words = words;
    ASSERT(lofi_round_tell(round, &answer) == LOFI_OK);
    ASSERT(lofi_round_next(round) == LOFI_ROUND_LOOK);
    lofi_round_destroy(round);
}

static void test_an_onlooker_announces_nothing(void)
{
    lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
    lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
    lofi_round *round;

    options.member_count = 3;
    options.member = -1;
    options.kind = LOFI_ROUND_LEAST;
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
    keys = malloc(SLOTS * sizeof *keys);
    orders = malloc(SLOTS * sizeof *orders);
    ASSERT(keys != NULL && orders != NULL);
    test_every_order();
    test_several_processes_for_a_member();
    test_withdrawals();
    printf("%zu states in all\n", visited_in_all);
    free(orders);
    free(keys);
    test_verdicts_are_read_as_written();
    test_strange_verdicts_are_refused();
    test_progress();
    test_values();
    test_values_that_do_not_fit();
    test_a_word_that_was_taken_back();
    test_an_onlooker_announces_nothing();
    test_wrong_options();
    return test_end();
}
