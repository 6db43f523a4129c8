/* SPDX-License-Identifier: MIT */
/*
 * Names of hosts and variables of launchers prove nothing about memory, so neither is read.
 *
 * A pidfd says that a process has ended from the moment it has, where kill(pid, 0) goes on
 * finding it until its parent waits for it, and later finds whoever has its number next.
 */
#define _GNU_SOURCE
#include "transport/shm_peer.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static lofi_status namespace_of(const char *path, uint64_t *number)
{
    struct stat file;

    if (stat(path, &file) != 0) {
        lofi_set_error("%s can't be read: %s", path, strerror(errno));
        return LOFI_SYSTEM;
    }
    *number = (uint64_t)file.st_ino;
    return LOFI_OK;
}

static lofi_status boot_of(char *boot, size_t bytes)
{
    static const char path[] = "/proc/sys/kernel/random/boot_id";
    FILE *file = fopen(path, "re");
    char line[64] = "";

    if (file == NULL || fgets(line, sizeof line, file) == NULL) {
        lofi_set_error("%s can't be read: %s", path, strerror(errno));
        if (file != NULL) fclose(file);
        return LOFI_SYSTEM;
    }
    fclose(file);
    line[strcspn(line, "\n")] = '\0';
    snprintf(boot, bytes, "%.*s", (int)bytes - 1, line);
    return LOFI_OK;
}

lofi_status lofi__host_fill(struct lofi__host *host)
{
    memset(host, 0, sizeof *host);
    lofi_status st = boot_of(host->boot, sizeof host->boot);
    if (st == LOFI_OK) st = namespace_of("/proc/self/ns/net", &host->net);
    if (st == LOFI_OK) st = namespace_of("/proc/self/ns/pid", &host->pid);
    if (st == LOFI_OK) st = namespace_of("/proc/self/ns/ipc", &host->ipc);
    return st;
}

const char *lofi__host_difference(const struct lofi__host *a, const struct lofi__host *b)
{
    if (memcmp(a->boot, b->boot, sizeof a->boot) != 0) return "boot";
    if (a->net != b->net) return "network namespace";
    if (a->pid != b->pid) return "process namespace";
    if (a->ipc != b->ipc) return "IPC namespace";
    return NULL;
}

int lofi__peer_watch(int pid)
{
#ifdef SYS_pidfd_open
    return (int)syscall(SYS_pidfd_open, pid, 0);
#else
    (void)pid;
    return -1;
#endif
}

int lofi__peer_is_gone(int pid, int watch)
{
    struct pollfd ended = {.fd = watch, .events = POLLIN};

    if (watch >= 0) return poll(&ended, 1, 0) == 1 && (ended.revents & POLLIN) != 0;
    return kill(pid, 0) != 0 && errno == ESRCH;
}

/* The letter after the name in parentheses, which may hold parentheses itself. */
static char state_letter(int pid)
{
    char path[32], line[512] = "";

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) return '?';
    const char *end = fgets(line, sizeof line, file) != NULL ? strrchr(line, ')') : NULL;
    fclose(file);
    return end != NULL && end[1] == ' ' ? end[2] : '?';
}

const char *lofi__peer_state(int pid, int watch)
{
    if (lofi__peer_is_gone(pid, watch)) return "ended";
    char letter = state_letter(pid);
    return letter == 'T' || letter == 't' ? "stopped" : "alive";
}
