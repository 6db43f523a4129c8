/* SPDX-License-Identifier: MIT */
/* How slots are written: through the caches, or past them. */
#ifndef LOFI_TRANSPORT_SHM_PACE_H
#define LOFI_TRANSPORT_SHM_PACE_H

#include "transport/shm_wait.h"

/* Tells how long it took to write `bytes` in the way of `pace`, and chooses the next one's. */
void lofi__shm_pace_note(struct lofi__shm_pace *pace, int64_t ns, size_t bytes);

#endif /* LOFI_TRANSPORT_SHM_PACE_H */
