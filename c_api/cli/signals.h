/* SPDX-License-Identifier: MIT */
/*
 * Signals to end, for commands that clean up. The first one is noted, and the command stops where it
 * can, with nothing left behind; then the signal does what it would have done. A second one does so
 * at once.
 */
#ifndef LOFI_CLI_SIGNALS_H
#define LOFI_CLI_SIGNALS_H

#include <sys/types.h>

void cli_catch_signals(void);
int cli_signal(void);         /* the one that came, or 0 */
void cli_end_by_signal(void); /* returns if none came */

/* A group of processes that is killed with a second signal; 0: none. */
void cli_kill_with_signal(pid_t group);

#endif /* LOFI_CLI_SIGNALS_H */
