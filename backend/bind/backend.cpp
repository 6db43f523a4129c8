// SPDX-License-Identifier: MIT
//
// The process group backend, and the Python object that makes its inner backends.
#include <chrono>

#include <torch/csrc/utils/pybind.h>
// chrono.h comes after torch's pybind.h, which sets up the casters of intrusive_ptr.
#include <pybind11/chrono.h>

#include "backend_lofi.hpp"
#include "bind.hpp"
#include "nodes.hpp"

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

namespace lofi {
namespace {

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
    bool note_gather() override
    {
        py::gil_scoped_acquire gil;
        return source_.attr("note_gather")().cast<bool>();
    }
    void before_implicit(const std::string &collective, uint64_t bytes) override
    {
        py::gil_scoped_acquire gil;
        source_.attr("before_implicit")(collective, bytes);
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

c10::intrusive_ptr<BackendLofi> make_backend(const Group &group, py::object source,
                                             std::chrono::milliseconds timeout,
                                             const std::string &name, bool strict,
                                             bool coalesces_cuda)
{
    return c10::make_intrusive<BackendLofi>(
        BackendLofi::Config{group.handle, std::make_unique<PySource>(std::move(source)), timeout,
                            name, strict, coalesces_cuda});
}

Span span_of(const std::string &word)
{
    for (const Span span : {Span::node, Span::world, Span::column}) {
        if (word == name_of(span)) return span;
    }
    C10_THROW_ERROR(ValueError, "lofi: no ranks of a group are called '" + word +
                                    "': choose node, world or column");
}

// Inner backends exist for these two types; an index is allowed and does not matter.
c10::DeviceType type_of(const std::string &device)
{
    const auto word = device.substr(0, device.find(':'));
    for (const auto type : {c10::DeviceType::CPU, c10::DeviceType::CUDA}) {
        if (word == c10::DeviceTypeName(type, /*lower_case=*/true))
            return c10::Device(device).type();
    }
    C10_THROW_ERROR(ValueError, "lofi: no inner backend serves the device '" + device +
                                    "': choose cpu or cuda");
}

c10::intrusive_ptr<c10d::Backend> inner(BackendLofi &self, const std::string &device,
                                        const std::string &span)
{
    return self.inners().get(type_of(device), span_of(span)).backend;
}

void release(BackendLofi &self, const std::string &device)
{
    self.inners().release(type_of(device));
}

py::object source(BackendLofi &self)
{
    return dynamic_cast<PySource &>(self.inners().source()).object();
}

void add_options(py::module_ &m)
{
    const auto copied = [](const OptionsLofi &self, const py::args &) {
        return c10::make_intrusive<OptionsLofi>(self);
    };
    py::class_<OptionsLofi, c10d::Backend::Options, c10::intrusive_ptr<OptionsLofi>>(m, "Options")
        .def("__copy__", copied)
        .def("__deepcopy__", copied);
}

const Binding backend{[](py::module_ &m) {
    add_options(m);
    py::class_<BackendLofi, c10d::Backend, c10::intrusive_ptr<BackendLofi>>(m, "BackendLofi")
        .def_property_readonly("options", &BackendLofi::getBackendOptions)
        .def(py::init(&make_backend), py::arg("group"), py::arg("source"), py::arg("timeout"),
             py::arg("name"), py::arg("strict"), py::arg("coalesces_cuda"))
        .def_property_readonly("source", &source)
        .def("inner", &inner, py::arg("device"), py::arg("span"), release_gil(),
             "The inner backend for a device type and a span: 'node', 'world' or 'column'.")
        .def("release", &release, py::arg("device"), release_gil(),
             "Ends the inner backends of a device type that connect nodes. Collective.")
        // torch calls this by name when it makes a sub-group without this rank.
        .def("perform_nocolor_split", &BackendLofi::leave_split, py::arg("device"), release_gil());
}};

} // namespace
} // namespace lofi
