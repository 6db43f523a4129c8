/* SPDX-License-Identifier: MIT */
/* Names of enum values, as torch.distributed spells them. */
#include "lofi.h"

static const char *const collective_names[LOFI_COLLECTIVE_COUNT] = {
    [LOFI_ALL_REDUCE] = "all_reduce",
    [LOFI_REDUCE] = "reduce",
    [LOFI_BROADCAST] = "broadcast",
    [LOFI_ALL_GATHER] = "all_gather",
    [LOFI_GATHER] = "gather",
    [LOFI_SCATTER] = "scatter",
    [LOFI_REDUCE_SCATTER] = "reduce_scatter",
    [LOFI_ALL_TO_ALL] = "all_to_all",
    [LOFI_BARRIER] = "barrier",
    [LOFI_SEND] = "send",
    [LOFI_RECV] = "recv",
    [LOFI_RECV_ANY] = "recv_any_source",
};

static const char *const op_names[LOFI_OP_COUNT] = {
    [LOFI_SUM] = "SUM", [LOFI_AVG] = "AVG",   [LOFI_PRODUCT] = "PRODUCT",
    [LOFI_MIN] = "MIN", [LOFI_MAX] = "MAX",   [LOFI_BAND] = "BAND",
    [LOFI_BOR] = "BOR", [LOFI_BXOR] = "BXOR", [LOFI_PREMUL_SUM] = "PREMUL_SUM",
};

static const char *const purpose_names[LOFI_PURPOSE_COUNT] = {
    [LOFI_FOR_SETUP] = "setup",           [LOFI_FOR_TRAINING] = "training",
    [LOFI_FOR_EVALUATION] = "evaluation", [LOFI_FOR_AVERAGE] = "average",
    [LOFI_FOR_BYPASS] = "bypass",         [LOFI_FOR_DONE] = "done",
};

static const char *const phase_names[] = {"setup", "train", "average", "done", "evaluate"};

const char *lofi_collective_name(lofi_collective collective)
{
    int i = (int)collective;
    return i >= 0 && i < LOFI_COLLECTIVE_COUNT ? collective_names[i] : "unknown";
}

const char *lofi_op_name(lofi_op op)
{
    int i = (int)op;
    return i >= 0 && i < LOFI_OP_COUNT ? op_names[i] : "unknown";
}

const char *lofi_phase_name(lofi_phase phase)
{
    int i = (int)phase;
    return i >= 0 && i <= LOFI_PHASE_EVALUATE ? phase_names[i] : "unknown";
}

const char *lofi_purpose_name(lofi_purpose purpose)
{
    int i = (int)purpose;
    return i >= 0 && i < LOFI_PURPOSE_COUNT ? purpose_names[i] : "unknown";
}
