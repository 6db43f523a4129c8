// SPDX-License-Identifier: MIT
//
// Every difference between the supported releases of torch (2.11 to 2.15), in one place.
//
// 2.12 added suspend, resume and getMemoryStats. 2.14 renamed the single-tensor collectives
// (_allgather_base became all_gather_single, and so on), each old name forwarding to the new one
// and back, and added gather_single, reconfiguration, windows and abort hooks behind macros. 2.15
// added isInitialized and completion hooks without a macro.
#pragma once

#include <torch/version.h>

#define LOFI_TORCH_AT_LEAST(minor)                                                                 \
    (TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= (minor)))

#if !LOFI_TORCH_AT_LEAST(11)
#error "lofi needs torch 2.11 or newer"
#endif

// The name under which a backend overrides, and calls, the single-tensor collectives.
#if LOFI_TORCH_AT_LEAST(14)
#define LOFI_ALL_GATHER_SINGLE all_gather_single
#define LOFI_ALL_GATHER_SINGLE_COALESCED all_gather_single_coalesced
#define LOFI_REDUCE_SCATTER_SINGLE reduce_scatter_single
#define LOFI_REDUCE_SCATTER_SINGLE_COALESCED reduce_scatter_single_coalesced
#define LOFI_ALL_TO_ALL_SINGLE all_to_all_single
#define LOFI_HAS_GATHER_SINGLE 1
#else
#define LOFI_ALL_GATHER_SINGLE _allgather_base
#define LOFI_ALL_GATHER_SINGLE_COALESCED allgather_into_tensor_coalesced
#define LOFI_REDUCE_SCATTER_SINGLE _reduce_scatter_base
#define LOFI_REDUCE_SCATTER_SINGLE_COALESCED reduce_scatter_tensor_coalesced
#define LOFI_ALL_TO_ALL_SINGLE alltoall_base
#endif

// 2.13 took NCCL out of the name of PREMUL_SUM's factor.
#if LOFI_TORCH_AT_LEAST(13)
#define LOFI_PREMUL_SUPPLEMENT c10d::PreMulSumSupplement
#define LOFI_MAKE_PREMUL_SUM c10d::makePreMulSum
#else
#define LOFI_PREMUL_SUPPLEMENT c10d::NCCLPreMulSumSupplement
#define LOFI_MAKE_PREMUL_SUM c10d::makeNCCLPreMulSum
#endif

// Before 2.14.1 NCCL gets the factor of PREMUL_SUM for bfloat16 as the bytes of a float, of which
// it reads the first two (pytorch issue 190745).
#if !LOFI_TORCH_AT_LEAST(14) || (TORCH_VERSION_MINOR == 14 && TORCH_VERSION_PATCH < 1)
#define LOFI_NCCL_READS_HALF_A_FACTOR 1
#endif

#if LOFI_TORCH_AT_LEAST(12)
#define LOFI_HAS_SUSPEND 1
#endif

// The virtuals that took `override` later than 2.11, when they became virtual.
#if LOFI_TORCH_AT_LEAST(14)
#define LOFI_HAS_VIRTUAL_BOUND_DEVICE 1
#define LOFI_HAS_EPHEMERAL_TIMEOUT 1
#endif

// Traces say since 2.12 whether a collective was asynchronous.
#ifdef RECORD_PARAM_COMMS_DATA_WITH_ASYNC_OP
#define LOFI_RECORD_PARAM_COMMS(is_async, ...)                                                     \
    RECORD_PARAM_COMMS_DATA_WITH_ASYNC_OP(__VA_ARGS__, is_async)
#else
#define LOFI_RECORD_PARAM_COMMS(is_async, ...) RECORD_PARAM_COMMS_DATA(__VA_ARGS__)
#endif

// 2.15 exports where the flight recorder is.
#if LOFI_TORCH_AT_LEAST(15)
#define LOFI_HAS_FLIGHT_RECORDER 1
#endif
