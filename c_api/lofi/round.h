/* SPDX-License-Identifier: MIT */
/* Rounds: members announce themselves, a round is closed once, and all learn who is in. */
#ifndef LOFI_ROUND_H
#define LOFI_ROUND_H

#include "lofi/base.h"

LOFI__DECLARATIONS_BEGIN

/*
 * A round needs a *board*, which is the caller's: a key-value store, a folder. Words lie there
 * under names. A round needs this of it, and no more:
 *
 *   put       writes a word, in place of one that is there. A read finds the old word or the new
 *             one, never a part, and every read that begins after the put finds the new one.
 *   put once  writes a word unless one is there, and returns the one that is there then, in one
 *             step: of several at the same time exactly one writes, and all return its word.
 *   read      returns a word, or that there is none. Reads of several names, and LOOK, need not be
 *             one step: each name's own read has to be.
 *   remove    takes a word away, for withdrawals; every read that begins later finds none. The
 *             verdict is never removed while somebody may still come.
 *
 * A lofi_round is one member's part in it: it says the next step, the caller takes it on the board
 * and answers with the outcome. Several processes may take part as one member if they announce the
 * same word.
 *
 * The first verdict that is put decides for all, so that all who learn of the round's end learn the
 * same; also those who were too late, and those whose time was up when others were still coming. A
 * member that ends in the middle of it keeps nobody from closing the round.
 *
 * A member withdraws by removing its word. That is a wish: another member may have listed the word
 * and close the round with it afterwards, and after the closing a removal changes nothing. The
 * verdict alone says who is in. So a member that has withdrawn learns from it what became of that,
 * with another lofi_round: it looks on, or it comes back, also with another word. A withdrawal
 * makes no round close early: a member that saw enough announcements, and then lists fewer, waits
 * on. Only a member with one process may withdraw.
 */
typedef struct lofi_round lofi_round;

/* A number that the verdict carries, made of the words of those who are in. */
typedef enum lofi_round_value_kind {
    LOFI_ROUND_NOTHING = 0, /* 0 */
    LOFI_ROUND_LEAST = 1,   /* the words are whole numbers: the smallest one */
    LOFI_ROUND_DIFFERS = 2  /* the first member whose word is not the lowest member's; -1: none.
                               Words that differ close the round at once, or, if the first word of
                               all was withdrawn, at the latest when all have come */
} lofi_round_value_kind;

typedef struct lofi_round_options {
    size_t size;
    int member_count;           /* 1 ... 2^20 members, numbered from 0 */
    int member;                 /* the caller; -1: it looks on, and announces nothing */
    int close_at;               /* as many announcements close the round at once; 0: all */
    lofi_round_value_kind kind; /* of lofi_round_value */
} lofi_round_options;
#define LOFI_ROUND_OPTIONS_INIT                                                                    \
    {                                                                                              \
        sizeof(lofi_round_options), 1, 0, 0, LOFI_ROUND_NOTHING                                    \
    }

typedef enum lofi_round_step {
    LOFI_ROUND_ANNOUNCE = 0, /* put this member's word on the board */
    LOFI_ROUND_COMPARE = 1,  /* put this member's word under a name for the first one of all, unless
                                a word is there; yes: the word there then is another one */
    LOFI_ROUND_LOOK = 2,     /* yes: close_at members, or more, have announced */
    LOFI_ROUND_WAIT = 3,     /* yes: there is a verdict; no: there is none, and the time is up or
                                   somebody is known not to come. A member that only announces may
                                   stop here: others, or its next look, will find it */
    LOFI_ROUND_LIST = 4,     /* words: each member's, NULL for one that has not announced. Back to
                                   LOOK if the words that led here were taken back meanwhile */
    LOFI_ROUND_CLOSE = 5,    /* put lofi_round_verdict unless a verdict is there; verdict: the one
                                   that is there then */
    LOFI_ROUND_READ = 6,     /* verdict: the one that is there, or NULL (only if one looks on) */
    LOFI_ROUND_CLOSED = 7    /* there is no next step */
} lofi_round_step;

typedef struct lofi_round_answer {
    size_t size;
    int yes;
    const char *const *words; /* member_count; borrowed during the call, as is verdict */
    const char *verdict;
} lofi_round_answer;
#define LOFI_ROUND_ANSWER_INIT                                                                     \
    {                                                                                              \
        sizeof(lofi_round_answer), 0, NULL, NULL                                                   \
    }

/* LOFI_INVALID for options outside of their ranges. */
lofi_status lofi_round_create(const lofi_round_options *options, lofi_round **out);
void lofi_round_destroy(lofi_round *round);

lofi_round_step lofi_round_next(const lofi_round *round);

/* The outcome of the next step; it leads to another one. LOFI_CORRUPT for a verdict that is none,
 * or is of another kind of round, and for a word that is no whole number where LEAST asks for one
 * (names the member); LOFI_INVALID for an answer without what the step asks for. The round stays at
 * its step then. */
lofi_status lofi_round_tell(lofi_round *round, const lofi_round_answer *answer);

/* At LOFI_ROUND_CLOSE: the text to put. Borrowed, until the next call that changes the round. It
 * has ranges of members and the value, "0-3,5;17", so that it stays short for many members. */
const char *lofi_round_verdict(const lofi_round *round);

/* At LOFI_ROUND_CLOSED: */
int lofi_round_is_in(const lofi_round *round, int member); /* 1 or 0 */
int lofi_round_count(const lofi_round *round);             /* of those who are in */
int64_t lofi_round_value(const lofi_round *round);

/*
 * Whether a node is past its step number `steps`, and will not come to what belongs to that step.
 * `progress` is the last word that the node has posted of itself: a number of steps, or any other
 * word ("end", "failed") if it makes no more steps. NULL or "": nothing was posted, so no.
 */
int lofi_progress_is_past(const char *progress, int64_t steps);

/* One node's words on itself before an average. */
typedef struct lofi_node_report {
    int32_t present;   /* 0: it did not come */
    int32_t reserved;  /* 0 */
    int64_t nonfinite; /* index of its first tensor that differs between nodes and is not finite;
                          -1: all are finite */
    double weight;     /* finite, > 0 */
} lofi_node_report;

/*
 * Decides which nodes give to an average: those that are present and finite. Pure; the same answer
 * on every rank. Writes to `members` (capacity `nodes`) the numbers of these nodes, ascending, and
 * to `member_count` how many. Of an absent node nothing else is read. LOFI_INVALID for a bad weight
 * (names the node), and for min_nodes outside of 1 ... nodes; LOFI_PEER_LOST when fewer than
 * `min_nodes` are present; LOFI_STATE when no present node is finite.
 */
lofi_status lofi_round_members(const lofi_node_report *reports, int nodes, int min_nodes,
                               int *members, int *member_count);

LOFI__DECLARATIONS_END

#endif /* LOFI_ROUND_H */
