/* SPDX-License-Identifier: MIT */
#define _POSIX_C_SOURCE 200809L
#include "mpi_host.h"

#include <limits.h>
#include <sched.h>

/* PEER_LOST, since a collective of MPI fails for want of another rank. It must not be SYSTEM, by
 * which lofi_comm_create says that there is no memory to share. */
static lofi_status failed(const struct mpi_host *host, const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;

    MPI_Error_string(code, text, &length);
    lofi_set_error("%s failed on rank %d of %d: %s", what, host->rank, host->count, text);
    return LOFI_PEER_LOST;
}

static lofi_status finish(const struct mpi_host *host, const char *what, int code,
                          MPI_Request *request)
{
    const double until = MPI_Wtime() + 1e-3 * host->timeout_ms;
    int done = 0;

    if (code == MPI_SUCCESS) code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    while (code == MPI_SUCCESS && !done) {
        if (MPI_Wtime() > until) {
            lofi_set_error("%s: Timed out waiting: rank %d of %d has waited %d ms for the others",
                           what, host->rank, host->count, host->timeout_ms);
            return LOFI_TIMED_OUT;
        }
        sched_yield(); /* there may be more ranks than cores */
        code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    }
    return code == MPI_SUCCESS ? LOFI_OK : failed(host, what, code);
}

/* Counts are ints in MPI. liblofi hands over small chunks, so a larger one is refused, on all ranks
 * alike: in pieces it would have to be put together again. */
static lofi_status check_count(const char *what, size_t bytes)
{
    if (bytes <= INT_MAX) return LOFI_OK;
    lofi_set_error("%s of %zu bytes a rank: this program hands MPI at most %d", what, bytes,
                   INT_MAX);
    return LOFI_INVALID;
}

lofi_status mpi_host_all_gather(void *ctx, const void *mine, size_t bytes, void *all)
{
    struct mpi_host *host = ctx;
    MPI_Request request = MPI_REQUEST_NULL;
    lofi_status st = check_count("MPI_Iallgather", bytes);

    if (st != LOFI_OK) return st;
    int code =
        MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, host->comm, &request);
    host->sent_bytes += (uint64_t)(host->count - 1) * bytes;
    return finish(host, "MPI_Iallgather", code, &request);
}

static lofi_status all_to_all(void *ctx, const void *in, size_t bytes, void *out)
{
    struct mpi_host *host = ctx;
    MPI_Request request = MPI_REQUEST_NULL;
    lofi_status st = check_count("MPI_Ialltoall", bytes);

    if (st != LOFI_OK) return st;
    int code =
        MPI_Ialltoall(in, (int)bytes, MPI_BYTE, out, (int)bytes, MPI_BYTE, host->comm, &request);
    host->sent_bytes += (uint64_t)(host->count - 1) * bytes;
    return finish(host, "MPI_Ialltoall", code, &request);
}

/* liblofi hands over a broadcast whole: it goes in pieces that an int can count. */
static lofi_status broadcast(void *ctx, void *data, size_t bytes, int root)
{
    struct mpi_host *host = ctx;
    lofi_status st = LOFI_OK;

    if (host->rank == root) host->sent_bytes += (uint64_t)(host->count - 1) * bytes;
    for (char *piece = data; bytes > 0 && st == LOFI_OK;) {
        MPI_Request request = MPI_REQUEST_NULL;
        const size_t size = bytes < INT_MAX ? bytes : INT_MAX;
        int code = MPI_Ibcast(piece, (int)size, MPI_BYTE, root, host->comm, &request);
        st = finish(host, "MPI_Ibcast", code, &request);
        piece += size;
        bytes -= size;
    }
    return st;
}

lofi_host_functions mpi_host_functions(struct mpi_host *host)
{
    lofi_host_functions functions = LOFI_HOST_FUNCTIONS_INIT;

    functions.all_gather = mpi_host_all_gather;
    functions.all_to_all = all_to_all;
    functions.broadcast = broadcast;
    functions.ctx = host;
    return functions;
}

lofi_status mpi_host_create(MPI_Comm parent, int color, int timeout_ms, struct mpi_host *out)
{
    struct mpi_host host = {.comm = MPI_COMM_NULL, .timeout_ms = timeout_ms};

    MPI_Comm_rank(parent, &host.rank);
    MPI_Comm_size(parent, &host.count);
    int code = MPI_Comm_split(parent, color, host.rank, &host.comm);
    /* By default MPI ends the program itself, without lofi's sentence. */
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(host.comm, MPI_ERRORS_RETURN);
    if (code == MPI_SUCCESS) code = MPI_Comm_rank(host.comm, &host.rank);
    if (code == MPI_SUCCESS) code = MPI_Comm_size(host.comm, &host.count);
    if (code != MPI_SUCCESS) return failed(&host, "MPI_Comm_split", code);
    *out = host;
    return LOFI_OK;
}

void mpi_host_destroy(struct mpi_host *host)
{
    if (host->comm != MPI_COMM_NULL) MPI_Comm_free(&host->comm);
}
