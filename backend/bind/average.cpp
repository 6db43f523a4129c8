// SPDX-License-Identifier: MIT
//
// The plan of an exchange, and which tensors differ: lofi/exchange.h and lofi/average.h.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind.hpp"
#include "check.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

lofi_exchange_shape shape_of(uint64_t element_bytes, int nodes, int local_size, int slots)
{
    lofi_exchange_shape shape = LOFI_EXCHANGE_SHAPE_INIT;
    shape.element_bytes = element_bytes;
    shape.nodes = nodes;
    shape.local_size = local_size;
    shape.slots = slots;
    return shape;
}

std::vector<lofi_exchange_step> exchange_plan(uint64_t count, uint64_t element_bytes, int nodes,
                                              int local_size, int slots, uint64_t chunk_count,
                                              bool gives)
{
    auto shape = shape_of(element_bytes, nodes, local_size, slots);
    shape.count = count;
    shape.chunk_count = chunk_count;
    shape.gives = gives;
    // One step past the end is an error that says what is wrong with a bad shape.
    std::vector<lofi_exchange_step> steps(std::max<uint64_t>(lofi_exchange_steps(&shape), 1));
    for (uint64_t index = 0; index < steps.size(); ++index)
        check(lofi_exchange_step_at(&shape, index, &steps[index]));
    return steps;
}

uint64_t exchange_fit(uint64_t element_bytes, int nodes, int local_size, int slots,
                      uint64_t scratch_bytes, uint64_t pieces_beside)
{
    const auto shape = shape_of(element_bytes, nodes, local_size, slots);
    const uint64_t count = lofi_exchange_fit(&shape, scratch_bytes, pieces_beside);
    if (count == 0) raise(LOFI_INVALID, lofi_last_error());
    return count;
}

// One answer for each tensor: 0, or a sum of DIFFERS_*. The bytes of `digests` lie rank after rank.
std::vector<int> differences(const std::string &digests, int nodes, int node_size,
                             const std::vector<bool> &is_shard)
{
    const size_t tensors = is_shard.size();
    if (tensors == 0) return {};
    if (nodes < 1 || node_size < 1 ||
        digests.size() != sizeof(lofi_digest) * tensors * static_cast<size_t>(nodes) *
                              static_cast<size_t>(node_size))
        throw py::value_error("lofi: there has to be a digest of each tensor of each rank");
    std::vector<lofi_digest> table(digests.size() / sizeof(lofi_digest));
    std::memcpy(table.data(), digests.data(), digests.size());
    const std::vector<unsigned char> shards(is_shard.begin(), is_shard.end());
    std::vector<unsigned char> differs(tensors);
    check(lofi_differences(table.data(), nodes, node_size, tensors, shards.data(), differs.data()));
    return {differs.begin(), differs.end()};
}

const Binding average{[](py::module_ &m) {
    m.attr("EXCHANGE_GIVE") = static_cast<int>(LOFI_EXCHANGE_GIVE);
    m.attr("EXCHANGE_COMBINE") = static_cast<int>(LOFI_EXCHANGE_COMBINE);
    m.attr("EXCHANGE_SHARE") = static_cast<int>(LOFI_EXCHANGE_SHARE);
    m.attr("DIFFERS_BETWEEN") = LOFI_DIFFERS_BETWEEN;
    m.attr("DIFFERS_INSIDE") = LOFI_DIFFERS_INSIDE;
    py::class_<lofi_exchange_step>(m, "ExchangeStep")
        .def_property_readonly("kind",
                               [](const lofi_exchange_step &s) { return static_cast<int>(s.kind); })
        .def_readonly("slot", &lofi_exchange_step::slot)
        .def_readonly("chunk", &lofi_exchange_step::chunk)
        .def_readonly("begin", &lofi_exchange_step::begin)
        .def_readonly("count", &lofi_exchange_step::count)
        .def_readonly("piece_count", &lofi_exchange_step::piece_count)
        .def_readonly("sent_bytes", &lofi_exchange_step::sent_bytes);
    m.def("exchange_plan", &exchange_plan, py::arg("count"), py::arg("element_bytes"),
          py::arg("nodes"), py::arg("local_size"), py::arg("slots"), py::arg("chunk_count"),
          py::arg("gives"));
    m.def("exchange_fit", &exchange_fit, py::arg("element_bytes"), py::arg("nodes"),
          py::arg("local_size"), py::arg("slots"), py::arg("scratch_bytes"),
          py::arg("pieces_beside"));
    m.def("differences", &differences, py::arg("digests"), py::arg("nodes"), py::arg("node_size"),
          py::arg("is_shard"));
}};

} // namespace
} // namespace lofi
