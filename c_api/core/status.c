/* SPDX-License-Identifier: MIT */
/*
 * Names and texts of status codes, and the last error of this thread.
 *
 * The first function that finds a cause writes the sentence; callers only pass the status up.
 * The sentence is kept per thread in a fixed buffer, as errno is, and not handed out as an
 * allocated string: an error path must work without memory, and nobody has to free anything.
 */
#include "core/error.h"
#include "lofi.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[LOFI__ERROR_BYTES];
static _Thread_local unsigned error_count;

const char *lofi_status_name(lofi_status status)
{
    switch (status) {
#define STATUS_NAME(name, value, text)                                                             \
    case LOFI_##name:                                                                              \
        return "LOFI_" #name;
        LOFI_STATUS_MAP(STATUS_NAME)
#undef STATUS_NAME
    }
    return "LOFI_UNKNOWN";
}

const char *lofi_status_text(lofi_status status)
{
    switch (status) {
#define STATUS_TEXT(name, value, text)                                                             \
    case LOFI_##name:                                                                              \
        return text;
        LOFI_STATUS_MAP(STATUS_TEXT)
#undef STATUS_TEXT
    }
    return "unknown status";
}

const char *lofi_last_error(void)
{
    return last_error;
}

void lofi_set_error(const char *format, ...)
{
    /* Formatted aside, because an argument may be lofi_last_error() itself. */
    char text[LOFI__ERROR_BYTES];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0) snprintf(text, sizeof text, "an error that can't be formatted");
    memcpy(last_error, text, strlen(text) + 1);
    error_count++;
}

unsigned lofi__error_count(void)
{
    return error_count;
}
