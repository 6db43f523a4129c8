/* SPDX-License-Identifier: MIT */
/* lofi info: what is in a checkpoint. */
#include "cli/cli.h"

#include <getopt.h>
#include <inttypes.h>
#include <string.h>

static const char help[] =
    "usage: lofi info CHECKPOINT ... [options]\n"
    "\n"
    "Shows the tensors of .safetensors files or Hugging Face folders, in the order of their data,\n"
    "and the metadata: for an average, where it came from.\n"
    "\n"
    "  -s, --short   totals and metadata only\n"
    "      --json    as JSON\n"
    "  -h, --help\n";

enum { OPTION_JSON = 256 };
static const struct option longs[] = {{"short", no_argument, NULL, 's'},
                                      {"json", no_argument, NULL, OPTION_JSON},
                                      {"help", no_argument, NULL, 'h'},
                                      {NULL, 0, NULL, 0}};

static void print_tensors(const lofi_checkpoint *c)
{
    lofi_tensor t;
    for (uint64_t i = 0; i < lofi_checkpoint_count(c); i++) {
        if (lofi_checkpoint_get(c, i, &t) != LOFI_OK) return;
        printf("  %-8s ", t.dtype);
        cli_print_text(stdout, t.name);
        fputc(' ', stdout);
        cli_print_shape(stdout, &t);
        fputc('\n', stdout);
    }
}

static void print_metadata(const lofi_checkpoint *c)
{
    const char *key, *value;
    for (uint64_t i = 0; (key = lofi_checkpoint_metadata(c, i, &value)) != NULL; i++) {
        printf("  ");
        cli_print_text(stdout, key);
        printf(": ");
        cli_print_text(stdout, value);
        fputc('\n', stdout);
    }
}

static void count_up(const lofi_checkpoint *c, uint64_t *elements, uint64_t *bytes)
{
    lofi_tensor t;
    *elements = *bytes = 0;
    for (uint64_t i = 0; i < lofi_checkpoint_count(c); i++) {
        if (lofi_checkpoint_get(c, i, &t) != LOFI_OK) return;
        *elements += t.count;
        *bytes += t.bytes;
    }
}

static void print_plain(const char *path, const lofi_checkpoint *c, int is_short)
{
    uint64_t elements, bytes;

    count_up(c, &elements, &bytes);
    cli_print_text(stdout, path);
    printf(": %" PRIu64 " tensors, %" PRIu64 " elements, ", lofi_checkpoint_count(c), elements);
    cli_print_bytes(stdout, bytes);
    if (lofi_checkpoint_file_count(c) != 1)
        printf(" in %" PRIu64 " files", lofi_checkpoint_file_count(c));
    fputc('\n', stdout);
    print_metadata(c);
    if (!is_short) print_tensors(c);
}

static void print_json_tensor(const lofi_tensor *t, int is_first)
{
    printf("%s{\"name\": ", is_first ? "" : ", ");
    cli_print_json(stdout, t->name);
    printf(", \"dtype\": \"%s\", \"shape\": ", t->dtype);
    cli_print_shape(stdout, t);
    printf(", \"bytes\": %" PRIu64 ", \"file\": ", t->bytes);
    cli_print_json(stdout, t->file);
    fputc('}', stdout);
}

static void print_json(const char *path, const lofi_checkpoint *c, int is_short)
{
    const char *key, *value;
    uint64_t elements, bytes;
    lofi_tensor t;

    count_up(c, &elements, &bytes);
    printf("{\"path\": ");
    cli_print_json(stdout, path);
    printf(", \"files\": %" PRIu64 ", \"tensor_count\": %" PRIu64 ", \"elements\": %" PRIu64
           ", \"bytes\": %" PRIu64 ", \"metadata\": [",
           lofi_checkpoint_file_count(c), lofi_checkpoint_count(c), elements, bytes);
    for (uint64_t i = 0; (key = lofi_checkpoint_metadata(c, i, &value)) != NULL; i++) {
        printf("%s[", i > 0 ? ", " : "");
        cli_print_json(stdout, key);
        printf(", ");
        cli_print_json(stdout, value);
        fputc(']', stdout);
    }
    fputc(']', stdout);
    if (!is_short) printf(", \"tensors\": [");
    for (uint64_t i = 0; !is_short && i < lofi_checkpoint_count(c); i++)
        if (lofi_checkpoint_get(c, i, &t) == LOFI_OK) print_json_tensor(&t, i == 0);
    printf(is_short ? "}\n" : "]}\n");
}

int cli_info(int argc, char **argv)
{
    int option, is_short = 0, is_json = 0, code = CLI_DONE;

    while ((option = getopt_long(argc, argv, "sh", longs, NULL)) != -1) {
        if (option == 's') is_short = 1;
        if (option == OPTION_JSON) is_json = 1;
        if (option == '?') return CLI_MISUSED;
        if (option != 'h') continue;
        fputs(help, stdout);
        return CLI_DONE;
    }
    if (optind == argc) return cli_misuse("info", "no checkpoint is given");
    for (int i = optind; i < argc; i++) {
        lofi_checkpoint *c;
        if (lofi_checkpoint_open(argv[i], &c) != LOFI_OK) {
            code = cli_fail();
            continue;
        }
        if (is_json)
            print_json(argv[i], c, is_short);
        else
            print_plain(argv[i], c, is_short);
        lofi_checkpoint_close(c);
    }
    return code;
}
