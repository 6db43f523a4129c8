/* SPDX-License-Identifier: MIT */
/*
 * The process of a command that scores. It leads a process group of its own, so that all that it has
 * started can be told to end with it: at the deadline, after a signal, or when it has failed. It
 * reads nothing, and its stderr is the user's.
 */
#define _GNU_SOURCE
#include "cli/score.h"
#include "cli/cli.h"
#include "cli/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TAIL_BYTES = 8192, TICK_MS = 20 };
#define GRACE_SECONDS 5.0 /* for what is told to end */

struct run {
    pid_t pid;
    int from; /* its stdout */
    int has_ended, status;
    char tail[TAIL_BYTES + 1]; /* of what it has printed */
    size_t length;
};

static lofi_status fail(const char *what)
{
    lofi_set_error("the score command can't be started: %s: %s", what, strerror(errno));
    return LOFI_SYSTEM;
}

/* Runs in the child, and ends it. */
static void become(const char *command, const char *path, int to)
{
    const int nothing = open("/dev/null", O_RDONLY);

    setpgid(0, 0);
    signal(SIGXFSZ, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTTIN, SIG_IGN); /* a group in the background would be stopped for good */
    signal(SIGTTOU, SIG_IGN);
    if (nothing >= 0 && dup2(nothing, STDIN_FILENO) >= 0 && dup2(to, STDOUT_FILENO) >= 0)
        execl("/bin/sh", "sh", "-c", command, "sh", path, (char *)NULL);
    _exit(127);
}

static lofi_status start(struct run *run, const char *command, const char *path)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return fail("a pipe");
    fcntl(ends[1], F_SETFL, 0); /* the command's end waits, as any other */
    fflush(NULL);
    *run = (struct run){.from = ends[0], .pid = fork()};
    if (run->pid == 0) become(command, path, ends[1]);
    close(ends[1]);
    if (run->pid > 0) {
        setpgid(run->pid, run->pid); /* also here: whoever comes first */
        cli_kill_with_signal(run->pid);
        return LOFI_OK;
    }
    lofi_status st = fail("a process");
    close(run->from);
    return st;
}

/* Keeps the end of what there is to read. 0: nothing more comes. */
static int read_output(struct run *run)
{
    char piece[TAIL_BYTES];
    ssize_t got;

    while ((got = read(run->from, piece, sizeof piece)) > 0) {
        const size_t bytes = (size_t)got;
        const size_t over = run->length + bytes > TAIL_BYTES ? run->length + bytes - TAIL_BYTES : 0;
        memmove(run->tail, run->tail + over, run->length - over);
        memcpy(run->tail + run->length - over, piece, bytes);
        run->length += bytes - over;
    }
    return got < 0 && (errno == EAGAIN || errno == EINTR);
}

static void reap(struct run *run)
{
    if (!run->has_ended) run->has_ended = waitpid(run->pid, &run->status, WNOHANG) == run->pid;
}

/* Reads until the command has ended, whoever else may still hold its stdout. */
static lofi_status wait_for(struct run *run, double timeout, const char *path)
{
    const double deadline = cli_seconds() + timeout;
    struct pollfd output = {.fd = run->from, .events = POLLIN};

    while (!run->has_ended) {
        poll(&output, 1, TICK_MS);
        if (cli_signal() != 0) {
            lofi_set_error("the search was interrupted");
            return LOFI_STATE;
        }
        if (timeout > 0 && cli_seconds() > deadline) {
            lofi_set_error("the score command took longer than %g s (--score-timeout) for %s, and "
                           "was ended",
                           timeout, path);
            return LOFI_TIMED_OUT;
        }
        reap(run); /* before reading: what it has printed is all there then */
        if (!read_output(run)) output.fd = -1;
    }
    return LOFI_OK;
}

static int is_group_left(struct run *run)
{
    reap(run);
    return kill(-run->pid, 0) == 0;
}

/* Tells all processes of the command to end, then makes them. */
static void end_group(struct run *run)
{
    const struct timespec tick = {.tv_nsec = TICK_MS * 1000000L};
    const double deadline = cli_seconds() + GRACE_SECONDS;

    kill(-run->pid, SIGTERM);
    while (is_group_left(run) && cli_seconds() < deadline)
        nanosleep(&tick, NULL);
    kill(-run->pid, SIGKILL);
    if (!run->has_ended) waitpid(run->pid, &run->status, 0);
}

static lofi_status check_end(const struct run *run, const char *path)
{
    if (WIFEXITED(run->status) && WEXITSTATUS(run->status) == 0) return LOFI_OK;
    if (WIFEXITED(run->status))
        lofi_set_error("the score command failed for %s: it ended with exit code %d", path,
                       WEXITSTATUS(run->status));
    else
        lofi_set_error("the score command failed for %s: signal %d (%s) killed it", path,
                       WTERMSIG(run->status), strsignal(WTERMSIG(run->status)));
    return LOFI_SYSTEM;
}

static lofi_status read_score(struct run *run, const char *path, double *value)
{
    /* A NUL would hide what comes after it. */
    for (size_t i = 0; i < run->length; i++)
        if (run->tail[i] == '\0') run->tail[i] = '?';
    const char *line = cli_score_parse(run->tail, value);
    if (line == NULL && *value - *value == 0) return LOFI_OK;
    if (line == NULL)
        lofi_set_error("the score of %s is %g: it has to be finite", path, *value);
    else if (line[0] == '\0')
        lofi_set_error("the score command printed nothing for %s: its last line has to end with "
                       "the score",
                       path);
    else
        lofi_set_error("the score command printed no number for %s: its last line has to end with "
                       "the score, and is '%.200s'",
                       path, line);
    return LOFI_INVALID;
}

lofi_status cli_score_run(const struct cli_score *score, const char *path, double *value)
{
    struct run run;
    char *dashed = NULL;

    /* A name that begins with - would be an option of the command. */
    if (path[0] == '-' && asprintf(&dashed, "./%s", path) < 0) return LOFI_NO_MEMORY;
    lofi_status st = start(&run, score->command, dashed != NULL ? dashed : path);
    free(dashed);
    if (st != LOFI_OK) return st;
    st = wait_for(&run, score->timeout_seconds, path);
    if (st == LOFI_OK) st = check_end(&run, path);
    if (st != LOFI_OK) end_group(&run);
    cli_kill_with_signal(0);
    close(run.from);
    return st == LOFI_OK ? read_score(&run, path, value) : st;
}
