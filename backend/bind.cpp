// SPDX-License-Identifier: MIT
//
// The Python module lofi._C: bindings only.
#include <chrono>
#include <climits>

#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>
// chrono.h after torch's pybind.h, which sets up the casters of intrusive_ptr.
#include <pybind11/chrono.h>

#include "backend_comm.hpp"
#include "backend_lofi.hpp"
#include "bind/bind.hpp"
#include "check.hpp"
#include "convert.hpp"
#include "node_store.hpp"
#include "oob_store.hpp"
#include "session.hpp"

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

namespace lofi {
namespace {

struct Topology {
    explicit Topology(lofi_topology *made) : handle(made, lofi_topology_destroy)
    {
    }
    std::shared_ptr<lofi_topology> handle;
};

struct Group {
    explicit Group(lofi_group *made) : handle(made, lofi_group_destroy)
    {
    }
    std::shared_ptr<lofi_group> handle;
    const lofi_group *get() const
    {
        return handle.get();
    }
    int member(int rank) const
    {
        TORCH_CHECK_INDEX(rank >= 0 && rank < lofi_group_size(get()), "lofi: the group has ",
                          lofi_group_size(get()), " members, there is no rank ", rank);
        return rank;
    }
};

// An InnerSource written in Python (lofi._backend.Source).
class PySource : public InnerSource {
  public:
    explicit PySource(py::object source) : source_(std::move(source))
    {
    }
    ~PySource() override
    {
        // A group that outlives the interpreter leaves its Python half to the process's end.
        if (!Py_IsInitialized()) {
            source_.release();
            return;
        }
        py::gil_scoped_acquire gil;
        source_ = py::object();
    }
    c10::intrusive_ptr<c10d::Backend> make(c10::DeviceType device, Span span) override
    {
        py::gil_scoped_acquire gil;
        const auto type = c10::DeviceTypeName(device, /*lower_case=*/true);
        return source_.attr("make")(type, name_of(span)).cast<c10::intrusive_ptr<c10d::Backend>>();
    }
    c10::intrusive_ptr<c10d::Backend>
    split(const c10::intrusive_ptr<c10d::Store> &store, const std::vector<int> &global_ranks,
          const c10::intrusive_ptr<c10d::Backend::Options> &options,
          const c10::intrusive_ptr<c10d::Backend> &parent) override
    {
        py::gil_scoped_acquire gil;
        return source_
            .attr("split")(store, global_ranks, options->timeout, options->group_name, parent)
            .cast<c10::intrusive_ptr<c10d::Backend>>();
    }
    void connect(const c10::intrusive_ptr<c10d::Backend> &backend, Span span,
                 at::Device device) override
    {
        py::gil_scoped_acquire gil;
        source_.attr("connect")(backend, name_of(span), device);
    }
    void leave_split(const c10::intrusive_ptr<c10d::Backend> &parent, at::Device device) override
    {
        py::gil_scoped_acquire gil;
        source_.attr("leave_split")(parent, device);
    }
    void before_implicit(const std::string &collective) override
    {
        py::gil_scoped_acquire gil;
        source_.attr("before_implicit")(collective);
    }
    void drop(std::vector<c10::intrusive_ptr<c10d::Backend>> backends) override
    {
        // gloo's threads need the GIL to let go of a tensor that Python knows, and hold gloo's
        // lock meanwhile: whoever ends the backend must not hold the GIL.
        std::optional<py::gil_scoped_release> released;
        if (Py_IsInitialized() && PyGILState_Check()) released.emplace();
        backends.clear();
    }

    py::object object() const
    {
        return source_;
    }

  private:
    py::object source_;
};

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

c10::intrusive_ptr<BackendLofi> make_backend(const Group &group, py::object source,
                                             std::chrono::milliseconds timeout,
                                             const std::string &name, bool strict,
                                             bool coalesces_cuda)
{
    return c10::make_intrusive<BackendLofi>(
        BackendLofi::Config{group.handle, std::make_unique<PySource>(std::move(source)), timeout,
                            name, strict, coalesces_cuda});
}

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

py::dict stats()
{
    lofi_stats stats{};
    stats.size = sizeof(stats);
    check(lofi_session_get_stats(session(), &stats));
    static const std::array<const char *, LOFI_PURPOSE_COUNT> purposes{
        "setup", "training", "evaluation", "average", "bypass", "done"};
    py::dict world, node, bytes;
    for (size_t i = 0; i < purposes.size(); ++i) {
        world[purposes[i]] = stats.collectives[LOFI_SCOPE_WORLD][i];
        node[purposes[i]] = stats.collectives[LOFI_SCOPE_NODE][i];
        bytes[purposes[i]] = stats.cross_bytes[i];
    }
    py::dict collectives, result;
    collectives["world"] = world;
    collectives["node"] = node;
    result["phase"] = lofi_phase_name(stats.phase);
    result["collectives"] = collectives;
    result["cross_bytes"] = bytes;
    return result;
}

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

// Integers and booleans are copied from the first input; with a base or other dtypes all are floats.
void mean(at::Tensor out, const Tensors &inputs, const std::optional<std::vector<double>> &weights,
          const std::optional<at::Tensor> &base, double alpha)
{
    TORCH_CHECK_VALUE(!inputs.empty(), "lofi: a mean needs at least one input");
    TORCH_CHECK_VALUE(!weights || weights->size() == inputs.size(), "lofi: ", inputs.size(),
                      " inputs need as many weights");
    Tensors all = inputs;
    if (base) all.push_back(*base);
    check_dense(out);
    bool alike = !base;
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

// Asks now and then only: where other threads run Python, each wait for the GIL takes milliseconds.
class SignalCheck {
  public:
    static int run(void *ctx, uint64_t, uint64_t)
    {
        return static_cast<SignalCheck *>(ctx)->is_due() && is_raised();
    }

  private:
    using Clock = std::chrono::steady_clock;

    static bool is_raised()
    {
        py::gil_scoped_acquire acquired;
        return PyErr_CheckSignals() != 0;
    }

    bool is_due()
    {
        if (Clock::now() - last_ < std::chrono::milliseconds(50)) return false;
        last_ = Clock::now();
        return true;
    }

    Clock::time_point last_ = Clock::now();
};

void average_files(const std::vector<std::string> &inputs, const std::string &out,
                   const std::optional<std::vector<double>> &weights,
                   const std::optional<std::string> &base, double alpha,
                   const std::optional<std::string> &only, const std::optional<std::string> &skip,
                   const std::optional<std::string> &dtype, bool integers_first, bool force)
{
    std::vector<const char *> paths;
    for (const auto &input : inputs)
        paths.push_back(input.c_str());
    const auto text = [](const std::optional<std::string> &given) {
        return given ? given->c_str() : nullptr;
    };
    lofi_average_files_options options = LOFI_AVERAGE_FILES_OPTIONS_INIT;
    options.inputs = paths.data();
    options.input_count = static_cast<int>(paths.size());
    options.out = out.c_str();
    options.weights = weights ? weights->data() : nullptr;
    options.base = text(base);
    options.alpha = alpha;
    options.only = text(only);
    options.skip = text(skip);
    options.dtype = text(dtype);
    options.integers_first = integers_first;
    options.force = force;
    SignalCheck signals;
    options.progress = SignalCheck::run;
    options.ctx = &signals;
    const lofi_status st = lofi_average_files(&options, nullptr);
    {
        py::gil_scoped_acquire acquired; // what a signal's handler has raised is still set
        if (PyErr_Occurred()) throw py::error_already_set();
    }
    check(st);
}

std::vector<bool> select_names(const std::optional<std::string> &only,
                               const std::optional<std::string> &skip,
                               const std::vector<std::string> &names)
{
    std::vector<const char *> texts;
    for (const auto &name : names)
        texts.push_back(name.c_str());
    std::vector<unsigned char> is_selected(names.size());
    check(lofi_names_select(only ? only->c_str() : nullptr, skip ? skip->c_str() : nullptr,
                            texts.data(), texts.size(), is_selected.data()));
    return {is_selected.begin(), is_selected.end()};
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

} // namespace
} // namespace lofi

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m)
{
    using namespace lofi;
    m.doc() = "The native half of lofi: liblofi and the c10d backend.";
    m.attr("torch_version") =
        std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
    m.attr("BY_USER") = static_cast<int>(LOFI_BY_USER);
    m.attr("BY_WRAPPER") = static_cast<int>(LOFI_BY_WRAPPER);
    m.attr("SCOPE_WORLD") = static_cast<int>(LOFI_SCOPE_WORLD);
    m.attr("SCOPE_NODE") = static_cast<int>(LOFI_SCOPE_NODE);
    m.attr("EVENT_TRAIN") = static_cast<int>(LOFI_EVENT_TRAIN);
    m.attr("EVENT_AVERAGE") = static_cast<int>(LOFI_EVENT_AVERAGE);
    m.attr("EVENT_AVERAGE_BACK") = static_cast<int>(LOFI_EVENT_AVERAGE_BACK);
    m.attr("EVENT_AVERAGE_DONE") = static_cast<int>(LOFI_EVENT_AVERAGE_DONE);
    m.attr("EVENT_EVALUATE") = static_cast<int>(LOFI_EVENT_EVALUATE);
    m.attr("FOR_AVERAGE") = static_cast<int>(LOFI_FOR_AVERAGE);
    m.attr("FOR_BYPASS") = static_cast<int>(LOFI_FOR_BYPASS);
    m.def("build_info", &lofi_build_info);

    py::class_<Topology>(m, "Topology")
        .def(py::init(&make_topology), py::arg("store"), py::arg("rank"), py::arg("world_size"),
             py::arg("node_size"), py::arg("settings"), py::arg("problem"), py::arg("timeout"),
             release_gil())
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

    const auto copied = [](const OptionsLofi &self, const py::args &) {
        return c10::make_intrusive<OptionsLofi>(self);
    };
    py::class_<OptionsLofi, c10d::Backend::Options, c10::intrusive_ptr<OptionsLofi>>(m, "Options")
        .def("__copy__", copied)
        .def("__deepcopy__", copied);
    py::class_<BackendLofi, c10d::Backend, c10::intrusive_ptr<BackendLofi>>(m, "BackendLofi")
        .def_property_readonly("options", &BackendLofi::getBackendOptions)
        .def(py::init(&make_backend), py::arg("group"), py::arg("source"), py::arg("timeout"),
             py::arg("name"), py::arg("strict"), py::arg("coalesces_cuda"))
        .def_property_readonly("source",
                               [](BackendLofi &self) {
                                   return dynamic_cast<PySource &>(self.inners().source()).object();
                               })
        .def(
            "inner",
            [](BackendLofi &self, const std::string &device, const std::string &span) {
                const Span which = span == "node"     ? Span::node
                                   : span == "column" ? Span::column
                                                      : Span::world;
                return self.inners().get(c10::Device(device).type(), which);
            },
            py::arg("device"), py::arg("span"), release_gil(),
            "The inner backend for a device type and a span: 'node', 'world' or 'column'.")
        .def(
            "release",
            [](BackendLofi &self, const std::string &device) {
                self.inners().release(c10::Device(device).type());
            },
            py::arg("device"), release_gil(),
            "Ends the inner backends of a device type that connect nodes. Collective.")
        // By the name that torch calls when it makes a sub-group without this rank.
        .def("perform_nocolor_split", &BackendLofi::leave_split, py::arg("device"), release_gil());

    py::class_<BackendComm, c10d::Backend, c10::intrusive_ptr<BackendComm>>(m, "BackendComm")
        .def_property_readonly("transport", &BackendComm::transport);
    py::class_<NodeStore, c10d::Store, c10::intrusive_ptr<NodeStore>>(m, "NodeStore")
        .def(py::init<c10::intrusive_ptr<c10d::Store>>(), py::arg("below"));
    m.def("with_comm", &with_comm, py::arg("gloo"), py::arg("store"), py::arg("global_ranks"),
          py::arg("timeout"), py::arg("name"), release_gil(),
          "The backend to use for the ranks of `gloo`: with a communicator of liblofi's where they "
          "share a machine, else `gloo` itself. Collective.");

    m.def("phase", [] { return lofi_phase_name(lofi_session_phase(session())); });
    m.def("event",
          [](int event) { check(lofi_session_event(session(), static_cast<lofi_event>(event))); });
    m.def("scope", [] { return static_cast<int>(lofi_session_scope(session())); });
    m.def("push_scope", [](int scope) {
        check(lofi_session_push_scope(session(), static_cast<lofi_scope>(scope)));
    });
    m.def("pop_scope", [] { check(lofi_session_pop_scope(session())); });
    m.def("set_issuer",
          [](int who) { return static_cast<int>(set_issuer(static_cast<lofi_issuer>(who))); });
    m.def("count", [](int scope, int purpose, uint64_t bytes) {
        lofi_session_count(session(), static_cast<lofi_scope>(scope), purpose, bytes);
    });
    m.def("reset_session", &reset_session);
    m.def("stats", &stats);
    m.def("set_log_level", [](const std::string &word) {
        lofi_log_level level;
        check(lofi_log_level_parse(word.c_str(), &level));
        lofi_log_set_level(level);
    });
    m.def("log", [](int level, const std::string &line) {
        lofi_log(static_cast<lofi_log_level>(level), "%s", line.c_str());
    });

    m.def("average_files", &average_files, py::arg("inputs"), py::arg("out"), py::kw_only(),
          py::arg("weights"), py::arg("base"), py::arg("alpha"), py::arg("only"), py::arg("skip"),
          py::arg("dtype"), py::arg("integers_first"), py::arg("force"), release_gil(),
          "lofi_average_files of lofi.h.");
    m.def("select_names", &select_names, py::arg("only"), py::arg("skip"), py::arg("names"),
          "lofi_names_select of lofi.h.");
    m.def("mean", &mean, py::arg("out"), py::arg("inputs"), py::arg("weights") = std::nullopt,
          py::arg("base") = std::nullopt, py::arg("alpha") = 1.0, release_gil());
    m.attr("CUDA_IS_BUILT") = lofi_cuda_is_built() == 1;
    m.attr("CUDA_MEAN_INPUTS") = LOFI_CUDA_MEAN_INPUTS;
    m.def("cuda_mean", &cuda_mean, py::arg("out"), py::arg("pieces"), py::arg("weights"),
          py::arg("stream"), release_gil(), "lofi_cuda_mean of lofi.h.");
    m.def("digest", &digest);
    m.def("find_nonfinite", &find_nonfinite, release_gil());
    m.def("chunks", &chunks, py::arg("total"), py::arg("nodes"), py::arg("local_size"),
          py::arg("chunk"));
    for (const auto add : Binding::all())
        add(m);
}
