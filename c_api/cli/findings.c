/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli/findings.h"

#include <inttypes.h>
#include <stdlib.h>

int cli_findings_open(struct cli_findings *f, const lofi_average_files_options *options)
{
    *f = (struct cli_findings){.options = options};
    f->nonfinite = open_memstream(&f->nonfinite_text, &f->nonfinite_bytes);
    f->overflowed = open_memstream(&f->overflowed_text, &f->overflowed_bytes);
    return f->nonfinite != NULL && f->overflowed != NULL ? CLI_DONE : cli_fail_for_memory();
}

void cli_findings_close(struct cli_findings *f)
{
    if (f->nonfinite != NULL) fclose(f->nonfinite);
    if (f->overflowed != NULL) fclose(f->overflowed);
    free(f->nonfinite_text);
    free(f->overflowed_text);
}

void cli_findings_add(struct cli_findings *f, const lofi_finding *finding)
{
    const lofi_average_files_options *o = f->options;
    FILE *to = finding->input < 0 ? f->overflowed : f->nonfinite;

    f->is_spoilt |= finding->is_averaged;
    fprintf(to, "%s{\"tensor\": ", ftell(to) > 0 ? ", " : "");
    cli_print_json(to, finding->tensor);
    if (finding->input >= 0) {
        fprintf(to, ", \"input\": ");
        cli_print_json(to, finding->input < o->input_count ? o->inputs[finding->input] : o->base);
        fprintf(to, ", \"file\": ");
        cli_print_json(to, finding->file);
        fprintf(to, ", \"averaged\": %s", finding->is_averaged ? "true" : "false");
    }
    fprintf(to, ", \"count\": %" PRIu64 "}", finding->count);
}

void cli_findings_print(struct cli_findings *f, FILE *to)
{
    fflush(f->nonfinite);
    fflush(f->overflowed);
    fprintf(to, "\"nonfinite\": [%s], \"overflowed\": [%s]", f->nonfinite_text, f->overflowed_text);
}
