/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli/soup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const trials[] = {"alone", "add", "alpha"};

static const char *name_of(const struct soup *s, const lofi_soup_step *step)
{
    return s->a.options.inputs[step->input];
}

/* Whether the output has the input, or is of this alpha, the last one that was the best so far. */
static int is_kept(const struct soup *s, int index)
{
    if (s->steps[index].trial == LOFI_SOUP_ALPHA)
        for (int i = index + 1; i < s->step_count; i++)
            if (s->steps[i].is_kept) return 0;
    return s->steps[index].is_kept;
}

static const char *word_for(const lofi_soup_step *step)
{
    if (step->trial == LOFI_SOUP_ADD) return step->is_kept ? "kept" : "no";
    return step->is_kept ? "best" : "";
}

void cli_soup_print_step(const struct soup *s, const lofi_soup_step *step)
{
    const int is_first_added = s->step_count == s->a.options.input_count;

    if (s->step_count == 0)
        printf("%12s        %s\n", "score", s->alphas != NULL ? "alpha" : "checkpoint");
    printf("%12.6g  %-4s  ", step->score, word_for(step));
    if (step->trial == LOFI_SOUP_ALPHA) {
        printf("%.9g", step->alpha);
    } else {
        if (step->trial == LOFI_SOUP_ADD && !is_first_added) fputs("+ ", stdout);
        cli_print_text(stdout, name_of(s, step));
    }
    putchar('\n');
    fflush(stdout);
}

static void print_json_step(const struct soup *s, int index)
{
    const lofi_soup_step *step = &s->steps[index];

    printf("%s{\"trial\": \"%s\", ", index > 0 ? ", " : "", trials[step->trial]);
    if (step->trial == LOFI_SOUP_ALPHA) {
        printf("\"alpha\": ");
        cli_print_number(stdout, step->alpha);
    } else {
        printf("\"checkpoint\": ");
        cli_print_json(stdout, name_of(s, step));
    }
    printf(", \"score\": ");
    cli_print_number(stdout, step->score);
    if (step->trial != LOFI_SOUP_ALONE)
        printf(", \"kept\": %s", is_kept(s, index) ? "true" : "false");
    putchar('}');
}

static void print_json_inputs(const struct soup *s)
{
    const char *comma = "";

    printf(", \"inputs\": [");
    for (int i = 0; i < (s->alphas != NULL ? s->a.options.input_count : s->step_count); i++) {
        if (s->alphas == NULL && (s->steps[i].trial != LOFI_SOUP_ADD || !s->steps[i].is_kept))
            continue;
        fputs(comma, stdout);
        cli_print_json(stdout,
                       s->alphas != NULL ? s->a.options.inputs[i] : name_of(s, &s->steps[i]));
        comma = ", ";
    }
    putchar(']');
}

static void print_json(struct soup *s, const lofi_soup_report *r)
{
    printf("{\"output\": ");
    cli_print_json(stdout, s->a.options.out);
    printf(", \"score\": ");
    cli_print_number(stdout, r->score);
    if (s->alphas != NULL) {
        printf(", \"base\": ");
        cli_print_json(stdout, s->a.options.base);
        printf(", \"alpha\": ");
        cli_print_number(stdout, r->alpha);
    }
    print_json_inputs(s);
    printf(", \"averaged\": %" PRIu64 ", \"copied\": %" PRIu64 ", \"batchnorm_averaged\": %" PRIu64
           ", ",
           r->average.averaged_count, r->average.copied_count, r->average.statistics_count);
    cli_findings_print(&s->findings, stdout);
    printf(", \"steps\": [");
    for (int i = 0; i < s->step_count; i++)
        print_json_step(s, i);
    puts("]}");
}

void cli_soup_print_report(struct soup *s, const lofi_soup_report *r)
{
    if (s->a.is_json) {
        print_json(s, r);
        return;
    }
    if (s->a.is_quiet) return;
    cli_print_text(stdout, s->a.options.out);
    if (s->alphas != NULL)
        printf(": alpha %.9g", r->alpha);
    else
        printf(": the mean of %d of %d checkpoints", r->kept_count, s->a.options.input_count);
    printf(", score %.6g\n", r->score);
}

static int fail_for_csv(const struct soup *s)
{
    lofi_set_error("%s: it can't be written: %s", s->csv, strerror(errno));
    return cli_fail();
}

int cli_soup_check_csv(const struct soup *s)
{
    if (s->csv == NULL) return CLI_DONE;
    for (int i = 0; i < s->a.options.input_count; i++)
        if (strcmp(s->csv, s->a.options.inputs[i]) == 0)
            return cli_misuse("soup", "--csv is the checkpoint %s", s->csv);
    const int fd = open(s->csv, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) close(fd);
    if (fd >= 0 || errno == ENXIO) return CLI_DONE; /* ENXIO: nobody reads a pipe yet */
    if (errno != ENOENT) return fail_for_csv(s);
    const char *slash = strrchr(s->csv, '/');
    char *folder = slash == NULL ? strdup(".") : strndup(s->csv, (size_t)(slash - s->csv) + 1);
    if (folder == NULL) return cli_fail_for_memory();
    const int is_writable = access(folder, W_OK) == 0;
    free(folder);
    return is_writable ? CLI_DONE : fail_for_csv(s);
}

/* As RFC 4180 quotes. */
static void print_csv_text(FILE *to, const char *text)
{
    fputc('"', to);
    for (const char *c = text; *c != '\0'; c++) {
        if (*c == '"') fputc('"', to);
        fputc(*c, to);
    }
    fputc('"', to);
}

static void print_csv_step(FILE *to, const struct soup *s, int index)
{
    const lofi_soup_step *step = &s->steps[index];

    fprintf(to, "%s,", trials[step->trial]);
    if (step->trial != LOFI_SOUP_ALPHA) print_csv_text(to, name_of(s, step));
    fputc(',', to);
    if (step->trial == LOFI_SOUP_ALPHA) fprintf(to, "%.17g", step->alpha);
    fprintf(to, ",%.17g,", step->score);
    if (step->trial != LOFI_SOUP_ALONE) fputc(is_kept(s, index) ? '1' : '0', to);
    fputc('\n', to);
}

int cli_soup_write_csv(const struct soup *s)
{
    if (s->csv == NULL) return CLI_DONE;
    FILE *to = fopen(s->csv, "we");
    if (to == NULL) return fail_for_csv(s);
    fputs("trial,checkpoint,alpha,score,kept\n", to);
    for (int i = 0; i < s->step_count; i++)
        print_csv_step(to, s, i);
    const int failed = ferror(to);
    return fclose(to) != 0 || failed ? fail_for_csv(s) : CLI_DONE;
}
