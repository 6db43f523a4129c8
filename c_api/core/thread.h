/* SPDX-License-Identifier: MIT */
/* Threads of the library. */
#ifndef LOFI_CORE_THREAD_H
#define LOFI_CORE_THREAD_H

#include <pthread.h>

/* Does as pthread_create, with all signals blocked: those are the embedding program's, whose
 * handlers run on its own threads. Returns what pthread_create does. */
int lofi__thread_create(pthread_t *thread, void *(*run)(void *), void *argument);

#endif /* LOFI_CORE_THREAD_H */
