/* SPDX-License-Identifier: MIT */
/* Numbers that an average should not have, as JSON and as an exit code. */
#ifndef LOFI_CLI_FINDINGS_H
#define LOFI_CLI_FINDINGS_H

#include "cli/cli.h"

struct cli_findings {
    const lofi_average_files_options *options;
    FILE *nonfinite, *overflowed; /* members of the JSON lists, with commas between them */
    char *nonfinite_text, *overflowed_text;
    size_t nonfinite_bytes, overflowed_bytes;
    int is_spoilt; /* some are in the output */
};

/* Returns an exit code. Close the findings also after an error. */
int cli_findings_open(struct cli_findings *findings, const lofi_average_files_options *options);
void cli_findings_close(struct cli_findings *findings);
void cli_findings_add(struct cli_findings *findings, const lofi_finding *finding);
/* Prints the two members of an object. */
void cli_findings_print(struct cli_findings *findings, FILE *to);

#endif /* LOFI_CLI_FINDINGS_H */
