// SPDX-License-Identifier: MIT
//
// The Python module lofi._C: facts about the build, the log, and all that the other files here add.
#include <pybind11/stl.h>
#include <torch/version.h>

#include "bind.hpp"
#include "check.hpp"
#include "known.hpp"

namespace lofi {
namespace {

void set_log_level(const std::string &word)
{
    lofi_log_level level;
    check(lofi_log_level_parse(word.c_str(), &level));
    lofi_log_set_level(level);
}

void log(int level, const std::string &line)
{
    lofi_log(known<lofi_log_level>("log level", level, LOFI_LOG_TRACE + 1), "%s", line.c_str());
}

} // namespace
} // namespace lofi

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m)
{
    m.doc() = "The native half of lofi: liblofi and the c10d backend.";
    m.attr("torch_version") =
        std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
    m.def("build_info", &lofi_build_info);
    m.def("set_log_level", &lofi::set_log_level, pybind11::arg("word"));
    m.def("log", &lofi::log, pybind11::arg("level"), pybind11::arg("line"));
    m.def("hold_log", &lofi_log_hold);
    m.def("release_log", &lofi_log_release);
    for (const auto add : lofi::Binding::all())
        add(m);
}
