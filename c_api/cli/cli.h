/* SPDX-License-Identifier: MIT */
/* The program lofi: arguments in, lofi.h out. Each command returns the exit code. */
#ifndef LOFI_CLI_CLI_H
#define LOFI_CLI_CLI_H

#include "lofi.h"

#include <getopt.h>
#include <stdio.h>

enum {
    CLI_DONE = 0,
    CLI_FAILED = 1,
    CLI_MISUSED = 2,
    CLI_SPOILT = 3 /* done, with numbers that are not finite, or did not fit */
};

/* argv[0] is the name of the command. */
int cli_average(int argc, char **argv);
int cli_soup(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_diff(int argc, char **argv);

/* "lofi: ..." on stderr; each returns the exit code. A name from a file may have anything in it:
 * what is no text for a terminal is printed as '?'. */
int cli_fail(void); /* with lofi_last_error() */
int cli_fail_for_memory(void);
int cli_misuse(const char *command, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* The next option, as getopt_long says it; what it refuses, or finds without its value, is told and
 * becomes CLI_REFUSED. */
enum { CLI_REFUSED = '?' };
int cli_next_option(int argc, char **argv, const char *shorts, const struct option *longs);

double cli_seconds(void); /* of a clock that never goes back */

void cli_print_text(FILE *to, const char *text);
void cli_print_json(FILE *to, const char *text);           /* with its quotes; always UTF-8 */
void cli_print_number(FILE *to, double value);             /* JSON: null for what is not finite */
void cli_print_bytes(FILE *to, uint64_t bytes);            /* "956.95 MB" */
void cli_print_shape(FILE *to, const lofi_tensor *tensor); /* "[2, 3]" */

/* Opens all, or prints why not; NULL then. To be closed with cli_close_all. */
lofi_checkpoint **cli_open_all(char *const *paths, int count);
void cli_close_all(lofi_checkpoint **checkpoints, int count);

#endif /* LOFI_CLI_CLI_H */
