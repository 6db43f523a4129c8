# SPDX-License-Identifier: MIT
"""An unmodified script evaluates: the average is put in for it, if all ranks of all nodes are here.

eval() says little: scripts fine-tune in eval mode, craft adversarial examples in it, evaluate on
rank 0 alone. So it only arms a model; its next forward decides. With gradients, it was training.
Without, the ranks of the node and then the nodes agree through the store, before any collective,
whether everyone is here for this model at this step; if not, the node's own weights are evaluated.

Own weights come back before training goes on: at train(), at the next forward with gradients of a
wrapped model, at an optimizer's step. Collectives are real until one of the last two: ranks come to
train() at different times, and metrics may be reduced after it.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_forward_pre_hook

from lofi.average import finalize, swaps
from lofi.job import events, job
from lofi.job.job import PerJob
from lofi.job.log import log, tell
from lofi.job.native import _C
from lofi.job.patch import not_compiled, wrap
from lofi.models import tracked, training
from lofi.models.tracked import Target
from lofi.rounds import progress
from lofi.rounds.board import job_board
from lofi.rounds.rounds import Round

# Ranks of a node come to an evaluation together, up to a data loader's start. A rank that comes
# alone (`if rank == 0: evaluate(model)`) waits LOFI_EVAL_WAIT once, and then for a moment only.
_GRACE_OF_A_LONER = 2.0
# An evaluation every few steps, many times over, is hardly one.
_STEPS_BETWEEN = 5
_TIMES = 5
_SECONDS_BETWEEN_POSTS = 1.0
_POLL_SECONDS = 0.05  # between two looks at whether the others of a node are past an evaluation


@dataclass
class Evaluation:
    """The state of a job's evaluations."""

    armed: dict[str, Target] = field(default_factory=dict)  # by name
    hook: Any = None  # on every module's forward, while something is armed
    put_in: list[swaps.Swap] = field(default_factory=list)  # that are in of lofi's own accord
    attempts: Counter[str] = field(default_factory=Counter)  # by model and step
    warned: set[str] = field(default_factory=set)
    taken_care_of: set[str] = field(default_factory=set)  # models in a block of `of`
    is_on: bool = False  # collectives are real, since an average was put in
    came_alone: bool = False
    tells: bool = True  # this rank says why an evaluation is of its node alone
    is_broken: bool = False  # an exchange failed: no other is tried
    last_step: int = 0
    frequent: int = 0
    posted: float = 0.0  # when this rank last said in the store where its node is
    posted_rank: float = 0.0  # and where it is itself


_state = PerJob(Evaluation)


def install() -> None:
    """Look at train() and eval() of every module."""
    wrap(torch.nn.Module, "train", _train)
    events.training_goes_on.subscribe(own_weights_back)
    events.end.subscribe(_end)
    events.backward_synchronised.subscribe(_post_progress)


def _post_progress(steps: int) -> None:
    """Let a rank of this node, or another node, that waits at an evaluation see that this one is
    past it. All ranks together post some 20,000 times a second at most."""
    here, state, now = job.current(), _state(), time.monotonic()
    if not here.spans_nodes:
        return
    if here.topology.node_size > 1 and now - state.posted_rank > here.topology.world_size / 20_000:
        state.posted_rank = now
        progress.of_job().post_rank(here.rank, steps)
    is_due = now - state.posted > _SECONDS_BETWEEN_POSTS
    if here.place == 0 and is_due:
        state.posted = now
        progress.of_job().post(here.node, str(steps))


def _train(original: Any, self: Any, mode: bool = True) -> Any:
    result = original(self, mode)
    if not torch.compiler.is_compiling():
        _mode_set(self, mode)
    return result


@not_compiled
def _mode_set(module: torch.nn.Module, mode: bool) -> None:
    target = tracked.is_tracked(module)
    if target is None:
        return
    if mode:
        _disarm(target)
        _weights_back()  # collectives stay real: other ranks may not be here yet
    elif _may_be_due(target):
        _arm(target)


def _may_be_due(target: Target) -> bool:
    here = job.current()
    state = _state()
    if not here.spans_nodes or here.settings.eval != "averaged" or state.is_broken:
        return False
    if target.name in state.taken_care_of:
        return False
    return _C.phase() in ("train", "evaluate") and swaps.find_in(target.module()) is None


def _arm(target: Target) -> None:
    state = _state()
    state.armed[target.name] = target
    if state.hook is None:
        state.hook = register_module_forward_pre_hook(_before_forward)


def _disarm(target: Target) -> None:
    state = _state()
    state.armed.pop(target.name, None)
    if not state.armed and state.hook is not None:
        state.hook.remove()
        state.hook = None


@not_compiled
def _before_forward(module: torch.nn.Module, _: Any) -> None:
    target = tracked.is_tracked(module)
    if target is None or target.name not in _state().armed:
        return
    _disarm(target)
    if not torch.is_grad_enabled():
        come_together(target)


@contextmanager
def of(model: torch.nn.Module) -> Iterator[None]:
    """A block that evaluates the model for sure (a library's evaluation loop)."""
    target = tracked.find(model)
    if target is None or not _may_be_due(target):
        yield
        return
    state = _state()
    _disarm(target)
    came = come_together(target)
    state.taken_care_of.add(target.name)
    try:
        yield
    finally:
        state.taken_care_of.discard(target.name)
        if came:
            own_weights_back()


def come_together(target: Target) -> bool:
    """Put the average in, if everyone is here. False: this node's own weights stay."""
    here, state = job.current(), _state()
    try:
        missing = _missing(here, state, target)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        missing = f"the store can't be reached ({error})"
    if missing:
        _own_weights(state, missing)
        return False
    try:
        state.put_in.append(finalize.put_in(target.module()))
        state.is_on = True
    except (RuntimeError, ValueError) as error:  # dist's errors are RuntimeErrors
        state.is_broken = True
        _own_weights(state, f"an average failed ({error})")
        return False
    log(
        "info",
        f"evaluation of the nodes' average of {target.name} at step {training.state().steps}",
    )
    _warn_if_frequent(here, state)
    return True


def _own_weights(state: Evaluation, why: str) -> None:
    kind = why.split(" (")[0]
    if kind not in state.warned:
        state.warned.add(kind)
        log(
            "warn" if state.tells else "info",
            f"{why}: this evaluation is of node {job.current().node}'s own weights",
        )


def _missing(here: job.Job, state: Evaluation, target: Target) -> str:
    """A sentence that names those who do not come to this evaluation; "" if all are here."""
    steps, size, node = training.state().steps, here.topology.node_size, here.node
    at = f"{target.name}/{steps}"
    state.attempts[at] += 1
    board = job_board().part(f"evaluation/{at}/{state.attempts[at]}")

    ours = Round(board.part(f"node {node}"), here.place, size)
    grace = min(here.settings.eval_wait, here.settings.timeout)
    if state.came_alone:
        grace = min(grace, _GRACE_OF_A_LONER)
    what = f"rank {here.rank} waits at an evaluation for the ranks of its node"
    mates = [node * size + place for place in range(size) if place != here.place]
    at_work = progress.of_job()
    closed = ours.meet(
        grace, what, stop=lambda: at_work.any_rank_past(mates, steps), poll=_POLL_SECONDS
    )
    missing = closed.missing
    state.tells = here.place == min(closed.members, default=here.place) or here.place in missing
    if here.place in missing:
        return f"rank {here.rank} came to an evaluation that its node had begun without it"
    if missing:
        state.came_alone = True
        ranks = [node * size + place for place in missing]
        return (
            f"ranks {ranks} of node {node} do not come to the evaluation that others of the node "
            "have begun (evaluate on all ranks to see the accuracy of the average)"
        )

    others = progress.of_job()
    others.post(node, str(steps))
    what = f"node {node} waits at an evaluation for the other nodes"
    missing = (
        Round(board, node, here.topology.node_count)
        .meet(
            here.settings.timeout,
            what,
            stop=lambda: others.any_past(steps, but=node),
            poll=1.0,
        )
        .missing
    )
    if node in missing:
        return f"node {node} came to an evaluation that the others had begun without it"
    names = ", ".join(map(str, missing))
    return f"node(s) {names} do not come to this evaluation" if missing else ""


def _warn_if_frequent(here: job.Job, state: Evaluation) -> None:
    is_close = training.state().steps - state.last_step < _STEPS_BETWEEN
    state.frequent = state.frequent + 1 if is_close else 0
    state.last_step = training.state().steps
    if state.frequent == _TIMES:
        tell(
            "warn",
            f"the script evaluates every few steps, and each time the nodes exchange their weights "
            f"({_TIMES} times in a row within {_STEPS_BETWEEN} steps): LOFI_EVAL=node evaluates "
            "each node's own weights instead",
        )


def _weights_back() -> None:
    state = _state()
    while state.put_in:
        state.put_in.pop().put_back()


def own_weights_back() -> None:
    """Training goes on, or ends: whatever lofi put in by itself comes out, and nodes are apart
    again. Called where all ranks of a node come together: not at train() alone."""
    _weights_back()
    state = _state()
    if state.is_on and not swaps.any_in():
        _C.event(_C.EVENT_AVERAGE_BACK)
        state.is_on = False


def _end(is_over: bool) -> None:
    """Own weights again, and nothing is evaluated by itself any more. An average that was taken of
    these weights is kept."""
    own_weights_back()
    for target in list(_state().armed.values()):
        _disarm(target)
