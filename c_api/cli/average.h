/* SPDX-License-Identifier: MIT */
/* The options of `lofi average`, which other commands that write averages take, too. */
#ifndef LOFI_CLI_AVERAGE_H
#define LOFI_CLI_AVERAGE_H

#include "cli/cli.h"

struct arguments {
    const char *command; /* its name */
    lofi_average_files_options options;
    const char *weights;   /* as given */
    const char **prefixes; /* room for as many as there are words */
    int has_alpha, is_quiet, is_json, is_help;
};

#define CLI_AVERAGE_SHORTS ":o:w:b:a:j:fqh"
extern const struct option cli_average_options[]; /* the last one is of zeros */

/* Each returns 1 if the text is right. */
int cli_parse_number(const char *text, double *value);
int cli_parse_weights(const char *text, double *weights, int count);

/* Takes an option that cli_next_option has returned. Returns the exit code. */
int cli_take_average_option(struct arguments *a, int option, char *value);

#endif /* LOFI_CLI_AVERAGE_H */
