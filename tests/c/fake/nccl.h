/* SPDX-License-Identifier: MIT */
/*
 * NCCL without a GPU, for tests: a libnccl.so.2 on the streams of the fake driver. Ranks are threads.
 *
 *   Progress  All is non-blocking. What a call starts goes on when its communicator is asked how it
 *             is: a collective gets on its stream with the second such question, and a communicator
 *             that is asked for something before it is ready says so and counts it as misuse.
 *   Work      An operation on a stream waits until those of all ranks have been reached, then the
 *             results of all are computed from the last rank to the first. If ranks issued
 *             different calls it never ends, as on a GPU. Pieces that ranks send each other are
 *             copied one after the other, with nothing in between.
 *   One rank  A factor, or ncclAvg, loses elements as in NCCL before 2.29.7.
 *   Abort     Ends what is on streams without a result, and is ncclRemoteError to the other ranks. A
 *             communicator that is aborted or destroyed is freed: whoever still uses it is caught
 *             by a sanitizer.
 *
 * Calls are counted, and made to fail, under their names by the functions of fake.h.
 */
#ifndef LOFI_TESTS_FAKE_NCCL_H
#define LOFI_TESTS_FAKE_NCCL_H

#include "transport/nccl_library.h"

/* All communicators that there are have this error from now on. */
void fake_nccl_break(lofi__nccl_result error);
/* 1: ncclCommFinalize does not come to an end. */
void fake_nccl_hold_finalize(int is_on);

struct fake_nccl_held {
    int comms, ops; /* not given back */
    int misuses;    /* since the beginning */
    int mismatches; /* collectives that did not fit together, since the beginning */
};
struct fake_nccl_held fake_nccl_held(void);

#endif /* LOFI_TESTS_FAKE_NCCL_H */
