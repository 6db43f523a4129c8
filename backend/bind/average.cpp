// SPDX-License-Identifier: MIT
//
// The chunks in which an average is exchanged.
#include <pybind11/stl.h>

#include "bind.hpp"
#include "check.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> chunks(uint64_t total, int nodes,
                                                             int local_size, uint64_t chunk)
{
    std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> all;
    const uint64_t number = lofi_chunk_total(total, nodes, local_size, chunk);
    for (uint64_t index = 0; index < number; ++index) {
        lofi_chunk at{};
        check(lofi_chunk_at(total, nodes, local_size, chunk, index, &at));
        all.emplace_back(at.begin, at.count, at.piece_count);
    }
    return all;
}

const Binding average{[](py::module_ &m) {
    m.def("chunks", &chunks, py::arg("total"), py::arg("nodes"), py::arg("local_size"),
          py::arg("chunk"));
}};

} // namespace
} // namespace lofi
