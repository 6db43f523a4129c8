// SPDX-License-Identifier: MIT
//
// The session: phases, scopes, who issues collectives, and the counts of them.
#include <pybind11/stl.h>

#include "bind.hpp"
#include "check.hpp"
#include "known.hpp"
#include "session.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

constexpr int kEvents = LOFI_EVENT_EVALUATE + 1;
constexpr int kScopes = LOFI_SCOPE_NODE + 1;
constexpr int kIssuers = LOFI_BY_BACKWARD + 1;

void event(int event)
{
    check(lofi_session_event(session(), known<lofi_event>("event", event, kEvents)));
}

void push_scope(int scope)
{
    check(lofi_session_push_scope(session(), known<lofi_scope>("scope", scope, kScopes)));
}

int set_issuer_of_thread(int who)
{
    return static_cast<int>(set_issuer(known<lofi_issuer>("issuer", who, kIssuers)));
}

int set_purpose_of_thread(int purpose)
{
    if (purpose == kByPhase) return set_purpose(purpose);
    return set_purpose(known<lofi_purpose>("purpose", purpose, LOFI_PURPOSE_COUNT));
}

void count(int scope, int purpose, uint64_t bytes)
{
    lofi_session_count(session(), known<lofi_scope>("scope", scope, kScopes),
                       known<lofi_purpose>("purpose", purpose, LOFI_PURPOSE_COUNT), bytes);
}

py::dict stats()
{
    lofi_stats stats = LOFI_STATS_INIT;
    check(lofi_session_get_stats(session(), &stats));
    py::dict world, node, bytes;
    for (int i = 0; i < LOFI_PURPOSE_COUNT; ++i) {
        const char *purpose = lofi_purpose_name(static_cast<lofi_purpose>(i));
        world[purpose] = stats.collectives[LOFI_SCOPE_WORLD][i];
        node[purpose] = stats.collectives[LOFI_SCOPE_NODE][i];
        bytes[purpose] = stats.cross_bytes[i];
    }
    py::dict collectives, result;
    collectives["world"] = world;
    collectives["node"] = node;
    result["phase"] = lofi_phase_name(stats.phase);
    result["collectives"] = collectives;
    result["cross_bytes"] = bytes;
    return result;
}

void add_constants(py::module_ &m)
{
    m.attr("BY_USER") = static_cast<int>(LOFI_BY_USER);
    m.attr("BY_WRAPPER") = static_cast<int>(LOFI_BY_WRAPPER);
    m.attr("SCOPE_WORLD") = static_cast<int>(LOFI_SCOPE_WORLD);
    m.attr("SCOPE_NODE") = static_cast<int>(LOFI_SCOPE_NODE);
    m.attr("EVENT_TRAIN") = static_cast<int>(LOFI_EVENT_TRAIN);
    m.attr("EVENT_AVERAGE") = static_cast<int>(LOFI_EVENT_AVERAGE);
    m.attr("EVENT_AVERAGE_BACK") = static_cast<int>(LOFI_EVENT_AVERAGE_BACK);
    m.attr("EVENT_AVERAGE_DONE") = static_cast<int>(LOFI_EVENT_AVERAGE_DONE);
    m.attr("EVENT_EVALUATE") = static_cast<int>(LOFI_EVENT_EVALUATE);
    m.attr("FOR_SETUP") = static_cast<int>(LOFI_FOR_SETUP);
    m.attr("FOR_AVERAGE") = static_cast<int>(LOFI_FOR_AVERAGE);
    m.attr("FOR_BYPASS") = static_cast<int>(LOFI_FOR_BYPASS);
}

const Binding mirror{[](py::module_ &m) {
    add_constants(m);
    m.def("phase", [] { return lofi_phase_name(lofi_session_phase(session())); });
    m.def("event", &event, py::arg("event"));
    m.def("scope", [] { return static_cast<int>(lofi_session_scope(session())); });
    m.def("push_scope", &push_scope, py::arg("scope"));
    m.def("pop_scope", [] { check(lofi_session_pop_scope(session())); });
    m.def("issuer", [] { return static_cast<int>(issuer()); });
    m.def("set_issuer", &set_issuer_of_thread, py::arg("issuer"));
    m.def("set_purpose", &set_purpose_of_thread, py::arg("purpose"));
    m.def("count", &count, py::arg("scope"), py::arg("purpose"), py::arg("bytes"));
    m.def("reset_session", &reset_session);
    m.def("stats", &stats);
}};

} // namespace
} // namespace lofi
