// SPDX-License-Identifier: MIT
//
// Enumerations of liblofi come from Python as numbers. A number outside of them is refused here, so
// that it reaches no switch and no table.
#pragma once

#include "check.hpp"

namespace lofi {

// `value` as an Enum, whose values are 0 to count - 1.
template <class Enum>
Enum known(const char *what, int value, int count)
{
    if (value < 0 || value >= count) {
        C10_THROW_ERROR(ValueError, c10::str("lofi: there is no ", what, " ", value,
                                             ": the known ones are 0 to ", count - 1));
    }
    return static_cast<Enum>(value);
}

} // namespace lofi
