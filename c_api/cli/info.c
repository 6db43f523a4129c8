/* SPDX-License-Identifier: MIT */
/* lofi info: what is in a checkpoint. */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: lofi info CHECKPOINT ... [options]\n"
    "\n"
    "Shows the tensors of .safetensors files or Hugging Face folders, in the order of their data,\n"
    "and the metadata, each entry once: for an average, where it came from.\n"
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

struct metadata {
    const char *key, *value;
    uint64_t number; /* in the order of the files */
};

struct shown {
    const char *path;
    lofi_checkpoint *checkpoint;
    struct metadata *metadata;
    size_t metadata_count;
    int is_short;
};

static int by_text(const void *a, const void *b)
{
    const struct metadata *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    if (order == 0) order = strcmp(x->value, y->value);
    return order != 0 ? order : (x->number > y->number) - (x->number < y->number);
}

static int by_number(const void *a, const void *b)
{
    const struct metadata *x = a, *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

/* Shards repeat them: of equal ones the first is kept. Sorted, as a header may hold very many. */
static size_t keep_different(struct metadata *all, size_t count)
{
    size_t kept = 0;

    qsort(all, count, sizeof *all, by_text);
    for (size_t i = 0; i < count; i++)
        if (i == 0 || strcmp(all[i].key, all[kept - 1].key) != 0 ||
            strcmp(all[i].value, all[kept - 1].value) != 0)
            all[kept++] = all[i];
    qsort(all, kept, sizeof *all, by_number);
    return kept;
}

/* 0: out of memory. */
static int read_metadata(struct shown *s)
{
    const char *value;
    size_t count = 0;

    while (lofi_checkpoint_metadata(s->checkpoint, count, &value) != NULL)
        count++;
    s->metadata = calloc(count + 1, sizeof *s->metadata);
    if (s->metadata == NULL) return 0;
    for (size_t i = 0; i < count; i++) {
        s->metadata[i].number = i;
        s->metadata[i].key = lofi_checkpoint_metadata(s->checkpoint, i, &s->metadata[i].value);
    }
    s->metadata_count = keep_different(s->metadata, count);
    return 1;
}

static void print_metadata(const struct shown *s)
{
    for (size_t i = 0; i < s->metadata_count; i++) {
        printf("  ");
        cli_print_text(stdout, s->metadata[i].key);
        printf(": ");
        cli_print_text(stdout, s->metadata[i].value);
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

static void print_plain(const struct shown *s)
{
    const lofi_checkpoint *c = s->checkpoint;
    uint64_t elements, bytes;

    count_up(c, &elements, &bytes);
    cli_print_text(stdout, s->path);
    printf(": %" PRIu64 " tensors, %" PRIu64 " elements, ", lofi_checkpoint_count(c), elements);
    cli_print_bytes(stdout, bytes);
    if (lofi_checkpoint_file_count(c) != 1)
        printf(" in %" PRIu64 " files", lofi_checkpoint_file_count(c));
    fputc('\n', stdout);
    print_metadata(s);
    if (!s->is_short) print_tensors(c);
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

static void print_json(const struct shown *s)
{
    const lofi_checkpoint *c = s->checkpoint;
    uint64_t elements, bytes;
    lofi_tensor t;

    count_up(c, &elements, &bytes);
    printf("{\"path\": ");
    cli_print_json(stdout, s->path);
    printf(", \"files\": %" PRIu64 ", \"tensor_count\": %" PRIu64 ", \"elements\": %" PRIu64
           ", \"bytes\": %" PRIu64 ", \"metadata\": [",
           lofi_checkpoint_file_count(c), lofi_checkpoint_count(c), elements, bytes);
    for (size_t i = 0; i < s->metadata_count; i++) {
        printf("%s[", i > 0 ? ", " : "");
        cli_print_json(stdout, s->metadata[i].key);
        printf(", ");
        cli_print_json(stdout, s->metadata[i].value);
        fputc(']', stdout);
    }
    fputc(']', stdout);
    if (!s->is_short) printf(", \"tensors\": [");
    for (uint64_t i = 0; !s->is_short && i < lofi_checkpoint_count(c); i++)
        if (lofi_checkpoint_get(c, i, &t) == LOFI_OK) print_json_tensor(&t, i == 0);
    printf(s->is_short ? "}\n" : "]}\n");
}

static int show(const char *path, int is_short, int is_json)
{
    struct shown s = {.path = path, .is_short = is_short};

    if (lofi_checkpoint_open(path, &s.checkpoint) != LOFI_OK) return cli_fail();
    const int is_read = read_metadata(&s);
    if (is_read && is_json)
        print_json(&s);
    else if (is_read)
        print_plain(&s);
    free(s.metadata);
    lofi_checkpoint_close(s.checkpoint);
    return is_read ? CLI_DONE : cli_fail_for_memory();
}

int cli_info(int argc, char **argv)
{
    int option, is_short = 0, is_json = 0, code = CLI_DONE;

    while ((option = cli_next_option(argc, argv, ":sh", longs)) != -1) {
        if (option == 's') is_short = 1;
        if (option == OPTION_JSON) is_json = 1;
        if (option == CLI_REFUSED) return CLI_MISUSED;
        if (option != 'h') continue;
        fputs(help, stdout);
        return CLI_DONE;
    }
    if (optind == argc) return cli_misuse("info", "no checkpoint is given");
    for (int i = optind; i < argc; i++)
        if (show(argv[i], is_short, is_json) != CLI_DONE) code = CLI_FAILED;
    return code;
}
