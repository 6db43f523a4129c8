/* SPDX-License-Identifier: MIT */
/*
 * The search for the average that scores best. A mean that is tried is written as a whole, since
 * whoever scores it reads it as any other checkpoint; the output is computed once more at the end,
 * so that its metadata can tell the scores, and nobody can have written into it.
 */
#define _GNU_SOURCE
#include "ckpt/path.h"
#include "core/mem.h"
#include "core/options.h"
#include "merge/output.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ingredient {
    int input;
    double score; /* by itself */
};

struct soup {
    lofi_soup_options options;
    lofi_average_files_options given; /* what to average, in full */
    lofi_average_files_options average;
    struct ingredient
        *order; /* of a greedy soup: all inputs, the best first; in the end those kept */
    const char **kept;
    double *kept_scores;
    int kept_count;
    char *folder;    /* beside the output; NULL: not made */
    char *candidate; /* in it, under the output's name */
};

static lofi_status check_greedy(const lofi_average_files_options *o)
{
    if (o->base != NULL)
        lofi_set_error("a greedy soup has no base: give alphas, or leave the base out");
    else if (o->weights != NULL)
        lofi_set_error("a greedy soup is a mean of equals: leave the weights out");
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

static lofi_status check_alphas(const struct soup *s)
{
    if (s->average.base == NULL) {
        lofi_set_error("alphas say how far to go from a base: give one");
        return LOFI_INVALID;
    }
    for (int i = 0; i < s->options.alpha_count; i++) {
        if (s->options.alphas[i] - s->options.alphas[i] == 0) continue;
        lofi_set_error("alpha is %g: it has to be finite", s->options.alphas[i]);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static lofi_status read_options(const lofi_soup_options *given, struct soup *s)
{
    static const lofi_soup_options init = LOFI_SOUP_OPTIONS_INIT;
    static const lofi_average_files_options average_init = LOFI_AVERAGE_FILES_OPTIONS_INIT;

    *s = (struct soup){.options = init, .average = average_init};
    lofi_status st =
        lofi__options_read(&s->options, sizeof s->options, given, "LOFI_SOUP_OPTIONS_INIT");
    if (st == LOFI_OK)
        st = lofi__options_read(&s->average, sizeof s->average, s->options.average,
                                "LOFI_AVERAGE_FILES_OPTIONS_INIT");
    if (st != LOFI_OK) return st;
    s->given = s->average;
    if (s->options.score == NULL || (s->options.alphas != NULL && s->options.alpha_count < 1)) {
        lofi_set_error("a soup needs a function that scores, and at least one alpha if any");
        return LOFI_INVALID;
    }
    s->average.alpha = 1.0;
    st = lofi_average_files_check(&s->average);
    if (st != LOFI_OK) return st;
    return s->options.alphas != NULL ? check_alphas(s) : check_greedy(&s->average);
}

/* Any input may come to be the first of the output, which gives it its form. */
static lofi_status check_output(const struct soup *s)
{
    const int is_greedy = s->options.alphas == NULL;
    const struct lofi__role role = {0};
    lofi_status st = LOFI_OK;

    for (int i = 0; i < (is_greedy ? s->average.input_count : 1) && st == LOFI_OK; i++) {
        lofi_average_files_options one = s->average;
        struct lofi__place_on_disk disk = {0};
        struct lofi__plan plan;
        if (is_greedy) {
            one.inputs = s->average.inputs + i;
            one.input_count = 1;
        }
        st = lofi__plan_create(&one, is_greedy ? &role : NULL, &plan);
        if (st == LOFI_OK) st = lofi__output_check(&plan, &disk);
        lofi__output_discard(&disk);
        lofi__plan_clear(&plan);
    }
    return st;
}

static lofi_status create_folder(struct soup *s)
{
    char *parent = lofi__path_folder(s->average.out), *name = lofi__path_name(s->average.out);
    char *folder = parent != NULL ? lofi__text_create("%s/.lofi-soup-XXXXXX", parent) : NULL;
    lofi_status st = name != NULL && folder != NULL ? LOFI_OK : LOFI_NO_MEMORY;

    if (st == LOFI_OK && mkdtemp(folder) == NULL)
        st = lofi__path_failed(parent, "what is to be scored can't be written there");
    if (st == LOFI_OK) {
        s->folder = folder;
        s->candidate = lofi__path_join(folder, name);
        if (s->candidate == NULL) st = LOFI_NO_MEMORY;
    } else {
        lofi__mem_destroy(folder);
    }
    lofi__mem_destroy(parent);
    lofi__mem_destroy(name);
    return st;
}

static lofi_status score(const struct soup *s, const char *path, double *value)
{
    lofi_status st = s->options.score(s->options.ctx, path, value);
    if (st != LOFI_OK || *value - *value == 0) return st;
    lofi_set_error("the score of %s is %g: it has to be finite", path, *value);
    return LOFI_INVALID;
}

static int is_better(const struct soup *s, double a, double b)
{
    return s->options.lower ? a < b : a > b;
}

static void tell(const struct soup *s, const lofi_soup_step *step)
{
    if (s->options.step != NULL) s->options.step(s->options.ctx, step);
}

/* Writes a mean under the candidate's name. */
static lofi_status write_candidate(const struct soup *s, const lofi_average_files_options *how,
                                   const struct lofi__role *role)
{
    lofi_average_files_options o = *how;

    o.out = s->candidate;
    o.force = 1; /* whoever scored the one before may have left its folder */
    o.fsync = o.verify = o.sha256 = 0;
    o.finding = NULL;
    return lofi__average_files(&o, role, NULL);
}

static void remove_candidate(const struct soup *s)
{
    lofi__folder_remove(s->candidate);
}

static lofi_status score_mean(const struct soup *s, const lofi_average_files_options *how,
                              double *value)
{
    const struct lofi__role role = {0};
    lofi_status st = write_candidate(s, how, &role);
    if (st == LOFI_OK) st = score(s, s->candidate, value);
    remove_candidate(s);
    return st;
}

/* Finds out whether the inputs can be averaged at all, before hours of scoring. */
static lofi_status try_all(const struct soup *s)
{
    lofi_status st = write_candidate(s, &s->average, NULL);
    remove_candidate(s);
    return st;
}

/* Scores each input and sorts them in: N is small, and the order of equal ones stays. */
static lofi_status score_inputs(struct soup *s)
{
    for (int i = 0; i < s->average.input_count; i++) {
        lofi_soup_step step = {.trial = LOFI_SOUP_ALONE, .input = i};
        lofi_status st = score(s, s->average.inputs[i], &step.score);
        int to = i;
        if (st != LOFI_OK) return st;
        for (; to > 0 && is_better(s, step.score, s->order[to - 1].score); to--)
            s->order[to] = s->order[to - 1];
        s->order[to] = (struct ingredient){i, step.score};
        tell(s, &step);
    }
    return LOFI_OK;
}

/* Puts an input behind those that are kept; it stays there if it is counted. */
static void put(struct soup *s, const struct ingredient *ingredient)
{
    s->kept[s->kept_count] = s->average.inputs[ingredient->input];
    s->kept_scores[s->kept_count] = ingredient->score;
}

static lofi_status add_inputs(struct soup *s, double *best)
{
    lofi_average_files_options how = s->average;

    how.inputs = s->kept;
    for (int i = 0; i < s->average.input_count; i++) {
        lofi_soup_step step = {.trial = LOFI_SOUP_ADD, .input = s->order[i].input};
        lofi_status st = LOFI_OK;
        put(s, &s->order[i]);
        how.input_count = s->kept_count + 1;
        step.score = s->order[i].score;
        if (i > 0) st = score_mean(s, &how, &step.score);
        if (st != LOFI_OK) return st;
        step.is_kept = i == 0 || !is_better(s, *best, step.score);
        if (step.is_kept) {
            *best = step.score;
            s->order[s->kept_count++] = s->order[i];
        }
        tell(s, &step);
    }
    return LOFI_OK;
}

static lofi_status search_greedily(struct soup *s, lofi_soup_report *report)
{
    const size_t count = (size_t)s->average.input_count;

    s->order = lofi__mem_create(count, sizeof *s->order);
    s->kept = lofi__mem_create(count, sizeof *s->kept);
    s->kept_scores = lofi__mem_create(count, sizeof *s->kept_scores);
    if (s->order == NULL || s->kept == NULL || s->kept_scores == NULL) return LOFI_NO_MEMORY;
    lofi_status st = try_all(s);
    if (st == LOFI_OK) st = score_inputs(s);
    if (st == LOFI_OK) st = add_inputs(s, &report->score);
    s->average.inputs = s->kept;
    s->average.input_count = s->kept_count;
    return st;
}

static lofi_status search_alphas(struct soup *s, lofi_soup_report *report)
{
    for (int i = 0; i < s->options.alpha_count; i++) {
        lofi_soup_step step = {
            .trial = LOFI_SOUP_ALPHA, .input = -1, .alpha = s->options.alphas[i]};
        s->average.alpha = step.alpha;
        lofi_status st = score_mean(s, &s->average, &step.score);
        if (st != LOFI_OK) return st;
        step.is_kept = i == 0 || is_better(s, step.score, report->score);
        if (step.is_kept) {
            report->score = step.score;
            report->alpha = step.alpha;
        }
        tell(s, &step);
    }
    s->average.alpha = report->alpha;
    return LOFI_OK;
}

static lofi_status search(struct soup *s, lofi_soup_report *report)
{
    lofi_status st = check_output(s);
    if (st == LOFI_OK) st = create_folder(s);
    if (st != LOFI_OK) return st;
    return s->options.alphas != NULL ? search_alphas(s, report) : search_greedily(s, report);
}

static int pass_progress(void *ctx, uint64_t done, uint64_t total)
{
    const struct soup *s = ctx;
    return s->given.progress(s->given.ctx, done, total);
}

/* The caller knows inputs by their place among those given. */
static void pass_finding(void *ctx, const lofi_finding *finding)
{
    const struct soup *s = ctx;
    lofi_finding passed = *finding;

    if (s->order != NULL && finding->input >= 0) passed.input = s->order[finding->input].input;
    s->given.finding(s->given.ctx, &passed);
}

static lofi_status write_output(struct soup *s, lofi_soup_report *report)
{
    const struct lofi__role role = {1, s->kept_scores, report->score};

    report->kept_count = s->average.input_count;
    if (s->given.progress != NULL) s->average.progress = pass_progress;
    if (s->given.finding != NULL) s->average.finding = pass_finding;
    s->average.ctx = s;
    return lofi__average_files(&s->average, &role, &report->average);
}

static void clear(struct soup *s)
{
    if (s->folder != NULL) lofi__folder_remove(s->folder);
    lofi__mem_destroy(s->folder);
    lofi__mem_destroy(s->candidate);
    lofi__mem_destroy(s->order);
    lofi__mem_destroy(s->kept);
    lofi__mem_destroy(s->kept_scores);
}

lofi_status lofi_soup(const lofi_soup_options *options, lofi_soup_report *report)
{
    lofi_soup_report result = {0};
    struct soup s;

    lofi_log_hold(); /* a warning is told once, of the output */
    lofi_status st = read_options(options, &s);
    if (st == LOFI_OK) st = search(&s, &result);
    lofi_log_release();
    if (st == LOFI_OK) st = write_output(&s, &result);
    clear(&s);
    if (st == LOFI_OK && report != NULL) *report = result;
    return st;
}
