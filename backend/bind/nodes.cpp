// SPDX-License-Identifier: MIT
//
// Topologies and groups say which rank is in which node.
#include <chrono>

#include <torch/csrc/utils/pybind.h>
// chrono.h comes after torch's pybind.h, which sets up the casters of intrusive_ptr.
#include <pybind11/chrono.h>

#include "bind.hpp"
#include "check.hpp"
#include "nodes.hpp"
#include "oob_store.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

Topology make_topology(const c10::intrusive_ptr<c10d::Store> &store, int rank, int world_size,
                       int node_size, const std::string &settings, const std::string &problem,
                       std::chrono::milliseconds timeout)
{
    StoreBootstrap boot{store,
                        rank,
                        world_size,
                        timeout,
                        "lofi/facts",
                        "at start",
                        "check that every process was started, with the same WORLD_SIZE",
                        {}};
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    options.rank = rank;
    options.world_size = world_size;
    options.node_size = node_size;
    options.settings = settings.c_str();
    options.problem = problem.empty() ? nullptr : problem.c_str();
    lofi_topology *made = nullptr;
    check(lofi_topology_create(&options, store_allgather, &boot, &made));
    return Topology(made);
}

Group make_group(const Topology &topology, const std::vector<int> &global_ranks)
{
    lofi_group *made = nullptr;
    check(lofi_group_create(topology.handle.get(),
                            global_ranks.empty() ? nullptr : global_ranks.data(),
                            static_cast<int>(global_ranks.size()), &made));
    return Group(made);
}

const Binding nodes{[](py::module_ &m) {
    py::class_<Topology>(m, "Topology")
        .def(py::init(&make_topology), py::arg("store"), py::arg("rank"), py::arg("world_size"),
             py::arg("node_size"), py::arg("settings"), py::arg("problem"), py::arg("timeout"),
             py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("rank",
                               [](const Topology &t) { return lofi_topology_rank(t.handle.get()); })
        .def_property_readonly(
            "world_size",
            [](const Topology &t) { return lofi_topology_world_size(t.handle.get()); })
        .def_property_readonly(
            "node_size", [](const Topology &t) { return lofi_topology_node_size(t.handle.get()); })
        .def_property_readonly(
            "node_count",
            [](const Topology &t) { return lofi_topology_node_count(t.handle.get()); })
        .def_property_readonly(
            "source", [](const Topology &t) { return lofi_topology_source(t.handle.get()); })
        .def_property_readonly("node", [](const Topology &t) {
            return lofi_topology_node_of(t.handle.get(), lofi_topology_rank(t.handle.get()));
        });

    py::class_<Group>(m, "Group")
        .def(py::init(&make_group), py::arg("topology"), py::arg("global_ranks"))
        .def_property_readonly("size", [](const Group &g) { return lofi_group_size(g.get()); })
        .def_property_readonly("rank", [](const Group &g) { return lofi_group_rank(g.get()); })
        .def_property_readonly("node_count",
                               [](const Group &g) { return lofi_group_node_count(g.get()); })
        .def_property_readonly("local_size",
                               [](const Group &g) { return lofi_group_local_size(g.get()); })
        .def_property_readonly("is_even",
                               [](const Group &g) { return lofi_group_is_even(g.get()) == 1; })
        .def("global_rank",
             [](const Group &g, int r) { return lofi_group_global_rank(g.get(), g.member(r)); })
        .def("place", [](const Group &g, int r) { return lofi_group_place(g.get(), g.member(r)); })
        .def("node_of",
             [](const Group &g, int r) { return lofi_group_node_of(g.get(), g.member(r)); })
        .def("node_number",
             [](const Group &g, int i) { return lofi_group_node_number(g.get(), i); })
        .def("member", [](const Group &g, int node, int place) {
            return lofi_group_member(g.get(), node, place);
        });
}};

} // namespace
} // namespace lofi
