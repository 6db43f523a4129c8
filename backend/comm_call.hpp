// SPDX-License-Identifier: MIT
//
// One call on its way to the communicator: its tasks, and what has to live until they are done.
#pragma once

#include <forward_list>

#include <ATen/core/LegacyTypeDispatch.h>

#include "backend_comm.hpp"
#include "tensors.hpp"

namespace lofi {

struct BackendComm::Call {
    c10d::OpType type;
    bool async;
    at::TensorList inputs; // of the user, for those who watch
    c10::SmallVector<lofi_task, 1> tasks;
    TensorLists results;                                        // of the future
    Tensors tensors = {};                                       // what the tasks read and write
    std::forward_list<std::vector<void *>> lists = {};          // of the tasks
    std::vector<std::pair<at::Tensor, at::Tensor>> copies = {}; // to the first from the second

    // To be asked before the results are given away.
    Seen seen(uint64_t sequence) const
    {
        const std::chrono::milliseconds timeout{tasks.front().timeout_ms};
        Seen seen{type, inputs, {}, async, timeout, sequence};
        if (!results.empty()) seen.outputs = seen.gathers() ? inputs : results.front();
        return seen;
    }
    // The elements in their logical order, as gloo's flat copies have them.
    const void *read(const at::Tensor &tensor)
    {
        return keep(packed(tensor)).const_data_ptr();
    }
    // The same, where the outputs may lie over the input. liblofi allows that in one way: the
    // input begins at `own`, its slot of them.
    const void *read(const at::Tensor &tensor, at::ArrayRef<at::Tensor> outputs, const void *own)
    {
        const bool apart =
            tensor.const_data_ptr() == own ||
            std::none_of(outputs.begin(), outputs.end(),
                         [&](const at::Tensor &output) { return overlap(tensor, output); });
        return apart ? read(tensor) : keep(copied(tensor)).data_ptr();
    }
    void *write(const at::Tensor &tensor)
    {
        if (is_plain(tensor)) return keep(tensor).mutable_data_ptr();
        return copied_back(tensor, at::empty(tensor.sizes(), tensor.options()));
    }
    void *update(const at::Tensor &tensor)
    {
        if (is_plain(tensor)) return keep(tensor).mutable_data_ptr();
        return copied_back(tensor, packed(tensor));
    }
    // The elements as they lie in memory.
    void *block(const at::Tensor &tensor)
    {
        if (is_aligned(tensor)) return keep(tensor).mutable_data_ptr();
        return copied_back(tensor, copied(tensor));
    }
    void *const *outputs_of(const Tensors &outputs)
    {
        auto &list = lists.emplace_front();
        for (const auto &output : outputs)
            list.push_back(write(output));
        return list.data();
    }
    const void *const *inputs_of(const Tensors &inputs, const at::Tensor &output, int rank)
    {
        auto &list = lists.emplace_front();
        for (size_t i = 0; i < inputs.size(); ++i) {
            const void *own = static_cast<int>(i) == rank ? output.const_data_ptr() : nullptr;
            list.push_back(const_cast<void *>(read(inputs[i], output, own)));
        }
        return list.data();
    }

  private:
    const at::Tensor &keep(const at::Tensor &tensor)
    {
        return tensors.emplace_back(tensor);
    }
    static at::Tensor packed(const at::Tensor &tensor)
    {
        if (is_plain(tensor)) return tensor;
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        return tensor.clone(at::MemoryFormat::Contiguous);
    }
    static at::Tensor copied(const at::Tensor &tensor)
    {
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        return tensor.clone();
    }
    void *copied_back(const at::Tensor &to, at::Tensor from)
    {
        copies.emplace_back(to, std::move(from));
        return copies.back().second.mutable_data_ptr();
    }
};

} // namespace lofi
