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
    options.transport = size > 1 ? "shm" : "self";
    options.rank = rank;
    options.rank_count = size;
    options.timeout_ms = static_cast<int>(std::clamp<int64_t>(timeout.count(), 1, INT_MAX));
    options.name = short_name.c_str();
    options.labels = global_ranks.data();
    lofi_comm *made = nullptr;
    const auto status = lofi_comm_create(&options, store_allgather, &boot, &made);
    if (status == LOFI_OK) return {made, lofi_comm_destroy};
    const std::string why = lofi_last_error();
    if (status == LOFI_UNSUPPORTED) {
        lofi_log(LOFI_LOG_INFO, "%s uses gloo: %s", name.c_str(), why.c_str());
    } else if (status == LOFI_SYSTEM) {
        static std::atomic<bool> warned{false};
        const bool first = rank == 0 && !warned.exchange(true);
        lofi_log(first ? LOFI_LOG_WARN : LOFI_LOG_INFO,
                 "no memory can be shared in %s, so gloo moves its data, more slowly: %s "
                 "(LOFI_SHM=0 asks for gloo, and for no warning)",
                 name.c_str(), why.c_str());
    } else {
        raise(status, why.c_str());
    }
    return nullptr;
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
