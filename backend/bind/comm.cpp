// SPDX-License-Identifier: MIT
//
// The backend of ranks that may share a machine.
#include <chrono>
#include <climits>

#include <torch/csrc/utils/pybind.h>
// chrono.h comes after torch's pybind.h, which sets up the casters of intrusive_ptr.
#include <pybind11/chrono.h>

#include "backend_comm.hpp"
#include "bind.hpp"
#include "check.hpp"
#include "node_store.hpp"
#include "oob_store.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

// The communicator of ranks that share a machine, or null if they do not. Collective; all ranks
// get the same.
std::shared_ptr<lofi_comm> make_comm(const c10::intrusive_ptr<c10d::Store> &store, int rank,
                                     const std::vector<int> &global_ranks,
                                     std::chrono::milliseconds timeout, const std::string &name)
{
    const int size = static_cast<int>(global_ranks.size());
    StoreBootstrap boot{store,
                        rank,
                        size,
                        timeout,
                        "lofi/comm",
                        "to share memory in " + name,
                        "check that they run, and that all ranks make the same groups",
                        global_ranks};
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    const std::string short_name = name.substr(0, 63);
    options.rank = rank;
    options.rank_count = size;
    options.timeout_ms = static_cast<int>(std::clamp<int64_t>(timeout.count(), 1, INT_MAX));
    options.name = short_name.c_str();
    options.labels = global_ranks.data();
    lofi_comm *made = nullptr;
    check(lofi_comm_create_local(&options, store_allgather, &boot, "gloo", &made));
    return {made, lofi_comm_destroy};
}

c10::intrusive_ptr<c10d::Backend> with_comm(const c10::intrusive_ptr<c10d::Backend> &gloo,
                                            const c10::intrusive_ptr<c10d::Store> &store,
                                            const std::vector<int> &global_ranks,
                                            std::chrono::milliseconds timeout,
                                            const std::string &name)
{
    auto comm = make_comm(store, gloo->getRank(), global_ranks, timeout, name);
    if (!comm) return gloo;
    return c10::make_intrusive<BackendComm>(std::move(comm), gloo);
}

const Binding comm{[](py::module_ &m) {
    py::class_<BackendComm, c10d::Backend, c10::intrusive_ptr<BackendComm>>(m, "BackendComm")
        .def_property_readonly("transport", &BackendComm::transport);
    py::class_<NodeStore, c10d::Store, c10::intrusive_ptr<NodeStore>>(m, "NodeStore")
        .def(py::init<c10::intrusive_ptr<c10d::Store>>(), py::arg("below"));
    m.def("with_comm", &with_comm, py::arg("gloo"), py::arg("store"), py::arg("global_ranks"),
          py::arg("timeout"), py::arg("name"), py::call_guard<py::gil_scoped_release>(),
          "The backend to use for the ranks of `gloo`: with a communicator of liblofi's where they "
          "share a machine, else `gloo` itself. Collective.");
}};

} // namespace
} // namespace lofi
