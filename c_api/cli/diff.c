/* SPDX-License-Identifier: MIT */
/*
 * lofi diff: how far checkpoints are apart. Of two, tensor by tensor; of several, a matrix of
 * distances: the Euclidean one over all numbers, as if a checkpoint were one long vector.
 */
#define _GNU_SOURCE
#include "cli/cli.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: lofi diff A B [C ...] [options]\n"
    "\n"
    "Compares the tensors of the same name of .safetensors files or Hugging Face folders. Of two, "
    "it\n"
    "prints for each tensor that differs the largest and the root-mean-square difference and the\n"
    "cosine of the angle between them; of several, the distance of each to each.\n"
    "\n"
    "  -a, --all             also tensors that are equal\n"
    "      --strip-prefix P  take P (such as module.) off the names of each of which all begin "
    "with\n"
    "                        it; may be given again\n"
    "      --json            as JSON\n"
    "  -h, --help\n"
    "\n"
    "Distances are those of floats. Of several, tensors that differ and hold none, or have\n"
    "another shape, are counted, and - (null in JSON) is for two that have no floats to compare.\n"
    "\n"
    "Exit code: 0 also if they differ.\n";

/* Stands for what was not compared; neither a distance nor a cosine. */
#define NOTHING (-HUGE_VAL)

enum { OPTION_JSON = 256, OPTION_STRIP_PREFIX };
static const struct option longs[] = {
    {"all", no_argument, NULL, 'a'},
    {"strip-prefix", required_argument, NULL, OPTION_STRIP_PREFIX},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0}};

struct pair {
    const lofi_checkpoint *a, *b;
    const char *a_path, *b_path;
    int shows_all, is_json, is_silent;
    int printed;
    uint64_t equal, different, missing;
    uint64_t
        unmeasured; /* of `different`, those that are not in the sum: no floats, other shapes */
    lofi_difference sum;
    FILE *to;
};

/* The sign of a NaN says nothing, and printf shows it. */
static double shown(double value)
{
    return value == value ? value : fabs(value);
}

static double rms_of(const lofi_difference *d)
{
    return d->count > 0 ? shown(sqrt(d->square / (double)d->count)) : 0;
}

static double distance_of(const lofi_difference *d)
{
    return shown(sqrt(d->square));
}

/* 1 for two zeros: they are the same. */
static double cosine_of(const lofi_difference *d)
{
    const double size = sqrt(d->square_a) * sqrt(d->square_b);
    if (size > 0 || size != size) return shown(d->dot / size);
    return d->square_a == d->square_b ? 1 : 0;
}

static void print_values(FILE *to, const lofi_difference *d)
{
    const struct {
        const char *name;
        double value;
    } values[] = {{"max", d->max},
                  {"rms", rms_of(d)},
                  {"distance", distance_of(d)},
                  {"cosine", cosine_of(d)}};

    fprintf(to, "\"equal\": %s, \"count\": %" PRIu64, d->equal ? "true" : "false", d->count);
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        fprintf(to, ", \"%s\": ", values[i].name);
        cli_print_number(to, d->count > 0 ? values[i].value : NOTHING);
    }
}

static void print_tensor(struct pair *p, const char *name, const lofi_difference *d)
{
    if (p->is_silent || (d->equal && !p->shows_all)) return;
    if (p->is_json) {
        fprintf(p->to, "%s{\"name\": ", p->printed++ > 0 ? ", " : "");
        cli_print_json(p->to, name);
        fprintf(p->to, ", ");
        print_values(p->to, d);
        fputc('}', p->to);
        return;
    }
    if (p->printed++ == 0) fprintf(p->to, "%11s %11s %12s  tensor\n", "max", "rms", "cosine");
    if (d->count > 0)
        fprintf(p->to, "%11.4g %11.4g %12.9f  ", shown(d->max), rms_of(d), cosine_of(d));
    else
        fprintf(p->to, "%36s  ", d->equal ? "equal" : "different");
    cli_print_text(p->to, name);
    fputc('\n', p->to);
}

static void add(struct pair *p, const lofi_difference *d)
{
    if (d->equal)
        p->equal++;
    else
        p->different++;
    p->unmeasured += !d->equal && d->count == 0;
    p->sum.equal &= d->equal;
    p->sum.count += d->count;
    if (!(d->max <= p->sum.max) && p->sum.max == p->sum.max) p->sum.max = d->max;
    p->sum.square += d->square;
    p->sum.dot += d->dot;
    p->sum.square_a += d->square_a;
    p->sum.square_b += d->square_b;
}

static void note_missing(struct pair *p, const char *name, const char *path)
{
    p->missing++;
    if (p->is_silent || p->is_json) return;
    fprintf(p->to, "only in ");
    cli_print_text(p->to, path);
    fprintf(p->to, ": ");
    cli_print_text(p->to, name);
    fputc('\n', p->to);
}

/* For what the last error says: a new head or a larger vocabulary is no end of the rest. */
static void note_unfit(struct pair *p, const char *name)
{
    const lofi_difference unfit = {0};

    if (p->is_json) print_tensor(p, name, &unfit);
    add(p, &unfit);
    if (p->is_silent || p->is_json) return;
    cli_print_text(p->to, lofi_last_error());
    fputc('\n', p->to);
}

static int compare(struct pair *p)
{
    lofi_tensor t;
    lofi_difference d;

    p->sum = (lofi_difference){.equal = 1};
    for (uint64_t i = 0; i < lofi_checkpoint_count(p->b); i++) {
        if (lofi_checkpoint_get(p->b, i, &t) != LOFI_OK) return cli_fail();
        if (lofi_checkpoint_find(p->a, t.name) < 0) note_missing(p, t.name, p->b_path);
    }
    for (uint64_t i = 0; i < lofi_checkpoint_count(p->a); i++) {
        if (lofi_checkpoint_get(p->a, i, &t) != LOFI_OK) return cli_fail();
        const int64_t other = lofi_checkpoint_find(p->b, t.name);
        if (other < 0) {
            note_missing(p, t.name, p->a_path);
            continue;
        }
        const lofi_status st = lofi_checkpoint_compare(p->a, i, p->b, (uint64_t)other, &d);
        if (st == LOFI_INVALID) {
            note_unfit(p, t.name);
            continue;
        }
        if (st != LOFI_OK) return cli_fail();
        print_tensor(p, t.name, &d);
        add(p, &d);
    }
    return CLI_DONE;
}

static void print_sum(const struct pair *p)
{
    if (p->is_json) {
        fprintf(p->to,
                "], \"equal_count\": %" PRIu64 ", \"different_count\": %" PRIu64
                ", \"missing_count\": %" PRIu64 ", \"all\": {",
                p->equal, p->different, p->missing);
        print_values(p->to, &p->sum);
        fprintf(p->to, "}}\n");
        return;
    }
    fprintf(p->to, "%" PRIu64 " tensors are equal, %" PRIu64 " differ", p->equal, p->different);
    if (p->missing > 0) fprintf(p->to, ", %" PRIu64 " are in one only", p->missing);
    if (p->different > 0 && p->sum.count > 0)
        fprintf(p->to, "; all: max %.4g, rms %.4g, distance %.6g, cosine %.9f", shown(p->sum.max),
                rms_of(&p->sum), distance_of(&p->sum), cosine_of(&p->sum));
    fputc('\n', p->to);
}

/* JSON is printed when it is complete: half of it is of no use to anybody. */
static int diff_two(struct pair *p)
{
    char *text = NULL;
    size_t bytes = 0;

    p->to = p->is_json ? open_memstream(&text, &bytes) : stdout;
    if (p->to == NULL) return cli_fail_for_memory();
    if (p->is_json) fprintf(p->to, "{\"tensors\": [");
    int code = compare(p);
    if (code == CLI_DONE) print_sum(p);
    if (!p->is_json) return code;
    if (fclose(p->to) != 0)
        code = cli_fail_for_memory();
    else if (code == CLI_DONE)
        fwrite(text, 1, bytes, stdout);
    free(text);
    return code;
}

static void print_matrix(const double *values, int count, int is_json, const char *name)
{
    if (is_json)
        printf(", \"%s\": [", name);
    else
        printf("%s\n", name);
    for (int i = 0; i < count; i++) {
        if (is_json) printf("%s[", i > 0 ? ", " : "");
        if (!is_json) printf("%3d", i + 1);
        for (int j = 0; j < count; j++) {
            if (is_json && j > 0) printf(", ");
            if (is_json)
                cli_print_number(stdout, values[i * count + j]);
            else if (values[i * count + j] == NOTHING)
                printf(" %13s", "-");
            else
                printf(" %13.9g", values[i * count + j]);
        }
        printf(is_json ? "]" : "\n");
    }
    if (is_json) fputc(']', stdout);
}

static void print_names(char *const *paths, int count, int is_json)
{
    if (is_json) printf("{\"checkpoints\": [");
    for (int i = 0; i < count; i++) {
        if (is_json) {
            if (i > 0) printf(", ");
            cli_print_json(stdout, paths[i]);
            continue;
        }
        printf("%3d  ", i + 1);
        cli_print_text(stdout, paths[i]);
        fputc('\n', stdout);
    }
    if (is_json) fputc(']', stdout);
}

/* For each pair; `unmeasured` and `missing` count tensors that are not in the distance. */
struct matrices {
    double *distance, *cosine, *unmeasured, *missing;
    int count;
};

static void set(const struct matrices *m, double *matrix, int i, int j, double value)
{
    matrix[i * m->count + j] = matrix[j * m->count + i] = value;
}

static void fill(const struct matrices *m, int i, int j, const struct pair *p)
{
    const int has_sum = p->sum.count > 0;

    set(m, m->distance, i, j, has_sum ? distance_of(&p->sum) : NOTHING);
    set(m, m->cosine, i, j, has_sum ? cosine_of(&p->sum) : NOTHING);
    set(m, m->unmeasured, i, j, (double)p->unmeasured);
    set(m, m->missing, i, j, (double)p->missing);
}

static int compare_all(lofi_checkpoint **all, const struct matrices *m)
{
    for (int i = 0; i < m->count; i++) {
        set(m, m->cosine, i, i, 1); /* and all else is 0 */
        for (int j = i + 1; j < m->count; j++) {
            struct pair p = {.a = all[i], .b = all[j], .is_silent = 1};
            const int code = compare(&p);
            if (code != CLI_DONE) return code;
            fill(m, i, j, &p);
        }
    }
    return CLI_DONE;
}

/* Counts tensors that the distance leaves out; plain text has the line only if there are some. */
static void print_counts(const double *values, int count, int is_json, const char *key,
                         const char *title)
{
    int has_any = 0;

    for (int i = 0; i < count * count; i++)
        has_any |= values[i] > 0;
    if (is_json || has_any) print_matrix(values, count, is_json, is_json ? key : title);
}

static int diff_many(lofi_checkpoint **all, char *const *paths, int count, int is_json)
{
    const size_t cells = (size_t)count * (size_t)count;
    double *values = calloc(4 * cells, sizeof *values);
    if (values == NULL) return cli_fail_for_memory();
    const struct matrices m = {values, values + cells, values + 2 * cells, values + 3 * cells,
                               count};

    const int code = compare_all(all, &m);
    if (code == CLI_DONE) {
        print_names(paths, count, is_json);
        print_matrix(m.distance, count, is_json, "distance");
        print_matrix(m.cosine, count, is_json, "cosine");
        print_counts(m.unmeasured, count, is_json, "unmeasured_different_count",
                     "tensors that differ and are not in the distance: no floats, or other shapes");
        print_counts(m.missing, count, is_json, "missing_count",
                     "tensors that are in one only, not compared");
        if (is_json) printf("}\n");
    }
    free(values);
    return code;
}

/* Two that have no name in common may have been saved by different wrappers. */
static void warn_of_names(const lofi_checkpoint *a, const lofi_checkpoint *b, const char *a_path,
                          const char *b_path)
{
    char hint[1024];
    lofi_tensor t;

    for (uint64_t i = 0; i < lofi_checkpoint_count(a); i++)
        if (lofi_checkpoint_get(a, i, &t) == LOFI_OK && lofi_checkpoint_find(b, t.name) >= 0)
            return;
    lofi_checkpoints_hint(a, b, hint, sizeof hint);
    if (hint[0] != '\0')
        lofi_log(LOFI_LOG_WARN, "%s and %s have no tensor of the same name%s", a_path, b_path,
                 hint);
}

struct arguments {
    int shows_all, is_json;
    const char **prefixes;
    int prefix_count;
};

static int diff(lofi_checkpoint **all, char *const *paths, int count, const struct arguments *a)
{
    if (lofi_checkpoints_strip(all, count, a->prefixes, a->prefix_count) != LOFI_OK)
        return cli_fail();
    for (int i = 1; i < count; i++)
        warn_of_names(all[0], all[i], paths[0], paths[i]);
    if (count > 2) return diff_many(all, paths, count, a->is_json);
    struct pair p = {.a = all[0],
                     .b = all[1],
                     .a_path = paths[0],
                     .b_path = paths[1],
                     .shows_all = a->shows_all,
                     .is_json = a->is_json};
    return diff_two(&p);
}

static int read_and_run(int argc, char **argv, struct arguments *a)
{
    int option;

    while ((option = cli_next_option(argc, argv, ":ah", longs)) != -1) {
        if (option == 'a') a->shows_all = 1;
        if (option == OPTION_JSON) a->is_json = 1;
        if (option == OPTION_STRIP_PREFIX) a->prefixes[a->prefix_count++] = optarg;
        if (option == CLI_REFUSED) return CLI_MISUSED;
        if (option != 'h') continue;
        fputs(help, stdout);
        return CLI_DONE;
    }
    const int count = argc - optind;
    if (count < 2) return cli_misuse("diff", "it takes at least two checkpoints");
    lofi_checkpoint **all = cli_open_all(argv + optind, count);
    if (all == NULL) return CLI_FAILED;
    const int code = diff(all, argv + optind, count, a);
    cli_close_all(all, count);
    return code;
}

int cli_diff(int argc, char **argv)
{
    struct arguments a = {.prefixes = calloc((size_t)argc, sizeof *a.prefixes)};

    if (a.prefixes == NULL) return cli_fail_for_memory();
    const int code = read_and_run(argc, argv, &a);
    free(a.prefixes);
    return code;
}
