/* SPDX-License-Identifier: MIT */
/* The average's memory where a transport brings none of its own. */
#ifndef LOFI_AVERAGE_HOST_MEMORY_H
#define LOFI_AVERAGE_HOST_MEMORY_H

#include "transport/transport.h"

extern const struct lofi__memory lofi__host_memory; /* does not read `state` */

#endif /* LOFI_AVERAGE_HOST_MEMORY_H */
