/* SPDX-License-Identifier: MIT */
/* Version and build facts at run time: what is loaded, not what a caller was compiled against. */
#include "lofi.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

#define VERSION TEXT(LOFI_VERSION_MAJOR) "." TEXT(LOFI_VERSION_MINOR) "." TEXT(LOFI_VERSION_PATCH)

#if defined(__clang__)
#define COMPILER                                                                                   \
    "clang " TEXT(__clang_major__) "." TEXT(__clang_minor__) "." TEXT(__clang_patchlevel__)
#elif defined(__GNUC__)
#define COMPILER "gcc " TEXT(__GNUC__) "." TEXT(__GNUC_MINOR__) "." TEXT(__GNUC_PATCHLEVEL__)
#else
#define COMPILER "unknown compiler"
#endif

#if defined(__x86_64__)
#define ARCHITECTURE "x86_64"
#elif defined(__aarch64__)
#define ARCHITECTURE "aarch64"
#elif defined(__powerpc64__)
#define ARCHITECTURE "ppc64"
#elif defined(__riscv)
#define ARCHITECTURE "riscv"
#else
#define ARCHITECTURE "unknown architecture"
#endif

int lofi_version(void)
{
    return LOFI_VERSION_MAJOR * 10000 + LOFI_VERSION_MINOR * 100 + LOFI_VERSION_PATCH;
}

const char *lofi_build_info(void)
{
    return VERSION " (" COMPILER ", " ARCHITECTURE ")";
}
