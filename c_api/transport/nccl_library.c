/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "transport/nccl_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libnccl.so.2"

static struct lofi__nccl_library table;
static char why[512]; /* "": the table is filled */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const struct {
    const char *symbol;
    size_t offset;
} entries[] = {
#define ENTRY(name)                                                                                \
    {                                                                                              \
        "nccl" #name, offsetof(struct lofi__nccl_library, name)                                    \
    }
    ENTRY(GetErrorString),
    ENTRY(GetLastError),
    ENTRY(GetUniqueId),
    ENTRY(CommInitRankConfig),
    ENTRY(CommSplit),
    ENTRY(CommFinalize),
    ENTRY(CommDestroy),
    ENTRY(CommAbort),
    ENTRY(CommGetAsyncError),
    ENTRY(CommCount),
    ENTRY(CommUserRank),
    ENTRY(RedOpCreatePreMulSum),
    ENTRY(RedOpDestroy),
    ENTRY(AllReduce),
    ENTRY(Reduce),
    ENTRY(Broadcast),
    ENTRY(AllGather),
    ENTRY(ReduceScatter),
    ENTRY(Send),
    ENTRY(Recv),
    ENTRY(GroupStart),
    ENTRY(GroupEnd),
#undef ENTRY
};

static void load(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL); /* stays: it has threads */

    if (library == NULL) {
        const char *error = dlerror();
        snprintf(why, sizeof why,
                 "no NCCL: " LIBRARY " can't be used: %s (put its folder into LD_LIBRARY_PATH)",
                 error != NULL ? error : "unknown error");
        return;
    }
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        void *symbol = dlsym(library, entries[i].symbol);
        if (symbol == NULL) {
            snprintf(why, sizeof why, LIBRARY " has no %s: NCCL 2.18 or newer is needed",
                     entries[i].symbol);
            return;
        }
        memcpy((char *)&table + entries[i].offset, &symbol, sizeof symbol);
    }
}

lofi_status lofi__nccl_library_get(const struct lofi__nccl_library **library)
{
    pthread_once(&once, load);
    *library = &table;
    if (why[0] == '\0') return LOFI_OK;
    lofi_set_error("%s", why);
    return LOFI_UNSUPPORTED;
}
