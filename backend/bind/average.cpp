// SPDX-License-Identifier: MIT
//
// The members of an average, and the pieces in which it is exchanged.
#include <pybind11/stl.h>

#include "bind.hpp"
#include "check.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

std::vector<int> average_members(const std::vector<std::tuple<bool, int64_t, double>> &nodes,
                                 int min_nodes)
{
    std::vector<lofi_node_report> reports;
    for (const auto &[present, nonfinite, weight] : nodes) {
        reports.push_back({present, 0, nonfinite, weight});
    }
    std::vector<int> members(reports.size());
    int count = 0;
    check(lofi_average_members(reports.data(), static_cast<int>(reports.size()), min_nodes,
                               members.data(), &count));
    members.resize(count);
    return members;
}

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
    m.def("average_members", &average_members, py::arg("nodes"), py::arg("min_nodes"));
    m.def("chunks", &chunks, py::arg("total"), py::arg("nodes"), py::arg("local_size"),
          py::arg("chunk"));
}};

} // namespace
} // namespace lofi
