/* SPDX-License-Identifier: MIT */
/*
 * getpid() enters the kernel each time, which is a good part of a small collective. A handler that
 * runs in every forked child does not. (Children made by a bare clone() go unnoticed; those can't
 * use pthreads either.)
 */
#define _GNU_SOURCE
#include "core/fork.h"

#include <pthread.h>

static unsigned generation = 1; /* written in a child before it has a second thread */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void note_fork(void)
{
    generation++;
}

static void watch(void)
{
    pthread_atfork(NULL, NULL, note_fork);
}

unsigned lofi__fork_generation(void)
{
    pthread_once(&once, watch);
    return generation;
}
