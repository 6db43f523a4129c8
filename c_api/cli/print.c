/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli/cli.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double cli_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int is_control(unsigned char c)
{
    return c < 0x20 || c == 0x7f;
}

/* Also those of two bytes in UTF-8, U+0080 to U+009F: some terminals obey them. */
void cli_print_text(FILE *to, const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) {
            fputc('?', to);
            c++;
        } else {
            fputc(is_control(*c) ? '?' : *c, to);
        }
    }
}

/* The length of the UTF-8 character that begins here; 0: none does. */
static int character_bytes(const unsigned char *c)
{
    if (c[0] < 0x80) return 1;
    if (c[0] < 0xc2 || c[0] > 0xf4) return 0;
    /* None longer than it needs to be, no surrogate, nothing above U+10FFFF. */
    const unsigned char least = c[0] == 0xe0 ? 0xa0 : c[0] == 0xf0 ? 0x90 : 0x80;
    const unsigned char most = c[0] == 0xed ? 0x9f : c[0] == 0xf4 ? 0x8f : 0xbf;
    const int bytes = c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    if (c[1] < least || c[1] > most) return 0;
    for (int i = 2; i < bytes; i++)
        if (c[i] < 0x80 || c[i] > 0xbf) return 0;
    return bytes;
}

/* JSON is UTF-8, and the name of a file may be anything: U+FFFD stands for what is no text. */
void cli_print_json(FILE *to, const char *text)
{
    fputc('"', to);
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0';) {
        const int bytes = character_bytes(c);
        if (bytes == 0)
            fputs("\\ufffd", to);
        else if (*c == '"' || *c == '\\')
            fprintf(to, "\\%c", *c);
        else if (is_control(*c))
            fprintf(to, "\\u%04x", *c);
        else
            fwrite(c, 1, (size_t)bytes, to);
        c += bytes > 0 ? bytes : 1;
    }
    fputc('"', to);
}

void cli_print_number(FILE *to, double value)
{
    if (value - value == 0)
        fprintf(to, "%.17g", value);
    else
        fputs("null", to);
}

void cli_print_bytes(FILE *to, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB", "PB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1000 && unit < 5) {
        value /= 1000;
        unit++;
    }
    fprintf(to, unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
}

void cli_print_shape(FILE *to, const lofi_tensor *tensor)
{
    fputc('[', to);
    for (int i = 0; i < tensor->dims; i++)
        fprintf(to, "%s%" PRIu64, i > 0 ? ", " : "", tensor->shape[i]);
    fputc(']', to);
}

int cli_fail(void)
{
    fputs("lofi: ", stderr);
    cli_print_text(stderr, lofi_last_error());
    fputc('\n', stderr);
    return CLI_FAILED;
}

int cli_fail_for_memory(void)
{
    lofi_set_error("out of memory");
    return cli_fail();
}

int cli_misuse(const char *command, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fputs("lofi: ", stderr);
    cli_print_text(stderr, text);
    fprintf(stderr, " (lofi%s%s --help)\n", command[0] != '\0' ? " " : "", command);
    return CLI_MISUSED;
}

static int has_option(const struct option *longs, int value)
{
    while (longs->name != NULL && longs->val != value)
        longs++;
    return longs->name != NULL;
}

/* A refused letter is told from optopt alone. In -xq, getopt has not passed the word when it
 * refuses x, and argv[optind - 1] is the word before it. */
static void tell_refused(char **argv, int option, const struct option *longs)
{
    const char *word = argv[optind - 1];

    if (option == ':' && strncmp(word, "--", 2) == 0)
        cli_misuse(argv[0], "%s needs a value", word);
    else if (option == ':')
        cli_misuse(argv[0], "-%c needs a value", optopt);
    else if (optopt == 0)
        cli_misuse(argv[0], "%s is no option, or the beginning of several", word);
    else if (has_option(longs, optopt))
        cli_misuse(argv[0], "%s: this option takes no value", word);
    else
        cli_misuse(argv[0], "-%c is no option", optopt);
}

int cli_next_option(int argc, char **argv, const char *shorts, const struct option *longs)
{
    opterr = 0; /* getopt's own sentences do not say which program complains */
    const int option = getopt_long(argc, argv, shorts, longs, NULL);
    if (option != '?' && option != ':') return option;
    tell_refused(argv, option, longs);
    return CLI_REFUSED;
}

lofi_checkpoint **cli_open_all(char *const *paths, int count)
{
    lofi_checkpoint **all = calloc((size_t)count, sizeof(lofi_checkpoint *));
    if (all == NULL) {
        cli_fail_for_memory();
        return NULL;
    }
    for (int i = 0; i < count; i++) {
        if (lofi_checkpoint_open(paths[i], &all[i]) == LOFI_OK) continue;
        cli_fail();
        cli_close_all(all, count);
        return NULL;
    }
    return all;
}

void cli_close_all(lofi_checkpoint **checkpoints, int count)
{
    for (int i = 0; checkpoints != NULL && i < count; i++)
        lofi_checkpoint_close(checkpoints[i]);
    free(checkpoints);
}
