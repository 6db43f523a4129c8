/* SPDX-License-Identifier: MIT */
#ifndef LOFI_TRANSPORT_CLOCK_H
#define LOFI_TRANSPORT_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline int64_t lofi__now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline int64_t lofi__after_ms(int timeout_ms)
{
    return lofi__now_ns() + INT64_C(1000000) * timeout_ms;
}

#endif /* LOFI_TRANSPORT_CLOCK_H */
