/* SPDX-License-Identifier: MIT */
/* A command of the user's that scores a checkpoint. */
#ifndef LOFI_CLI_SCORE_H
#define LOFI_CLI_SCORE_H

#include "lofi.h"

struct cli_score {
    char *command;          /* for sh, with ${1} where the path belongs */
    double timeout_seconds; /* 0: it may take as long as it likes */
};

/* Puts ${1} in place of each {} of a command of the shell, quoted as its place requires, so that a
 * path may have any character in it. To be freed; NULL: there is no {}, or no memory (errno). */
char *cli_score_command(const char *text);

/* Finds the number at the end of the last line that is not blank; a % behind it does not count. The
 * text is changed. Returns that line if it ends with no number, "" if there is no line; NULL if all
 * is well. */
const char *cli_score_parse(char *text, double *score);

/* Runs the command on the checkpoint at `path`, and reads the score from its output. The last error
 * says what went wrong; then no process of the command's is left, but those that leave its process
 * group. LOFI_STATE after a signal to end. */
lofi_status cli_score_run(const struct cli_score *score, const char *path, double *value);

#endif /* LOFI_CLI_SCORE_H */
