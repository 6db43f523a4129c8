// SPDX-License-Identifier: MIT
//
// torch's reduce operations, dtypes and tensors as liblofi spells them: one table each.
#pragma once

#include <optional>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include "lofi.h"

namespace lofi {

inline lofi_op op_of(const c10d::ReduceOp &op)
{
    switch (op.op_) {
    case c10d::ReduceOp::SUM:
        return LOFI_SUM;
    case c10d::ReduceOp::AVG:
        return LOFI_AVG;
    case c10d::ReduceOp::PRODUCT:
        return LOFI_PRODUCT;
    case c10d::ReduceOp::MIN:
        return LOFI_MIN;
    case c10d::ReduceOp::MAX:
        return LOFI_MAX;
    case c10d::ReduceOp::BAND:
        return LOFI_BAND;
    case c10d::ReduceOp::BOR:
        return LOFI_BOR;
    case c10d::ReduceOp::BXOR:
        return LOFI_BXOR;
    case c10d::ReduceOp::PREMUL_SUM:
        return LOFI_PREMUL_SUM;
    default:
        return LOFI_OP_COUNT; // liblofi refuses it by name
    }
}

// Integers and booleans are bytes to an average: they are copied, never computed with.
inline lofi_dtype dtype_of(at::ScalarType type)
{
    switch (type) {
    case at::kDouble:
    case at::kComplexDouble:
        return LOFI_F64;
    case at::kFloat:
    case at::kComplexFloat:
        return LOFI_F32;
    case at::kHalf:
    case at::kComplexHalf:
        return LOFI_F16;
    case at::kBFloat16:
        return LOFI_BF16;
    case at::kFloat8_e4m3fn:
        return LOFI_F8_E4M3;
    case at::kFloat8_e5m2:
        return LOFI_F8_E5M2;
    default:
        TORCH_CHECK_VALUE(at::isIntegralType(type, /*includeBool=*/true), "lofi: tensors of ", type,
                          " can't be averaged; convert them to bfloat16 or wider first");
        return LOFI_BYTES;
    }
}

// The type by which liblofi reduces a tensor: those that gloo reduces too. gloo adds the bytes of
// booleans, and so does this: true + true is a 2.
inline std::optional<lofi_dtype> arithmetic_of(at::ScalarType type)
{
    switch (type) {
    case at::kDouble:
        return LOFI_F64;
    case at::kFloat:
        return LOFI_F32;
    case at::kHalf:
        return LOFI_F16;
    case at::kBFloat16:
        return LOFI_BF16;
    case at::kChar:
        return LOFI_I8;
    case at::kByte:
    case at::kBool:
        return LOFI_U8;
    case at::kInt:
        return LOFI_I32;
    case at::kLong:
        return LOFI_I64;
    default:
        return std::nullopt;
    }
}

// How many elements of dtype_of(type) the tensor holds: complex numbers are pairs.
inline size_t elements_of(const at::Tensor &tensor)
{
    return tensor.nbytes() / lofi_dtype_bytes(dtype_of(tensor.scalar_type()));
}

inline at::Device device_of(const std::vector<at::Tensor> &tensors)
{
    return tensors.empty() ? at::Device(at::kCPU) : tensors.front().device();
}

inline uint64_t bytes_of(const std::vector<at::Tensor> &tensors)
{
    uint64_t bytes = 0;
    for (const auto &tensor : tensors) {
        if (tensor.layout() == at::kStrided) bytes += tensor.nbytes();
    }
    return bytes;
}

} // namespace lofi
