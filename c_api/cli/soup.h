/* SPDX-License-Identifier: MIT */
/* The steps of a soup, as they are printed. */
#ifndef LOFI_CLI_SOUP_H
#define LOFI_CLI_SOUP_H

#include "cli/average.h"
#include "cli/findings.h"
#include "cli/score.h"

struct soup {
    struct arguments a;
    struct cli_score score;
    const char *csv; /* NULL: none */
    double *alphas;  /* NULL: it is greedy */
    int alpha_count, lower;
    lofi_soup_step *steps;
    int step_count;
    struct cli_findings findings;
};

/* A row of the table on stdout; the first comes with a head. */
void cli_soup_print_step(const struct soup *s, const lofi_soup_step *step);
/* What has become of it, as a line or as JSON. */
void cli_soup_print_report(struct soup *s, const lofi_soup_report *report);

/* Checks that a file can be written, before it is needed; and writes it. Each returns the exit
 * code. */
int cli_soup_check_csv(const struct soup *s);
int cli_soup_write_csv(const struct soup *s);

#endif /* LOFI_CLI_SOUP_H */
