// SPDX-License-Identifier: MIT
//
// Arithmetic on tensors: means, digests, and the search for what is not finite.
#include <mutex>

#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include "bind.hpp"
#include "check.hpp"
#include "convert.hpp"

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

namespace lofi {
namespace {

using Tensors = std::vector<at::Tensor>;

void check_dense(const at::Tensor &tensor)
{
    TORCH_CHECK_VALUE(tensor.is_cpu() && tensor.is_contiguous(),
                      "lofi: the kernels take contiguous tensors on the CPU");
}

// Blocks that keep every thread busy and are too large for the bits to depend on the schedule:
// each element is computed on its own anyway.
constexpr int64_t kGrain = 1 << 16;

// The mean of the rows of `pieces` on a GPU, put on the stream; the weights are the host's.
void cuda_mean(at::Tensor out, const at::Tensor &pieces,
               const std::optional<std::vector<double>> &weights, uintptr_t stream)
{
    TORCH_CHECK_VALUE(pieces.dim() == 2 && pieces.size(1) == out.numel() && pieces.stride(1) == 1 &&
                          out.is_contiguous() && pieces.scalar_type() == out.scalar_type() &&
                          (!weights || weights->size() == static_cast<size_t>(pieces.size(0))),
                      "lofi: a mean on a GPU takes rows like its output, and a weight for each");
    check(lofi_cuda_mean(dtype_of(out.scalar_type()), out.mutable_data_ptr(),
                         pieces.const_data_ptr(), pieces.stride(0) * pieces.element_size(),
                         static_cast<int>(pieces.size(0)), weights ? weights->data() : nullptr,
                         elements_of(out), reinterpret_cast<void *>(stream)));
}

// Integers and booleans are copied from the first input; with a base or other dtypes all are
// floats.
void mean(at::Tensor out, const Tensors &inputs, const std::optional<std::vector<double>> &weights,
          const std::optional<at::Tensor> &base, double alpha, bool raw_weights)
{
    TORCH_CHECK_VALUE(!inputs.empty(), "lofi: a mean needs at least one input");
    TORCH_CHECK_VALUE(!weights || weights->size() == inputs.size(), "lofi: ", inputs.size(),
                      " inputs need as many weights");
    Tensors all = inputs;
    if (base) all.push_back(*base);
    check_dense(out);
    bool alike = !base && !raw_weights;
    std::vector<lofi_dtype> dtypes;
    for (const auto &tensor : all) {
        check_dense(tensor);
        TORCH_CHECK_VALUE(tensor.numel() == out.numel() && tensor.is_complex() == out.is_complex(),
                          "lofi: the inputs of a mean must have the size of its output");
        alike = alike && tensor.scalar_type() == out.scalar_type();
        dtypes.push_back(dtype_of(tensor.scalar_type()));
    }
    lofi_mix mix = LOFI_MIX_INIT;
    mix.out_dtype = dtype_of(out.scalar_type());
    mix.in_dtypes = dtypes.data();
    mix.weights = weights ? weights->data() : nullptr;
    mix.inputs = static_cast<int>(inputs.size());
    mix.base_dtype = dtypes.back();
    mix.alpha = alpha;
    mix.raw_weights = raw_weights;
    std::mutex mutex;
    lofi_status failed = LOFI_OK;
    std::string text;
    const auto at_element = [](const at::Tensor &tensor, int64_t index) {
        return static_cast<const char *>(tensor.const_data_ptr()) +
               index * lofi_dtype_bytes(dtype_of(tensor.scalar_type()));
    };
    at::parallel_for(
        0, static_cast<int64_t>(elements_of(out)), kGrain, [&](int64_t begin, int64_t end) {
            std::vector<const void *> at_begin;
            for (const auto &tensor : all)
                at_begin.push_back(at_element(tensor, begin));
            void *to = const_cast<char *>(at_element(out, begin));
            const auto count = static_cast<size_t>(end - begin);
            lofi_mix part = mix;
            if (base) part.base = at_begin.back();
            const auto status = alike ? lofi_mean(mix.out_dtype, to, at_begin.data(), mix.weights,
                                                  mix.inputs, count)
                                      : lofi_mean_mixed(&part, to, at_begin.data(), count);
            if (status == LOFI_OK) return;
            std::lock_guard<std::mutex> lock(mutex);
            failed = status;
            text = lofi_last_error();
        });
    if (failed != LOFI_OK) raise(failed, text.c_str());
}

py::bytes digest(const at::Tensor &tensor)
{
    check_dense(tensor);
    lofi_digest value;
    {
        py::gil_scoped_release released;
        value = lofi_digest_of(tensor.const_data_ptr(), tensor.nbytes());
    }
    return py::bytes(reinterpret_cast<const char *>(&value), sizeof(value));
}

int64_t find_nonfinite(const at::Tensor &tensor)
{
    check_dense(tensor);
    return lofi_find_nonfinite(dtype_of(tensor.scalar_type()), tensor.const_data_ptr(),
                               elements_of(tensor));
}

const Binding values{[](py::module_ &m) {
    m.attr("CUDA_IS_BUILT") = lofi_cuda_is_built() == 1;
    m.attr("CUDA_MEAN_INPUTS") = LOFI_CUDA_MEAN_INPUTS;
    m.def("mean", &mean, py::arg("out"), py::arg("inputs"), py::arg("weights") = std::nullopt,
          py::arg("base") = std::nullopt, py::arg("alpha") = 1.0, py::arg("raw_weights") = false,
          release_gil());
    m.def("cuda_mean", &cuda_mean, py::arg("out"), py::arg("pieces"), py::arg("weights"),
          py::arg("stream"), release_gil(), "lofi_cuda_mean of lofi.h.");
    m.def("digest", &digest, py::arg("tensor"));
    m.def("find_nonfinite", &find_nonfinite, py::arg("tensor"), release_gil());
}};

} // namespace
} // namespace lofi
