/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cli/signals.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t signal_seen;
static volatile sig_atomic_t group_to_kill; /* a pid_t is an int where this runs */

static void note_signal(int number)
{
    if (signal_seen != 0) {
        if (group_to_kill > 0) kill(-group_to_kill, SIGKILL);
        signal(number, SIG_DFL);
        raise(number);
    }
    signal_seen = number;
}

void cli_catch_signals(void)
{
    static const int caught[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action, before;

    memset(&action, 0, sizeof action);
    action.sa_handler = note_signal;
    for (size_t i = 0; i < sizeof caught / sizeof caught[0]; i++)
        if (sigaction(caught[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(caught[i], &action, NULL);
}

int cli_signal(void)
{
    return signal_seen;
}

void cli_end_by_signal(void)
{
    if (signal_seen == 0) return;
    signal(signal_seen, SIG_DFL);
    raise(signal_seen);
}

void cli_kill_with_signal(pid_t group)
{
    group_to_kill = group;
}
