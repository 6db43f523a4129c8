/* SPDX-License-Identifier: MIT */
/* Status codes, the last error, the log and the version. */
#include "test.h"

#include <pthread.h>

static void test_names(void)
{
    EXPECT(strcmp(lofi_status_name(LOFI_OK), "LOFI_OK") == 0);
    EXPECT(strcmp(lofi_status_name(LOFI_PEER_LOST), "LOFI_PEER_LOST") == 0);
    EXPECT(strcmp(lofi_status_name((lofi_status)-77), "LOFI_UNKNOWN") == 0);
    EXPECT(strcmp(lofi_status_text(LOFI_TIMED_OUT), "a deadline passed") == 0);
    EXPECT(strlen(lofi_status_text((lofi_status)99)) > 0);
}

static void *read_error(void *ctx)
{
    (void)ctx;
    return strlen(lofi_last_error()) == 0 ? (void *)&test_checks : NULL;
}

static void test_last_error(void)
{
    pthread_t thread;
    void *result = NULL;
    char *long_text = malloc(100000);

    EXPECT(strcmp(lofi_last_error(), "") == 0);
    lofi_set_error("%s has %d", "rank 3", 4);
    EXPECT(strcmp(lofi_last_error(), "rank 3 has 4") == 0);
    lofi_set_error("again: %s", lofi_last_error());
    EXPECT(strcmp(lofi_last_error(), "again: rank 3 has 4") == 0);

    ASSERT(pthread_create(&thread, NULL, read_error, NULL) == 0);
    ASSERT(pthread_join(thread, &result) == 0);
    EXPECT(result != NULL); /* the other thread has its own */

    ASSERT(long_text != NULL);
    memset(long_text, 'x', 99999);
    long_text[99999] = '\0';
    lofi_set_error("%s", long_text);
    EXPECT(strlen(lofi_last_error()) > 2000 && strlen(lofi_last_error()) < 5000);
    free(long_text);
}

struct lines {
    int count;
    lofi_log_level level;
    char last[4096];
};

static void take_line(void *ctx, lofi_log_level level, const char *line)
{
    struct lines *lines = ctx;
    lines->count++;
    lines->level = level;
    snprintf(lines->last, sizeof lines->last, "%s", line);
}

static void test_log(void)
{
    struct lines lines = {0, LOFI_LOG_TRACE, ""};
    lofi_log_level level = LOFI_LOG_ERROR;

    lofi_log_set_callback(take_line, &lines);
    lofi_log(LOFI_LOG_WARN, "node %d\nis late\n", 3);
    EXPECT(lines.count == 1 && lines.level == LOFI_LOG_WARN);
    EXPECT(strcmp(lines.last, "node 3 is late") == 0);
    lofi_log(LOFI_LOG_WARN, "a\tb\033]0;c\007\177\302\205\302\240\303\251");
    EXPECT(strcmp(lines.last, "a b?]0;c????\302\240\303\251") == 0);
    lofi_log(LOFI_LOG_INFO, "not enabled");
    EXPECT(lines.count == 2);
    lofi_log_set_level(LOFI_LOG_TRACE);
    lofi_log(LOFI_LOG_TRACE, "enabled");
    EXPECT(lines.count == 3);
    lofi_log((lofi_log_level)9, "no such level");
    EXPECT(lines.count == 4 && lines.level == LOFI_LOG_ERROR);
    lofi_log_set_level(LOFI_LOG_ERROR);
    lofi_log(LOFI_LOG_WARN, "not enabled");
    EXPECT(lines.count == 4);
    lofi_log_set_level(LOFI_LOG_WARN);
    lofi_log_set_callback(NULL, NULL);
    lofi_log(LOFI_LOG_WARN, "this line belongs on stderr");
    EXPECT(lines.count == 4);

    EXPECT(lofi_log_level_parse("debug", &level) == LOFI_OK && level == LOFI_LOG_DEBUG);
    EXPECT(lofi_log_level_parse("error", &level) == LOFI_OK && level == LOFI_LOG_ERROR);
    EXPECT(lofi_log_level_parse("Debug", &level) == LOFI_INVALID && level == LOFI_LOG_ERROR);
    EXPECT_ERROR("'Debug'");
    EXPECT_ERROR("error, warn, info, debug or trace");
    EXPECT(lofi_log_level_parse("", &level) == LOFI_INVALID);
    EXPECT(lofi_log_level_parse(NULL, &level) == LOFI_INVALID);
}

static void test_version(void)
{
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d (", LOFI_VERSION_MAJOR, LOFI_VERSION_MINOR,
             LOFI_VERSION_PATCH);
    EXPECT(lofi_version() ==
           LOFI_VERSION_MAJOR * 10000 + LOFI_VERSION_MINOR * 100 + LOFI_VERSION_PATCH);
    EXPECT(strncmp(lofi_build_info(), version, strlen(version)) == 0);
}

int main(void)
{
    test_names();
    test_last_error();
    test_log();
    test_version();
    return test_end();
}
