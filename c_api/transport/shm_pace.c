/* SPDX-License-Identifier: MIT */
/*
 * A slot that is written again lies in the cache of the core that has read it. Where the cores
 * share the next level, taking it from there costs nothing: a copy into a slot is as fast as one
 * into private memory. Where they do not (two sockets, two core complexes of a package, a virtual
 * machine whose cores the host has moved apart) each line is asked for across: seen on one machine
 * within a minute, 25 MiB in 3 ms and in 16. Stores past the caches ask for no line. They cost more
 * where caches are shared, because the reader then streams from memory: 5 ms; but they cost that
 * anywhere.
 *
 * The faster way is found by measuring, not read from a description of the machine, which virtual
 * machines make up: now and then a few chunks are written in the other way, and it is kept if it is
 * faster by more than it costs the reader.
 */
#include "transport/shm_pace.h"

#define TRIAL_CHUNKS 2
#define CHUNKS_BEFORE_TRIAL 126
#define FIRST_CHUNKS 8
#define READERS_COST 2 /* of a chunk past the caches, in times of writing it */

static int64_t cost(const struct lofi__shm_pace *pace, int way)
{
    return way == 1 ? READERS_COST * pace->time[1] : pace->time[0];
}

static void begin(struct lofi__shm_pace *pace, int way, int is_trial)
{
    pace->way = way;
    pace->is_trial = is_trial;
    pace->chunks = 0;
}

void lofi__shm_pace_note(struct lofi__shm_pace *pace, int64_t ns, size_t bytes)
{
    int64_t *known = &pace->time[pace->way];
    const int64_t time = (ns << 16) / (int64_t)bytes; /* of 64 KiB */

    /* A mean that forgets; what took very long is a process that lost its core. */
    if (*known == 0 || (pace->is_trial && pace->chunks == 0))
        *known = time;
    else
        *known += ((time < 4 * *known ? time : 4 * *known) - *known) / 4;
    pace->chunks++;
    if (pace->is_trial && pace->chunks == TRIAL_CHUNKS) {
        const int other = !pace->way;
        begin(pace, cost(pace, pace->way) < cost(pace, other) ? pace->way : other, 0);
    } else if (!pace->is_trial &&
               pace->chunks >= (pace->time[1] == 0 ? FIRST_CHUNKS : CHUNKS_BEFORE_TRIAL)) {
        begin(pace, !pace->way, 1);
    }
}
