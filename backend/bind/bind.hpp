// SPDX-License-Identifier: MIT
//
// One file here binds one subject of liblofi, and needs no line elsewhere: it defines a function
// that adds to the module, and a constant that names it.
//
//     static const lofi::Binding binding{[](py::module_ &m) { m.def(...); }};
#pragma once

#include <vector>

#include <pybind11/pybind11.h>

namespace lofi {

struct Binding {
    using Add = void (*)(pybind11::module_ &);
    explicit Binding(Add add)
    {
        all().push_back(add);
    }
    static std::vector<Add> &all()
    {
        static std::vector<Add> list;
        return list;
    }
};

} // namespace lofi
