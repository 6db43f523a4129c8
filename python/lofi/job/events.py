# SPDX-License-Identifier: MIT
"""Moments of a job that more than one part of lofi acts on.

Whoever sees a moment calls the event; a feature subscribes to it when it is installed. So nothing
that trains or averages knows which features there are. Subscribers run on the thread that calls,
in the order in which they subscribed; an exception of one reaches the caller.
"""

from collections.abc import Callable
from typing import Any


class Event:
    def __init__(self, name: str) -> None:
        self.name = name
        self._subscribers: list[Callable[..., Any]] = []

    def subscribe(self, function: Callable[..., Any]) -> None:
        """`function` gets the arguments of each call from now on. Twice is as good as once."""
        if function not in self._subscribers:
            self._subscribers.append(function)

    def unsubscribe(self, function: Callable[..., Any]) -> None:
        if function in self._subscribers:
            self._subscribers.remove(function)

    def __call__(self, *args: Any) -> None:
        for function in self._subscribers:
            function(*args)


# (): the default group was made, and is lofi's.
begun = Event("begun")
# (model): DDP has wrapped a model; all ranks of its group are here, and collectives are real.
wrapped = Event("wrapped")
# (model): the first forward with gradients of a wrapped model.
training_begins = Event("training_begins")
# (): the node's own weights are needed: a forward with gradients, an optimizer's step, or an
# update of an EMA copy follows.
training_goes_on = Event("training_goes_on")
# (count): a forward has begun whose backward synchronises gradients, and it is the count-th.
backward_synchronised = Event("backward_synchronised")
# (optimizer): it is about to step.
step = Event("step")
# (module): the nodes' average is in place of its weights, until training goes on.
evaluation = Event("evaluation")
# (path): the script is writing weights into a file.
save = Event("save")
# (is_over): training has ended well; `is_over`: so has the script.
end = Event("end")
# (): the script ends with an error.
failed = Event("failed")
