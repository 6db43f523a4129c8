/* SPDX-License-Identifier: MIT */
/* Averages of checkpoints that are chosen by scores. */
#ifndef LOFI_SOUP_H
#define LOFI_SOUP_H

#include "lofi/files.h"

LOFI__DECLARATIONS_BEGIN

/* Scores the checkpoint at `path`, which is there for the call. Anything but LOFI_OK ends the
 * search with that status, and with what lofi_set_error was told. */
typedef lofi_status (*lofi_score_fn)(void *ctx, const char *path, double *score);

typedef enum lofi_soup_trial {
    LOFI_SOUP_ALONE = 0, /* an input by itself */
    LOFI_SOUP_ADD = 1,   /* the mean of what is kept and of an input; the first is one by itself */
    LOFI_SOUP_ALPHA = 2  /* a mix of the base and the average */
} lofi_soup_trial;

typedef struct lofi_soup_step {
    lofi_soup_trial trial;
    int input;    /* its index; -1 for LOFI_SOUP_ALPHA */
    double alpha; /* read with LOFI_SOUP_ALPHA */
    double score;
    int is_kept; /* the input is in the soup from now on; the alpha is the best so far */
} lofi_soup_step;

/* Told of each step when its score is known. */
typedef void (*lofi_soup_step_fn)(void *ctx, const lofi_soup_step *step);

typedef struct lofi_soup_options {
    size_t size;
    const lofi_average_files_options *average; /* what to average, and how; borrowed for the call */
    const double *alphas;                      /* NULL: a greedy soup. Else mixes with the base */
    int alpha_count;
    int lower; /* 1: a lower score is better, as of losses */
    lofi_score_fn score;
    lofi_soup_step_fn step; /* may be NULL */
    void *ctx;              /* of both */
} lofi_soup_options;
#define LOFI_SOUP_OPTIONS_INIT                                                                     \
    {                                                                                              \
        sizeof(lofi_soup_options), NULL, NULL, 0, 0, NULL, NULL, NULL                              \
    }

typedef struct lofi_soup_report {
    int kept_count; /* inputs in the output */
    double alpha;   /* with alphas: the best one */
    double score;   /* of the output */
    lofi_average_report average;
} lofi_soup_report;

/*
 * Writes the average that scores best among those that are tried, as lofi_average_files writes it.
 *
 *   Greedy     Without alphas: model soups, recipe 1 (Wortsman et al. 2022, arXiv 2203.05482). Each
 *              input is scored by itself, and they are sorted by that, the best first; equal ones
 *              stay in their order. The best is kept; then each of the others is, in turn, if the
 *              score of the mean of all that are kept with it is not worse than without it. The
 *              output is the mean of those kept, in that order, so that its first input is the best
 *              one. N inputs are scored 2N - 1 times. No weights and no base.
 *   Alphas     (1 - alpha)*base + alpha*average is scored for each alpha, and the best is written,
 *              the first of equal ones. With one input this is WiSE-FT (arXiv 2109.01903). The
 *              options' own alpha is not read.
 *   Means      Each mean is taken of the inputs as they are, and rounded once.
 *   Scores     Have to be finite. `score` gets an input's own path, or that of a mean which is
 *              written for it in a folder beside the output, under the output's name, and removed
 *              after the call with all that lies in that folder then.
 *   Metadata   Those of lofi_average_files, lofi.score of the output, and for a greedy soup
 *              lofi.scores, of the kept inputs by themselves.
 *   Refused    What can be refused is, before anything is scored: the mean of all inputs is taken
 *              once for that.
 *
 * Functions of the options are called on the calling thread. Warnings of the log are for the output
 * only. Errors as in lofi_average_files, and the output is untouched after one. `report` may be NULL.
 */
lofi_status lofi_soup(const lofi_soup_options *options, lofi_soup_report *report);

LOFI__DECLARATIONS_END

#endif /* LOFI_SOUP_H */
