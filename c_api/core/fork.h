/* SPDX-License-Identifier: MIT */
/* Tells a process from its forked children, without a system call for each question. */
#ifndef LOFI_CORE_FORK_H
#define LOFI_CORE_FORK_H

/* A number that a fork() changes in the child: what was made under another one is the parent's. */
unsigned lofi__fork_generation(void);

#endif /* LOFI_CORE_FORK_H */
