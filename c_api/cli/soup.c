/* SPDX-License-Identifier: MIT */
/* lofi soup: arguments, and lofi_soup with a command that scores. */
#define _GNU_SOURCE
#include "cli/soup.h"
#include "cli/signals.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: lofi soup A B C ... -o OUT --score 'COMMAND {}' [options]\n"
    "       lofi soup BASE TUNED -o OUT --score 'COMMAND {}' --alpha 0:1:0.1 [options]\n"
    "\n"
    "Writes the average that scores best. COMMAND is run by sh with the path of a checkpoint in\n"
    "place of {}; its last line has to end with the score. Larger is better.\n"
    "\n"
    "  lofi soup run*.safetensors -o soup.safetensors --score 'python accuracy.py {}'\n"
    "  lofi soup pretrained/ tuned/ -o robust/ --score './eval.sh {}' --alpha 0,0.25,0.5,0.75,1\n"
    "\n"
    "Without --alpha it is a greedy soup: the checkpoints are scored and sorted; the best is "
    "kept,\n"
    "and of the others, in turn, each with which the mean does not score lower. With --alpha,\n"
    "(1 - A) * BASE + A * TUNED is scored for each A, and the best one written.\n"
    "\n"
    "      --score COMMAND    scores one checkpoint; the mean of several is a file (or folder) "
    "like\n"
    "                         OUT that is there for the time of the command\n"
    "      --lower            lower is better, as of losses\n"
    "      --score-timeout S  a command that takes longer than S seconds has failed\n"
    "  -a, --alpha A,A,...    or FROM:TO:STEP: try these; BASE is the first checkpoint, or "
    "--base,\n"
    "                         and TUNED the average of the others\n"
    "      --csv FILE         write what was tried as CSV\n"
    "      --json             print what was tried, and done, as JSON\n"
    "  -h, --help\n"
    "\n"
    "All other options are those of lofi average: --only, --skip, --strip-prefix, --dtype, --int,\n"
    "--shard-size, --lora, --force, --force-config, --verify, --sha256, --fsync, --threads, "
    "--quiet.\n"
    "python -m lofi soup also takes --plot FILE.png. Not here: TIES, DARE and slerp, which serve\n"
    "models of different tasks.\n";

enum { OPTION_SCORE = 512, OPTION_LOWER, OPTION_TIMEOUT, OPTION_CSV };

static const struct option own[] = {{"score", required_argument, NULL, OPTION_SCORE},
                                    {"lower", no_argument, NULL, OPTION_LOWER},
                                    {"score-timeout", required_argument, NULL, OPTION_TIMEOUT},
                                    {"csv", required_argument, NULL, OPTION_CSV}};
enum { OWN_COUNT = sizeof own / sizeof own[0], ALPHAS_MOST = 10000 };

/* FROM:TO:STEP, both ends included. FROM + i * STEP is rounded to the decimals that are meant. Returns
 * how many there are, or 0; no list: there is no memory. */
static int parse_range(const char *text, double **alphas)
{
    double from, to, step;
    char word[400]; /* of any double */
    int used = 0;

    if (sscanf(text, "%lf:%lf:%lf%n", &from, &to, &step, &used) != 3 || text[used] != '\0')
        return 0;
    const double steps = (to - from) / step;
    if (!(steps > -1e-9 && steps < ALPHAS_MOST - 1 && fabs(step) > 1e-9)) return 0;
    const int count = (int)floor(steps + 1e-9) + 1;
    *alphas = calloc((size_t)count, sizeof **alphas);
    for (int i = 0; i < count && *alphas != NULL; i++) {
        snprintf(word, sizeof word, "%.12f", from + i * step);
        (*alphas)[i] = strtod(word, NULL) + 0.0; /* no -0 */
    }
    return count;
}

static int parse_alphas(const char *text, double **alphas)
{
    int count = 1;

    if (strchr(text, ':') != NULL) return parse_range(text, alphas);
    for (const char *c = text; *c != '\0'; c++)
        count += *c == ',';
    *alphas = calloc((size_t)count, sizeof **alphas);
    return *alphas == NULL || cli_parse_weights(text, *alphas, count) ? count : 0;
}

static int take_alphas(struct soup *s, const char *text)
{
    free(s->alphas);
    s->alphas = NULL;
    s->alpha_count = parse_alphas(text, &s->alphas);
    if (s->alpha_count == 0)
        return cli_misuse("soup",
                          "--alpha is '%s': give numbers with commas between them, or FROM:TO:STEP",
                          text);
    return s->alphas != NULL ? CLI_DONE : cli_fail_for_memory();
}

static int take_command(struct soup *s, const char *text)
{
    free(s->score.command);
    s->score.command = cli_score_command(text);
    if (s->score.command != NULL) return CLI_DONE;
    if (errno != 0) return cli_fail_for_memory();
    return cli_misuse("soup", "--score is '%s': put {} where the path of a checkpoint belongs",
                      text);
}

static int take_option(struct soup *s, int option, char *value)
{
    double *timeout = &s->score.timeout_seconds;

    switch (option) {
    case OPTION_SCORE:
        return take_command(s, value);
    case OPTION_LOWER:
        s->lower = 1;
        return CLI_DONE;
    case OPTION_TIMEOUT:
        if (cli_parse_number(value, timeout) && *timeout > 0 && *timeout < 1e9) return CLI_DONE;
        return cli_misuse("soup", "--score-timeout is '%s': give seconds", value);
    case OPTION_CSV:
        s->csv = value;
        return CLI_DONE;
    case 'a':
        return take_alphas(s, value);
    default:
        return cli_take_average_option(&s->a, option, value);
    }
}

static int read_options(struct soup *s, int argc, char **argv)
{
    struct option *longs;
    size_t count = 0;
    int option, code = CLI_DONE;

    while (cli_average_options[count].name != NULL)
        count++;
    longs = calloc(count + OWN_COUNT + 1, sizeof *longs);
    if (longs == NULL) return cli_fail_for_memory();
    memcpy(longs, cli_average_options, count * sizeof *longs);
    memcpy(longs + count, own, sizeof own);
    while (code == CLI_DONE &&
           (option = cli_next_option(argc, argv, CLI_AVERAGE_SHORTS, longs)) != -1)
        code = take_option(s, option, optarg);
    free(longs);
    return code;
}

static int check_arguments(const struct soup *s)
{
    const lofi_average_files_options *o = &s->a.options;

    if (o->input_count < 1 && s->alphas != NULL && o->base != NULL)
        return cli_misuse("soup", "--alpha needs a base and a checkpoint: BASE TUNED");
    if (o->input_count < 1) return cli_misuse("soup", "no checkpoint is given");
    if (o->out == NULL) return cli_misuse("soup", "the output is not given: -o OUT");
    if (s->score.command == NULL)
        return cli_misuse("soup", "no command that scores is given: --score 'COMMAND {}'");
    if (s->alphas == NULL && o->base != NULL) return cli_misuse("soup", "--base needs --alpha");
    if (s->alphas == NULL && s->a.weights != NULL)
        return cli_misuse("soup", "--weights needs --alpha: a greedy soup is a mean of equals");
    if (o->raw_weights && s->a.weights == NULL)
        return cli_misuse("soup", "--no-normalize needs --weights");
    return CLI_DONE;
}

static lofi_status score(void *ctx, const char *path, double *value)
{
    const struct soup *s = ctx;
    return cli_score_run(&s->score, path, value);
}

static void note_step(void *ctx, const lofi_soup_step *step)
{
    struct soup *s = ctx;
    if (!s->a.is_json && !s->a.is_quiet) cli_soup_print_step(s, step);
    s->steps[s->step_count++] = *step;
}

static int check_signal(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    (void)done;
    (void)total;
    return cli_signal();
}

static void note_finding(void *ctx, const lofi_finding *finding)
{
    struct soup *s = ctx;
    cli_findings_add(&s->findings, finding);
}

static int end(struct soup *s, const lofi_soup_report *report)
{
    cli_soup_print_report(s, report);
    const int code = cli_soup_write_csv(s);
    return code == CLI_DONE && s->findings.is_spoilt ? CLI_SPOILT : code;
}

static int run(struct soup *s)
{
    lofi_soup_options options = LOFI_SOUP_OPTIONS_INIT;
    lofi_soup_report report;

    options.average = &s->a.options;
    options.alphas = s->alphas;
    options.alpha_count = s->alpha_count;
    options.lower = s->lower;
    options.score = score;
    options.step = note_step;
    options.ctx = s;
    s->a.options.progress = check_signal;
    s->a.options.finding = note_finding;
    s->a.options.ctx = s;
    cli_catch_signals();
    signal(SIGPIPE,
           SIG_IGN); /* the table may go to `head`: what is left to do is cleaned up after */
    if (lofi_soup(&options, &report) == LOFI_OK) return end(s, &report);
    cli_fail();
    cli_end_by_signal();
    return CLI_FAILED;
}

/* With alphas and no --base, the first checkpoint is the base. */
static void take_inputs(struct soup *s, int argc, char **argv)
{
    lofi_average_files_options *o = &s->a.options;

    o->inputs = (const char *const *)argv + optind;
    o->input_count = argc - optind;
    if (s->alphas == NULL || o->base != NULL || o->input_count < 1) return;
    o->base = *o->inputs++;
    o->input_count--;
}

static int run_with(struct soup *s)
{
    const int count = s->a.options.input_count;
    double *weights = calloc((size_t)count, sizeof *weights);
    int code = CLI_DONE;

    s->steps = calloc(2 * (size_t)count + (size_t)s->alpha_count, sizeof *s->steps);
    if (weights == NULL || s->steps == NULL) code = cli_fail_for_memory();
    if (code == CLI_DONE && s->a.weights != NULL) {
        if (!cli_parse_weights(s->a.weights, weights, count))
            code = cli_misuse("soup", "--weights is '%s': give %d numbers with commas between them",
                              s->a.weights, count);
        s->a.options.weights = weights;
    }
    if (code == CLI_DONE && lofi_average_files_check(&s->a.options) != LOFI_OK)
        code = cli_misuse("soup", "%s", lofi_last_error());
    if (code == CLI_DONE) code = cli_soup_check_csv(s);
    if (code == CLI_DONE) code = cli_findings_open(&s->findings, &s->a.options);
    if (code == CLI_DONE) code = run(s);
    cli_findings_close(&s->findings);
    free(weights);
    free(s->steps);
    return code;
}

int cli_soup(int argc, char **argv)
{
    struct soup s = {.a = {.command = "soup", .options = LOFI_AVERAGE_FILES_OPTIONS_INIT}};

    s.a.prefixes = calloc((size_t)argc, sizeof *s.a.prefixes);
    s.a.options.strip_prefixes = s.a.prefixes;
    int code = s.a.prefixes != NULL ? read_options(&s, argc, argv) : cli_fail_for_memory();
    if (code == CLI_DONE && s.a.is_help) {
        fputs(help, stdout);
    } else if (code == CLI_DONE) {
        take_inputs(&s, argc, argv);
        code = check_arguments(&s);
        if (code == CLI_DONE) code = run_with(&s);
    }
    free(s.a.prefixes);
    free(s.score.command);
    free(s.alphas);
    return code;
}
