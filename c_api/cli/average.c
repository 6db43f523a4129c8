/* SPDX-License-Identifier: MIT */
/* lofi average. */
#define _GNU_SOURCE
#include "cli/average.h"
#include "cli/findings.h"
#include "cli/signals.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "usage: lofi average A B C ... -o OUT [options]\n"
    "\n"
    "Writes the average of the weights of checkpoints with the same tensors: runs of one model "
    "that\n"
    "were trained apart. Each of A, B, C is a .safetensors file, or a folder as transformers "
    "saves\n"
    "it (model.safetensors, or shards and model.safetensors.index.json). OUT becomes what A is;\n"
    "a folder also gets A's config and tokenizer.\n"
    "\n"
    "  lofi average run1/ run2/ run3/ -o average/\n"
    "  lofi average a.safetensors b.safetensors -o ab.safetensors --weights 2,1\n"
    "  lofi average tuned1/ tuned2/ --base pretrained/ --alpha 0.5 -o robust/\n"
    "\n"
    "  -o, --output OUT       file or folder to write\n"
    "  -w, --weights W,W,...  one number for each input, at least 0 (default: all equal)\n"
    "      --no-normalize     weights are coefficients, also below 0: not divided by their sum\n"
    "  -b, --base BASE        interpolate: (1 - A) * BASE + A * average\n"
    "  -a, --alpha A          how far to go from BASE to the average\n"
    "      --only REGEX       average only the tensors whose name matches (POSIX extended); the\n"
    "                         others are copied from the first input\n"
    "      --skip REGEX       the same for those whose name does not match\n"
    "      --strip-prefix P   take P (such as module.) off the names of each input of which all "
    "begin\n"
    "                         with it; may be given again\n"
    "      --dtype TYPE       write floats as float64, float32, float16, bfloat16, float8_e4m3fn\n"
    "                         or float8_e5m2 (default: each as in the first input)\n"
    "      --int equal|first  integers and bools: have to be equal in all inputs (default), or "
    "are\n"
    "                         copied from the first\n"
    "      --shard-size SIZE  write a folder with files of at most this size: 5GB, 500MB, 2GiB\n"
    "      --lora exact|svd=R average what adapters do, the products of their factors: exact, with "
    "the\n"
    "                         ranks added up, or the best approximation of rank R\n"
    "  -f, --force            replace OUT if it is there; never an input\n"
    "      --force-config     average models whose configs or tokenizers differ\n"
    "      --verify           read OUT again and compare it with a second computation\n"
    "      --sha256           note the SHA-256 of each input file in OUT\n"
    "      --fsync            return when OUT is on the disk\n"
    "  -j, --threads N        default: one for each CPU\n"
    "  -q, --quiet            print nothing but errors\n"
    "      --json             print what was done as JSON\n"
    "  -h, --help\n"
    "\n"
    "Sums are taken in float64 in the order of the inputs and rounded once, so the result is the\n"
    "same on every machine. OUT appears when it is complete. Where it came from is in its "
    "metadata:\n"
    "lofi info OUT.\n"
    "\n"
    "Exit code: 0 done; 3 done, with numbers in OUT that are not finite, or did not fit its type:\n"
    "each is named on stderr and in --json; 1 failed; 2 wrong arguments.\n";

enum {
    OPTION_ONLY = 256,
    OPTION_SKIP,
    OPTION_DTYPE,
    OPTION_INT,
    OPTION_SHARD_SIZE,
    OPTION_FSYNC,
    OPTION_VERIFY,
    OPTION_SHA256,
    OPTION_STRIP_PREFIX,
    OPTION_JSON,
    OPTION_FORCE_CONFIG,
    OPTION_LORA,
    OPTION_NO_NORMALIZE
};

const struct option cli_average_options[] = {
    {"output", required_argument, NULL, 'o'},
    {"weights", required_argument, NULL, 'w'},
    {"base", required_argument, NULL, 'b'},
    {"alpha", required_argument, NULL, 'a'},
    {"only", required_argument, NULL, OPTION_ONLY},
    {"skip", required_argument, NULL, OPTION_SKIP},
    {"dtype", required_argument, NULL, OPTION_DTYPE},
    {"int", required_argument, NULL, OPTION_INT},
    {"shard-size", required_argument, NULL, OPTION_SHARD_SIZE},
    {"force", no_argument, NULL, 'f'},
    {"fsync", no_argument, NULL, OPTION_FSYNC},
    {"verify", no_argument, NULL, OPTION_VERIFY},
    {"strip-prefix", required_argument, NULL, OPTION_STRIP_PREFIX},
    {"lora", required_argument, NULL, OPTION_LORA},
    {"sha256", no_argument, NULL, OPTION_SHA256},
    {"threads", required_argument, NULL, 'j'},
    {"quiet", no_argument, NULL, 'q'},
    {"json", no_argument, NULL, OPTION_JSON},
    {"force-config", no_argument, NULL, OPTION_FORCE_CONFIG},
    {"no-normalize", no_argument, NULL, OPTION_NO_NORMALIZE},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0}};

/* The context of the library's calls. */
struct progress {
    int is_shown;
    struct cli_findings findings;
};

static void note_finding(void *ctx, const lofi_finding *finding)
{
    struct progress *progress = ctx;
    cli_findings_add(&progress->findings, finding);
}

static int show_progress(void *ctx, uint64_t done, uint64_t total)
{
    const struct progress *progress = ctx;
    if (progress->is_shown) {
        fprintf(stderr, "\r%3d%% of ",
                total > 0 ? (int)(100.0 * (double)done / (double)total) : 100);
        cli_print_bytes(stderr, total);
        fputs(done >= total ? "\r                         \r" : " ", stderr);
    }
    return cli_signal();
}

int cli_parse_number(const char *text, double *value)
{
    char *end;
    *value = strtod(text, &end);
    return end != text && *end == '\0';
}

/* "5GB", "500MB", "2GiB", "1000" */
static int parse_size(const char *text, uint64_t *bytes)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char *end;
    const double number = strtod(text, &end);

    if (end == text || !(number > 0) || number > 1e18) return 0;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcasecmp(end, units[i].unit) != 0) continue;
        if (number * units[i].bytes < 1 || number * units[i].bytes > 1e18) return 0;
        *bytes = (uint64_t)(number * units[i].bytes);
        return 1;
    }
    return 0;
}

/* One number for each input, between commas. */
int cli_parse_weights(const char *text, double *weights, int count)
{
    for (int i = 0; i < count; i++) {
        char *end;
        weights[i] = strtod(text, &end);
        if (end == text || *end != (i + 1 < count ? ',' : '\0')) return 0;
        text = end + 1;
    }
    return 1;
}

static int misuse_value(const struct arguments *a, const char *option, const char *value,
                        const char *wanted)
{
    return cli_misuse(a->command, "--%s is '%s': %s", option, value, wanted);
}

int cli_take_average_option(struct arguments *a, int option, char *value)
{
    lofi_average_files_options *o = &a->options;
    char *end;
    long threads;

    switch (option) {
    case 'o':
        o->out = value;
        break;
    case 'w':
        a->weights = value;
        break;
    case 'b':
        o->base = value;
        break;
    case 'a':
        a->has_alpha = 1;
        if (!cli_parse_number(value, &o->alpha))
            return misuse_value(a, "alpha", value, "give a number");
        break;
    case OPTION_ONLY:
        o->only = value;
        break;
    case OPTION_SKIP:
        o->skip = value;
        break;
    case OPTION_DTYPE:
        o->dtype = value;
        break;
    case OPTION_INT:
        o->integers_first = strcmp(value, "first") == 0;
        if (!o->integers_first && strcmp(value, "equal") != 0)
            return misuse_value(a, "int", value, "choose equal or first");
        break;
    case OPTION_SHARD_SIZE:
        if (!parse_size(value, &o->shard_bytes))
            return misuse_value(a, "shard-size", value, "give a size such as 5GB, 500MB or 2GiB");
        break;
    case OPTION_LORA:
        o->lora = value;
        break;
    case 'j':
        threads = strtol(value, &end, 10);
        if (*end != '\0' || threads < 1 || threads > 4096)
            return misuse_value(a, "threads", value, "give a number from 1 to 4096");
        o->threads = (int)threads;
        break;
    case 'f':
        o->force = 1;
        break;
    case OPTION_STRIP_PREFIX:
        a->prefixes[o->strip_count++] = value;
        break;
    case OPTION_FSYNC:
        o->fsync = 1;
        break;
    case OPTION_VERIFY:
        o->verify = 1;
        break;
    case OPTION_SHA256:
        o->sha256 = 1;
        break;
    case 'q':
        a->is_quiet = 1;
        lofi_log_set_level(LOFI_LOG_ERROR);
        break;
    case OPTION_JSON:
        a->is_json = 1;
        break;
    case OPTION_FORCE_CONFIG:
        o->force_config = 1;
        break;
    case OPTION_NO_NORMALIZE:
        o->raw_weights = 1;
        break;
    case 'h':
        a->is_help = 1;
        break;
    default: /* it was told what is wrong */
        return CLI_MISUSED;
    }
    return CLI_DONE;
}

static int check_arguments(const struct arguments *a)
{
    if (a->options.input_count < 1) return cli_misuse("average", "no checkpoint is given");
    if (a->options.out == NULL) return cli_misuse("average", "the output is not given: -o OUT");
    if (a->has_alpha && a->options.base == NULL)
        return cli_misuse("average", "--alpha needs --base");
    if (!a->has_alpha && a->options.base != NULL)
        return cli_misuse("average", "--base needs --alpha");
    if (a->options.raw_weights && a->weights == NULL)
        return cli_misuse("average", "--no-normalize needs --weights");
    return CLI_DONE;
}

static void print_error_json(const lofi_average_report *r)
{
    printf("\"products\": %" PRIu64 ", \"error\": ", r->product_count);
    cli_print_number(stdout, r->product_error);
    printf(", \"worst_error\": ");
    cli_print_number(stdout, r->worst_error);
    printf(", \"worst\": ");
    cli_print_json(stdout, r->worst_name);
    printf(", ");
}

static void print_error(const lofi_average_report *r)
{
    printf("%" PRIu64 " products, relative error %.3g", r->product_count, r->product_error);
    if (r->worst_name[0] != '\0') {
        printf(", at worst %.3g (", r->worst_error);
        cli_print_text(stdout, r->worst_name);
        printf(")");
    }
    printf("\n");
}

static void print_json(const struct arguments *a, const lofi_average_report *r, double duration,
                       struct cli_findings *findings)
{
    printf("{\"output\": ");
    cli_print_json(stdout, a->options.out);
    printf(", \"inputs\": %d, \"averaged\": %" PRIu64 ", \"copied\": %" PRIu64
           ", \"bytes_read\": %" PRIu64 ", \"bytes_written\": %" PRIu64 ", \"files\": %" PRIu64
           ", \"threads\": %d, \"verified\": %s, \"batchnorm_averaged\": %" PRIu64
           ", \"seconds\": %.3f, ",
           a->options.input_count, r->averaged_count, r->copied_count, r->bytes_read,
           r->bytes_written, r->file_count, r->threads, a->options.verify ? "true" : "false",
           r->statistics_count, duration);
    if (a->options.lora != NULL) print_error_json(r);
    cli_findings_print(findings, stdout);
    printf("}\n");
}

static void print_report(const struct arguments *a, const lofi_average_report *r, double duration,
                         struct cli_findings *findings)
{
    if (a->is_json) {
        print_json(a, r, duration, findings);
        return;
    }
    if (a->is_quiet) return;
    cli_print_text(stdout, a->options.out);
    printf(": %" PRIu64 " tensors averaged", r->averaged_count);
    if (r->copied_count > 0) printf(", %" PRIu64 " copied", r->copied_count);
    printf("; read ");
    cli_print_bytes(stdout, r->bytes_read);
    printf(" in %.2f s (%.1f GB/s)%s\n", duration, (double)r->bytes_read / duration / 1e9,
           a->options.verify ? "; read again and verified" : "");
    if (a->options.lora != NULL) print_error(r);
}

static int fail(int is_shown)
{
    if (is_shown) fputc('\n', stderr);
    cli_fail();
    cli_end_by_signal();
    return CLI_FAILED;
}

static int run(struct arguments *a)
{
    struct progress progress = {!a->is_quiet && !a->is_json && isatty(STDERR_FILENO), {0}};
    lofi_average_report report;

    a->options.progress = show_progress;
    a->options.finding = note_finding;
    a->options.ctx = &progress;
    int code = cli_findings_open(&progress.findings, &a->options);
    if (code == CLI_DONE) {
        cli_catch_signals();
        const double begin = cli_seconds();
        if (lofi_average_files(&a->options, &report) != LOFI_OK)
            code = fail(progress.is_shown);
        else
            print_report(a, &report, cli_seconds() - begin, &progress.findings);
    }
    if (code == CLI_DONE && progress.findings.is_spoilt) code = CLI_SPOILT;
    cli_findings_close(&progress.findings);
    return code;
}

/* `weights` has room for one number for each word of the command. */
static int run_with(struct arguments *a, double *weights)
{
    if (a->weights != NULL && !cli_parse_weights(a->weights, weights, a->options.input_count))
        return cli_misuse("average", "--weights is '%s': give %d numbers with commas between them",
                          a->weights, a->options.input_count);
    if (a->weights != NULL) a->options.weights = weights;
    if (lofi_average_files_check(&a->options) != LOFI_OK)
        return cli_misuse("average", "%s", lofi_last_error());
    return run(a);
}

static int read_and_run(int argc, char **argv, struct arguments *a, double *weights)
{
    int option;

    while ((option = cli_next_option(argc, argv, CLI_AVERAGE_SHORTS, cli_average_options)) != -1) {
        const int code = cli_take_average_option(a, option, optarg);
        if (code != CLI_DONE) return code;
    }
    if (a->is_help) {
        fputs(help, stdout);
        return CLI_DONE;
    }
    a->options.inputs = (const char *const *)argv + optind;
    a->options.input_count = argc - optind;
    const int code = check_arguments(a);
    return code == CLI_DONE ? run_with(a, weights) : code;
}

int cli_average(int argc, char **argv)
{
    struct arguments a = {.command = "average", .options = LOFI_AVERAGE_FILES_OPTIONS_INIT};
    double *weights = calloc((size_t)argc, sizeof *weights);
    int code = CLI_FAILED;

    a.prefixes = calloc((size_t)argc, sizeof *a.prefixes);
    a.options.strip_prefixes = a.prefixes;
    if (weights != NULL && a.prefixes != NULL)
        code = read_and_run(argc, argv, &a, weights);
    else
        cli_fail_for_memory();
    free(a.prefixes);
    free(weights);
    return code;
}
