// SPDX-License-Identifier: MIT
//
// Averages of checkpoint files, and names selected by patterns.
#include <chrono>
#include <optional>

#include <pybind11/stl.h>

#include "bind.hpp"
#include "check.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

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

std::vector<const char *> texts_of(const std::vector<std::string> &list)
{
    std::vector<const char *> texts;
    for (const auto &one : list)
        texts.push_back(one.c_str());
    return texts;
}

void open_checkpoint(const std::string &path)
{
    lofi_checkpoint *checkpoint = nullptr;
    check(lofi_checkpoint_open(path.c_str(), &checkpoint));
    lofi_checkpoint_close(checkpoint);
}

void average_files(const std::vector<std::string> &inputs, const std::string &out,
                   const std::optional<std::vector<double>> &weights,
                   const std::optional<std::string> &base, double alpha,
                   const std::optional<std::string> &only, const std::optional<std::string> &skip,
                   const std::optional<std::string> &dtype, bool integers_first,
                   const std::vector<std::string> &strip_prefixes, bool force, bool raw_weights,
                   bool force_config, const std::optional<std::string> &lora)
{
    const std::vector<const char *> paths = texts_of(inputs);
    const std::vector<const char *> prefixes = texts_of(strip_prefixes);
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
    options.strip_prefixes = prefixes.data();
    options.strip_count = static_cast<int>(prefixes.size());
    options.force = force;
    options.raw_weights = raw_weights;
    options.force_config = force_config;
    options.lora = text(lora);
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
    const std::vector<const char *> texts = texts_of(names);
    std::vector<unsigned char> is_selected(names.size());
    check(lofi_names_select(only ? only->c_str() : nullptr, skip ? skip->c_str() : nullptr,
                            texts.data(), texts.size(), is_selected.data()));
    return {is_selected.begin(), is_selected.end()};
}

std::optional<std::pair<size_t, size_t>> find_quantised(const std::vector<std::string> &names,
                                                        const std::vector<std::string> &dtypes)
{
    const std::vector<const char *> texts = texts_of(names), kinds = texts_of(dtypes);
    TORCH_CHECK_VALUE(names.size() == dtypes.size(), "lofi: as many dtypes as names are needed");
    size_t scales = 0;
    const int64_t found =
        lofi_names_find_quantised(texts.data(), kinds.data(), texts.size(), &scales);
    if (found < -1) throw std::bad_alloc();
    if (found < 0) return std::nullopt;
    return std::pair(static_cast<size_t>(found), scales);
}

const Binding files{[](py::module_ &m) {
    m.def("average_files", &average_files, py::arg("inputs"), py::arg("out"), py::kw_only(),
          py::arg("weights"), py::arg("base"), py::arg("alpha"), py::arg("only"), py::arg("skip"),
          py::arg("dtype"), py::arg("integers_first"), py::arg("strip_prefixes"), py::arg("force"),
          py::arg("raw_weights"), py::arg("force_config"), py::arg("lora"),
          py::call_guard<py::gil_scoped_release>(), "lofi_average_files of lofi.h.");
    m.def("open_checkpoint", &open_checkpoint, py::arg("path"),
          "Raises what lofi_checkpoint_open of lofi.h says of the path, if it is no checkpoint.");
    m.def("find_quantised", &find_quantised, py::arg("names"), py::arg("dtypes"),
          "lofi_names_find_quantised of lofi.h: the indices of codes and scales, or None.");
    m.def("select_names", &select_names, py::arg("only"), py::arg("skip"), py::arg("names"),
          "lofi_names_select of lofi.h.");
}};

} // namespace
} // namespace lofi
