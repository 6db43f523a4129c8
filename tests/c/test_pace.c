/* SPDX-License-Identifier: MIT */
/* Through the caches or past them: found out from times alone, kept, and found out again. */
#include "test.h"
#include "transport/shm_pace.h"

#define BYTES ((size_t)256 << 10)

/* Writes `chunks` chunks that take so many nanoseconds by way; counts those past the caches. */
static int write_chunks(struct lofi__shm_pace *pace, int chunks, int64_t through, int64_t past)
{
    int streamed = 0;
    for (int i = 0; i < chunks; i++) {
        streamed += pace->way == 1;
        lofi__shm_pace_note(pace, pace->way == 1 ? past : through, BYTES);
    }
    return streamed;
}

int main(void)
{
    struct lofi__shm_pace pace = {0};

    /* Shared caches: both take as long, and streaming costs the reader. Trials are 2 in 128. */
    EXPECT(pace.way == 0);
    int streamed = write_chunks(&pace, 1290, 25000, 25000);
    EXPECT(streamed >= 2 * 10 && streamed <= 2 * 12);
    /* The cores are moved apart: found at the next trial. */
    EXPECT(write_chunks(&pace, 130, 150000, 30000) >= 1);
    EXPECT(write_chunks(&pace, 1280, 150000, 30000) >= 1280 * 125 / 128);
    /* And back. */
    EXPECT(write_chunks(&pace, 130, 25000, 25000) >= 100);
    EXPECT(write_chunks(&pace, 1280, 25000, 25000) <= 2 * 11);
    /* Not quite twice as slow is no reason. */
    EXPECT(write_chunks(&pace, 1280, 47000, 25000) <= 2 * 11);

    /* One chunk whose process lost its core, here and there, changes nothing. */
    memset(&pace, 0, sizeof pace);
    streamed = 0;
    for (int i = 0; i < 1280; i++) {
        streamed += pace.way == 1;
        lofi__shm_pace_note(&pace, i % 50 == 20 ? 4000000 : 25000, BYTES);
    }
    EXPECT(streamed <= 2 * 12);
    /* Sizes do not matter: it is the speed. */
    memset(&pace, 0, sizeof pace);
    streamed = 0;
    for (int i = 0; i < 1280; i++) {
        const size_t bytes = (i % 4 + 1) * BYTES / 4;
        streamed += pace.way == 1;
        lofi__shm_pace_note(&pace, (int64_t)(bytes / 10), bytes);
    }
    EXPECT(streamed <= 2 * 12);
    return test_end();
}
