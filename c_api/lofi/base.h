/* SPDX-License-Identifier: MIT */
/*
 * The part of lofi.h that all others need: versions, statuses, errors, the log.
 *
 * Conventions
 *   Names      lofi_<noun>_<verb>. "create" pairs with "destroy", "open" with "close"; both
 *              take NULL as a no-op.
 *   Errors     Fallible functions return lofi_status. Results come through the last arguments
 *              and are written on LOFI_OK only. lofi_last_error() has the sentence for a person.
 *   Threads    Functions without an object are safe from any thread. A topology or a group is
 *              immutable after its creation and may be shared. A session may be used by any
 *              number of threads at once.
 *   Growth     Option structs start with `size`, set by their LOFI_*_INIT macro; a library reads
 *              only the fields that the caller's header knew, gives the others the values of
 *              the macro, and refuses a struct of a later header (LOFI_ABI). Enums are never
 *              renumbered.
 *              Same major version, same ABI (before 1.0: same minor version).
 *   Units      _bytes is bytes, _count is elements, _ms is milliseconds.
 */
#ifndef LOFI_BASE_H
#define LOFI_BASE_H

#include <stddef.h>
#include <stdint.h>

/* Around the declarations of each header. The library is built with all else hidden. */
#if defined(__GNUC__)
#define LOFI__VISIBLE_BEGIN _Pragma("GCC visibility push(default)")
#define LOFI__VISIBLE_END _Pragma("GCC visibility pop")
#else
#define LOFI__VISIBLE_BEGIN
#define LOFI__VISIBLE_END
#endif
#ifdef __cplusplus
#define LOFI__DECLARATIONS_BEGIN                                                                   \
    LOFI__VISIBLE_BEGIN extern "C"                                                                 \
    {
#define LOFI__DECLARATIONS_END                                                                     \
    }                                                                                              \
    LOFI__VISIBLE_END
#else
#define LOFI__DECLARATIONS_BEGIN LOFI__VISIBLE_BEGIN
#define LOFI__DECLARATIONS_END LOFI__VISIBLE_END
#endif

LOFI__DECLARATIONS_BEGIN

#define LOFI_VERSION_MAJOR 0
#define LOFI_VERSION_MINOR 1
#define LOFI_VERSION_PATCH 0

/* ---- status ---------------------------------------------------------------------------------- */

/* One list makes the enum, the names and the default texts. */
#define LOFI_STATUS_MAP(X)                                                                         \
    X(OK, 0, "success")                                                                            \
    X(IN_PROGRESS, 1, "not finished yet")                                                          \
    X(INVALID, -1, "an argument or a setting is wrong")                                            \
    X(NO_MEMORY, -2, "out of memory")                                                              \
    X(UNSUPPORTED, -3, "not possible while nodes train apart")                                     \
    X(TIMED_OUT, -4, "a deadline passed")                                                          \
    X(PEER_LOST, -5, "another rank is gone")                                                       \
    X(SYSTEM, -6, "the operating system reported an error")                                        \
    X(CORRUPT, -7, "data is damaged or not what it claims to be")                                  \
    X(ABI, -8, "parts of different lofi versions do not fit together")                             \
    X(STATE, -9, "not possible in the current phase")

typedef enum lofi_status {
#define LOFI_STATUS_ENUM(name, value, text) LOFI_##name = (value),
    LOFI_STATUS_MAP(LOFI_STATUS_ENUM)
#undef LOFI_STATUS_ENUM
} lofi_status;

/* "LOFI_INVALID" and so on; "LOFI_UNKNOWN" for a value that is not listed. Static storage. */
const char *lofi_status_name(lofi_status status);

/* The general meaning of a status, from the list above. Static storage. */
const char *lofi_status_text(lofi_status status);

/* The sentence that belongs to the last failure on the calling thread, or "". Borrowed; valid
 * until the next failing lofi call on this thread. */
const char *lofi_last_error(void);

/* Sets the calling thread's last error; for callbacks such as lofi_allgather_fn. */
void lofi_set_error(const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2)))
#endif
    ;

/* ---- version and log ------------------------------------------------------------------------- */

/* The version of the library that is loaded, as major * 10000 + minor * 100 + patch. */
int lofi_version(void);

/* "0.1.0 (gcc 12.2.0, x86_64)": version, compiler and architecture. Static storage. */
const char *lofi_build_info(void);

typedef enum lofi_log_level {
    LOFI_LOG_ERROR = 0,
    LOFI_LOG_WARN = 1,
    LOFI_LOG_INFO = 2,
    LOFI_LOG_DEBUG = 3,
    LOFI_LOG_TRACE = 4
} lofi_log_level;

/* Called with one line, without a newline or another control character. It may run on any thread;
 * it must not call lofi. */
typedef void (*lofi_log_fn)(void *ctx, lofi_log_level level, const char *line);

/* Levels up to `level` are passed on. The default is LOFI_LOG_WARN. */
void lofi_log_set_level(lofi_log_level level);

/* Reads "error", "warn", "info", "debug" or "trace". LOFI_INVALID names the word and the list. */
lofi_status lofi_log_level_parse(const char *word, lofi_log_level *level);

/* Replaces the sink; NULL restores the default, which writes to stderr. `ctx` is borrowed until
 * the next call. Set it before other threads log. */
void lofi_log_set_callback(lofi_log_fn fn, void *ctx);

/* printf-style. Emits a line if `level` is enabled. */
void lofi_log(lofi_log_level level, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* Between these two only errors of the calling thread are passed on: for work that is done many
 * times over, whose warnings would be told as often. They nest. */
void lofi_log_hold(void);
void lofi_log_release(void);

/* ---- what the embedding program supplies ----------------------------------------------------- */

/* Gathers `bytes` bytes of every rank, in rank order, into `all` (world_size * bytes). It is the
 * only thing that creation needs from the outside; over a key-value store it is one set and
 * world_size gets. It must enforce a deadline of its own. On failure it returns a status other
 * than LOFI_OK; lofi_set_error may hold the reason. */
typedef lofi_status (*lofi_allgather_fn)(void *ctx, const void *mine, size_t bytes, void *all);

LOFI__DECLARATIONS_END

#endif /* LOFI_BASE_H */
