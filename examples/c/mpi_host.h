/* SPDX-License-Identifier: MIT */
/*
 * What an embedding program owes liblofi, over MPI: the allgather with which ranks find each other,
 * and the other movers of bytes of the transport "host".
 *
 * lofi.h asks for a deadline. A blocking call of MPI has none, so these start the nonblocking one
 * and watch it. MPI can't take such a collective back: after an error its buffers stay in use, and
 * the program has to end by MPI_Abort.
 */
#ifndef MPI_HOST_H
#define MPI_HOST_H

#include <lofi.h>
#include <mpi.h>

struct mpi_host {
    MPI_Comm comm;
    int rank, count;
    int timeout_ms;
    uint64_t sent_bytes; /* payload from this rank to others: what any algorithm must send */
};

/* Collective over `parent`: ranks of the same `color` make a communicator, in the order of their
 * ranks in `parent`. */
lofi_status mpi_host_create(MPI_Comm parent, int color, int timeout_ms, struct mpi_host *out);
void mpi_host_destroy(struct mpi_host *host);

/* A lofi_allgather_fn, with which the ranks also find each other; `ctx` is the struct mpi_host. */
lofi_status mpi_host_all_gather(void *ctx, const void *mine, size_t bytes, void *all);

/* For lofi_comm_options.host: they borrow `host`. */
lofi_host_functions mpi_host_functions(struct mpi_host *host);

#endif /* MPI_HOST_H */
