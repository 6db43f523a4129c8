/* SPDX-License-Identifier: MIT */
#include "comm/comm.h"

lofi_status lofi__comm_check_process(const lofi_comm *comm)
{
    if (comm->generation == lofi__fork_generation()) return LOFI_OK;
    lofi_set_error("this communicator is that of the parent process: a forked child can't use it; "
                   "make one of its own, or fork before it is made");
    return LOFI_STATE;
}
