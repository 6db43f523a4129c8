/* SPDX-License-Identifier: MIT */
/*
 * The log: a level and one sink.
 *
 * The sink belongs to the process, so it is one of the few globals. The callback is plain data,
 * set before other threads log, as the header asks; a lock around every line would protect
 * only hosts that swap sinks while training, which none does. The level may change at any time.
 */
#include "lofi.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define LINE_BYTES 2048

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
#define LEVEL_COUNT ((int)(sizeof level_names / sizeof level_names[0]))

static void write_to_stderr(void *ctx, lofi_log_level level, const char *line)
{
    (void)ctx;
    fprintf(stderr, "lofi %s: %s\n", level_names[level], line);
}

static atomic_int enabled_level = LOFI_LOG_WARN;
static lofi_log_fn sink = write_to_stderr;
static void *sink_ctx;
static _Thread_local int held;

void lofi_log_hold(void)
{
    held++;
}

void lofi_log_release(void)
{
    held--;
}

void lofi_log_set_level(lofi_log_level level)
{
    atomic_store_explicit(&enabled_level, (int)level, memory_order_relaxed);
}

lofi_status lofi_log_level_parse(const char *word, lofi_log_level *level)
{
    for (int i = 0; word != NULL && i < LEVEL_COUNT; i++) {
        if (strcmp(word, level_names[i]) != 0) continue;
        *level = (lofi_log_level)i;
        return LOFI_OK;
    }
    lofi_set_error("the log level is '%.64s': choose error, warn, info, debug or trace",
                   word != NULL ? word : "");
    return LOFI_INVALID;
}

void lofi_log_set_callback(lofi_log_fn fn, void *ctx)
{
    sink = fn != NULL ? fn : write_to_stderr;
    sink_ctx = fn != NULL ? ctx : NULL;
}

/* The sink is promised one line of text; messages of a system or a host may hold several, and names
 * of files what a terminal obeys. Some obey U+0080 to U+009F, too: two bytes in UTF-8. */
static void make_line(char *line)
{
    size_t length = strlen(line);
    while (length > 0 && line[length - 1] == '\n')
        line[--length] = '\0';
    for (unsigned char *c = (unsigned char *)line; *c != '\0'; c++) {
        if (*c == '\n' || *c == '\r' || *c == '\t')
            *c = ' ';
        else if (*c < 0x20 || *c == 0x7f)
            *c = '?';
        else if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0)
            c[0] = c[1] = '?';
    }
}

void lofi_log(lofi_log_level level, const char *format, ...)
{
    char line[LINE_BYTES];
    va_list arguments;

    if ((int)level < 0 || (int)level >= LEVEL_COUNT) level = LOFI_LOG_ERROR;
    if ((int)level > atomic_load_explicit(&enabled_level, memory_order_relaxed)) return;
    if (held > 0 && level > LOFI_LOG_ERROR) return;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length < 0) return;
    make_line(line);
    sink(sink_ctx, level, line);
}
