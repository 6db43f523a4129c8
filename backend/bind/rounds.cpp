// SPDX-License-Identifier: MIT
//
// Rounds, and which nodes give to an average: lofi/round.h.
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind.hpp"
#include "check.hpp"

namespace py = pybind11;

namespace lofi {
namespace {

using Words = std::vector<std::optional<std::string>>;

class Round {
  public:
    Round(int member_count, int member, int close_at, int kind) : count_(member_count)
    {
        lofi_round_options options = LOFI_ROUND_OPTIONS_INIT;
        options.member_count = member_count;
        options.member = member;
        options.close_at = close_at;
        options.kind = static_cast<lofi_round_value_kind>(kind);
        lofi_round *made = nullptr;
        check(lofi_round_create(&options, &made));
        round_.reset(made, lofi_round_destroy);
    }
    int next() const
    {
        return lofi_round_next(round_.get());
    }
    void tell(bool yes, const std::optional<Words> &words,
              const std::optional<std::string> &verdict)
    {
        std::vector<const char *> texts;
        if (words) {
            if (words->size() != static_cast<size_t>(count_))
                throw py::value_error("lofi: a round needs a word, or None, of each member");
            for (const auto &word : *words)
                texts.push_back(word ? word->c_str() : nullptr);
        }
        lofi_round_answer answer = LOFI_ROUND_ANSWER_INIT;
        answer.yes = yes;
        answer.words = words ? texts.data() : nullptr;
        answer.verdict = verdict ? verdict->c_str() : nullptr;
        check(lofi_round_tell(round_.get(), &answer));
    }
    std::string verdict() const
    {
        return lofi_round_verdict(round_.get());
    }
    std::vector<int> members() const
    {
        std::vector<int> in;
        for (int member = 0; member < count_; ++member) {
            if (lofi_round_is_in(round_.get(), member)) in.push_back(member);
        }
        return in;
    }
    int64_t value() const
    {
        return lofi_round_value(round_.get());
    }

  private:
    int count_;
    std::shared_ptr<lofi_round> round_;
};

std::vector<int> round_members(const std::vector<std::tuple<bool, int64_t, double>> &nodes,
                               int min_nodes)
{
    std::vector<lofi_node_report> reports;
    for (const auto &[present, nonfinite, weight] : nodes)
        reports.push_back({present, 0, nonfinite, weight});
    std::vector<int> members(reports.size());
    int count = 0;
    check(lofi_round_members(reports.data(), static_cast<int>(reports.size()), min_nodes,
                             members.data(), &count));
    members.resize(count);
    return members;
}

const Binding binding{[](py::module_ &m) {
    m.attr("ROUND_ANNOUNCE") = static_cast<int>(LOFI_ROUND_ANNOUNCE);
    m.attr("ROUND_COMPARE") = static_cast<int>(LOFI_ROUND_COMPARE);
    m.attr("ROUND_LOOK") = static_cast<int>(LOFI_ROUND_LOOK);
    m.attr("ROUND_WAIT") = static_cast<int>(LOFI_ROUND_WAIT);
    m.attr("ROUND_LIST") = static_cast<int>(LOFI_ROUND_LIST);
    m.attr("ROUND_CLOSE") = static_cast<int>(LOFI_ROUND_CLOSE);
    m.attr("ROUND_READ") = static_cast<int>(LOFI_ROUND_READ);
    m.attr("ROUND_CLOSED") = static_cast<int>(LOFI_ROUND_CLOSED);
    m.attr("ROUND_NOTHING") = static_cast<int>(LOFI_ROUND_NOTHING);
    m.attr("ROUND_LEAST") = static_cast<int>(LOFI_ROUND_LEAST);
    m.attr("ROUND_DIFFERS") = static_cast<int>(LOFI_ROUND_DIFFERS);
    py::class_<Round>(m, "Round")
        .def(py::init<int, int, int, int>(), py::arg("member_count"), py::arg("member"),
             py::arg("close_at"), py::arg("kind"))
        .def_property_readonly("next", &Round::next)
        .def("tell", &Round::tell, py::arg("yes") = false, py::arg("words") = std::nullopt,
             py::arg("verdict") = std::nullopt)
        .def_property_readonly("verdict", &Round::verdict)
        .def_property_readonly("members", &Round::members)
        .def_property_readonly("value", &Round::value);
    m.def("progress_is_past", &lofi_progress_is_past, py::arg("progress"), py::arg("steps"));
    m.def("round_members", &round_members, py::arg("nodes"), py::arg("min_nodes"));
}};

} // namespace
} // namespace lofi
