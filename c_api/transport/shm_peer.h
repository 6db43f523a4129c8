/* SPDX-License-Identifier: MIT */
/* Tells which processes share a machine, and whether they are alive. */
#ifndef LOFI_TRANSPORT_SHM_PEER_H
#define LOFI_TRANSPORT_SHM_PEER_H

#include "lofi.h"

/* These tell one machine from another: the boot of its kernel, and the namespaces without which
 * processes can't share memory, watch each other, or are set apart on purpose (network). Sent
 * between ranks as bytes. */
struct lofi__host {
    char boot[40];
    uint64_t net, pid, ipc;
};

/* LOFI_SYSTEM if /proc does not tell. */
lofi_status lofi__host_fill(struct lofi__host *host);
/* NULL, or in which respect they differ: "boot", "network namespace" ... Static storage. */
const char *lofi__host_difference(const struct lofi__host *a, const struct lofi__host *b);

/* A descriptor by which to watch the process, or -1: then its number has to do. */
int lofi__peer_watch(int pid);
/* 1 if the process has ended, also when nobody has waited for it yet. */
int lofi__peer_is_gone(int pid, int watch);
/* "ended", "stopped", "alive": what to tell a person. Static storage. */
const char *lofi__peer_state(int pid, int watch);

#endif /* LOFI_TRANSPORT_SHM_PEER_H */
