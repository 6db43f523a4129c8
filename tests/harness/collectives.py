# SPDX-License-Identifier: MIT
"""Every collective of torch.distributed as one function of a Call, for tests that compare groups.

A Call says on which group, with whose data, dtype, reduce operation and root; the function issues
the collective and returns what it touched, inputs included. Two groups agree on a call when the two
Outcomes are equal: the same bits, or the same exception.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
COMPLEX = (torch.complex64, torch.complex128)
DTYPES = FLOATS + INTEGERS + COMPLEX

OPS = {
    name: getattr(dist.ReduceOp, name)
    for name in ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR")
}
PREMUL_FACTOR = 2
OPS["PREMUL_SUM"] = dist._make_nccl_premul_sum(float(PREMUL_FACTOR))


def ops_of(dtype: torch.dtype) -> list[str]:
    """The operations in which lofi and gloo take the same: lofi has means of integers, too, which
    test_drop_in.py compares with their definition."""
    return [op for op in OPS if not (op == "AVG" and dtype in INTEGERS and dtype != torch.bool)]


# What liblofi reduces; gloo refuses PREMUL_SUM of them, and of all else.
PREMUL_DTYPES = (*FLOATS, torch.int8, torch.uint8, torch.int32, torch.int64)


@dataclass(frozen=True)
class Feed:
    """The data of one rank, by the number of the tensor: the same wherever it is asked for.

    `exact`: small whole numbers, so that no order of a sum or product rounds; else values whose
    sum depends on the order. `factor`: of these, as PREMUL_SUM has one.
    """

    rank: int
    exact: bool = False
    factor: int = 1

    def tensor(self, shape: Any, dtype: torch.dtype, number: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1_000 * self.rank + number)
        if dtype == torch.bool:
            return torch.randint(0, 2, shape, generator=generator).bool()
        if self.exact or not (dtype.is_floating_point or dtype.is_complex):
            choices = torch.tensor([-2, -1, 1, 2])
            values = choices[torch.randint(0, 4, shape, generator=generator)] * self.factor
            return values.to(torch.int64).to(dtype)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def item(self, number: int = 0) -> dict[str, Any]:
        return {"rank": self.rank, "number": number, "padding": "x" * (7 * self.rank)}


@dataclass(frozen=True)
class Call:
    group: Any
    feed: Feed
    dtype: torch.dtype = torch.float32
    op: str = "SUM"
    async_op: bool = False
    root: int = 0  # in the group

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def is_root(self) -> bool:
        return self.rank == self.root

    @property
    def common(self) -> dict[str, Any]:
        return {"group": self.group, "async_op": self.async_op}

    @property
    def reduces(self) -> dict[str, Any]:
        return {"op": OPS[self.op], **self.common}

    def input(self, *shape: int, number: int = 0) -> torch.Tensor:
        return self.feed.tensor(shape, self.dtype, number)

    def room(self, *shape: int) -> torch.Tensor:
        """An output, with a value in it that no collective leaves."""
        return torch.full(shape, 77 if self.dtype != torch.bool else 1, dtype=self.dtype)

    def rooms(self, *shape: int) -> list[torch.Tensor]:
        return [self.room(*shape) for _ in range(self.size)]

    def finish(self, work: Any) -> None:
        if self.async_op and work is not None:
            work.wait()


Result = list[Any]
Collective = Callable[[Call], Result]


# Those that reduce: each takes every reduce operation.


def all_reduce(call: Call) -> Result:
    tensor = call.input(3, 5)
    call.finish(dist.all_reduce(tensor, **call.reduces))
    return [tensor]


def all_reduce_coalesced(call: Call) -> Result:
    tensors = [call.input(4, number=1), call.input(2, 3, number=2)]
    call.finish(dist.all_reduce_coalesced(tensors, **call.reduces))
    return tensors


def all_reduce_in_manager(call: Call) -> Result:
    tensors = [call.input(4, number=1), call.input(3, number=2), call.input(1, number=3)]
    with c10d._coalescing_manager(group=call.group, async_ops=call.async_op) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor, op=OPS[call.op], group=call.group)
    if call.async_op:
        manager.wait()
    return tensors


def reduce(call: Call) -> Result:
    tensor = call.input(6)
    call.finish(dist.reduce(tensor, group_dst=call.root, **call.reduces))
    return [tensor]


def reduce_scatter(call: Call) -> Result:
    inputs = [call.input(4, number=i) for i in range(call.size)]
    output = call.room(4)
    call.finish(dist.reduce_scatter(output, inputs, **call.reduces))
    return [output, inputs]


def reduce_scatter_tensor(call: Call) -> Result:
    source, output = call.input(3 * call.size), call.room(3)
    call.finish(dist.reduce_scatter_tensor(output, source, **call.reduces))
    return [output, source]


def reduce_scatter_base(call: Call) -> Result:
    source, output = call.input(2 * call.size, 3), call.room(2, 3)
    call.finish(dist._reduce_scatter_base(output, source, **call.reduces))
    return [output, source]


def reduce_scatter_in_manager(call: Call) -> Result:
    sources = [call.input(n * call.size, number=n) for n in (1, 4)]
    outputs = [call.room(n) for n in (1, 4)]
    with c10d._coalescing_manager(group=call.group, async_ops=call.async_op) as manager:
        for output, source in zip(outputs, sources, strict=True):
            dist.reduce_scatter_tensor(output, source, op=OPS[call.op], group=call.group)
    if call.async_op:
        manager.wait()
    return [outputs, sources]


# Those that move data.


def broadcast(call: Call) -> Result:
    tensor = call.input(2, 3)
    call.finish(dist.broadcast(tensor, group_src=call.root, **call.common))
    return [tensor]


def all_gather(call: Call) -> Result:
    source, outputs = call.input(2, 3), call.rooms(2, 3)
    call.finish(dist.all_gather(outputs, source, **call.common))
    return [outputs, source]


def all_gather_into_tensor(call: Call) -> Result:
    source, output = call.input(2, 3), call.room(2 * call.size, 3)
    call.finish(dist.all_gather_into_tensor(output, source, **call.common))
    return [output, source]


def all_gather_base(call: Call) -> Result:
    source, output = call.input(5), call.room(5 * call.size)
    call.finish(dist._all_gather_base(output, source, **call.common))
    return [output, source]


def all_gather_coalesced(call: Call) -> Result:
    sources = [call.input(2, number=1), call.input(3, 2, number=2)]
    outputs = [[call.room(2), call.room(3, 2)] for _ in range(call.size)]
    call.finish(dist.all_gather_coalesced(outputs, sources, **call.common))
    return [outputs, sources]


def all_gather_in_manager(call: Call) -> Result:
    sources = [call.input(n, number=n) for n in (1, 4)]
    outputs = [call.room(n * call.size) for n in (1, 4)]
    with c10d._coalescing_manager(group=call.group, async_ops=call.async_op) as manager:
        for output, source in zip(outputs, sources, strict=True):
            dist.all_gather_into_tensor(output, source, group=call.group)
    if call.async_op:
        manager.wait()
    return [outputs, sources]


def gather(call: Call) -> Result:
    source = call.input(4)
    outputs = call.rooms(4) if call.is_root else None
    call.finish(dist.gather(source, outputs, group_dst=call.root, **call.common))
    return [outputs, source]


def scatter(call: Call) -> Result:
    output = call.room(4)
    sources = [call.input(4, number=i) for i in range(call.size)] if call.is_root else None
    call.finish(dist.scatter(output, sources, group_src=call.root, **call.common))
    return [output, sources]


def all_to_all_single(call: Call) -> Result:
    source, output = call.input(2 * call.size), call.room(2 * call.size)
    call.finish(dist.all_to_all_single(output, source, **call.common))
    return [output, source]


def all_to_all_split(call: Call) -> Result:
    """Member i sends i + j elements to member j."""
    splits = [call.rank + peer for peer in range(call.size)]
    source, output = call.input(sum(splits), 2), call.room(sum(splits), 2)
    call.finish(dist.all_to_all_single(output, source, splits, splits, **call.common))
    return [output, source]


def all_to_all(call: Call) -> Result:
    sources, outputs = [call.input(3, number=i) for i in range(call.size)], call.rooms(3)
    call.finish(dist.all_to_all(outputs, sources, **call.common))
    return [outputs, sources]


# Point to point: a ring over the group.


def _ring(call: Call) -> tuple[int, int]:
    return (call.rank + 1) % call.size, (call.rank - 1) % call.size


def send_recv(call: Call) -> Result:
    following, former = _ring(call)
    source, output = call.input(3), call.room(3)
    if call.rank % 2 == 0:
        dist.send(source, group=call.group, group_dst=following, tag=3)
        dist.recv(output, group=call.group, group_src=former, tag=3)
    else:
        dist.recv(output, group=call.group, group_src=former, tag=3)
        dist.send(source, group=call.group, group_dst=following, tag=3)
    return [output, source]


def isend_irecv(call: Call) -> Result:
    following, former = _ring(call)
    source, output = call.input(3), call.room(3)
    works = [
        dist.isend(source, group=call.group, group_dst=following),
        dist.irecv(output, group=call.group, group_src=former),
    ]
    for work in works:
        work.wait()
    return [output, source, works[1]._source_rank()]


def recv_any(call: Call) -> Result:
    """The members send to the root, which takes them from anyone, in turn."""
    if not call.is_root:
        dist.send(call.input(3), group=call.group, group_dst=call.root)
        return []
    seen = {}
    for _ in range(call.size - 1):
        output = call.room(3)
        source = dist.recv(output, group=call.group)
        seen[source] = output
    return [sorted(seen), [seen[source] for source in sorted(seen)]]


def batch_isend_irecv(call: Call) -> Result:
    following, former = _ring(call)
    source, outputs = call.input(3), [call.room(3), call.room(3)]
    operations = [
        dist.P2POp(dist.irecv, outputs[0], group=call.group, group_peer=former),
        dist.P2POp(dist.isend, source, group=call.group, group_peer=following),
        dist.P2POp(dist.irecv, outputs[1], group=call.group, group_peer=former),
        dist.P2POp(dist.isend, source + source, group=call.group, group_peer=following),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return [outputs, source]


# Without tensors of the caller.


def barrier(call: Call) -> Result:
    call.finish(dist.barrier(**call.common))
    return []


def monitored_barrier(call: Call) -> Result:
    return [dist.monitored_barrier(group=call.group)]


def all_gather_object(call: Call) -> Result:
    outputs = [None] * call.size
    dist.all_gather_object(outputs, call.feed.item(), group=call.group)
    return outputs


def gather_object(call: Call) -> Result:
    outputs = [None] * call.size if call.is_root else None
    dist.gather_object(call.feed.item(), outputs, group=call.group, group_dst=call.root)
    return [outputs]


def broadcast_object_list(call: Call) -> Result:
    items = [call.feed.item(1), call.feed.item(2), None]
    dist.broadcast_object_list(items, group=call.group, group_src=call.root)
    return items


def scatter_object_list(call: Call) -> Result:
    items = [call.feed.item(i) for i in range(call.size)] if call.is_root else None
    outputs = [None]
    dist.scatter_object_list(outputs, items, group=call.group, group_src=call.root)
    return outputs


def object_ring(call: Call) -> Result:
    following, former = _ring(call)
    received = [None, None]
    sent = [call.feed.item(1), call.feed.item(2)]
    if call.rank % 2 == 0:
        dist.send_object_list(sent, group=call.group, group_dst=following)
        dist.recv_object_list(received, group=call.group, group_src=former)
    else:
        dist.recv_object_list(received, group=call.group, group_src=former)
        dist.send_object_list(sent, group=call.group, group_dst=following)
    return received


# Functional collectives: what torch.compile and DTensor issue.


def _functional(name: str, *args: Any) -> torch.Tensor:
    import torch.distributed._functional_collectives as functional

    return functional.wait_tensor(getattr(functional, name)(*args))


def functional_all_reduce(call: Call) -> Result:
    source = call.input(2, 3)
    return [_functional("all_reduce", source, call.op.lower(), call.group), source]


def functional_all_gather(call: Call) -> Result:
    source = call.input(2, 3)
    return [_functional("all_gather_tensor", source, 1, call.group), source]


def functional_reduce_scatter(call: Call) -> Result:
    source = call.input(2 * call.size, 3)
    return [
        _functional("reduce_scatter_tensor", source, call.op.lower(), 0, call.group),
        source,
    ]


def functional_broadcast(call: Call) -> Result:
    return [_functional("broadcast", call.input(3), call.root, call.group)]


def functional_all_to_all(call: Call) -> Result:
    splits = [1] * call.size
    return [_functional("all_to_all_single", call.input(call.size), splits, splits, call.group)]


def functional_coalesced(call: Call) -> Result:
    import torch.distributed._functional_collectives as functional

    sources = [call.input(2, number=1), call.input(3, number=2)]
    reduced = functional.all_reduce_coalesced(sources, call.op.lower(), call.group)
    gathered = functional.all_gather_into_tensor_coalesced(sources, call.group)
    return [[functional.wait_tensor(tensor) for tensor in (*reduced, *gathered)]]


def sparse_all_reduce(call: Call) -> Result:
    indices = torch.tensor([[call.feed.rank % 3, 3]])
    tensor = torch.sparse_coo_tensor(indices, call.input(2, 4), (4, 4))
    call.finish(dist.all_reduce(tensor, **call.reduces))
    return [tensor.coalesce().to_dense()]


def table(*functions: Collective) -> dict[str, Collective]:
    return {function.__name__: function for function in functions}


MIRRORED_REDUCTIONS = table(all_reduce, all_reduce_coalesced, all_reduce_in_manager, reduce)
REDUCTIONS = MIRRORED_REDUCTIONS | table(
    reduce_scatter, reduce_scatter_tensor, reduce_scatter_base, reduce_scatter_in_manager
)
MIRRORED_MOVES = table(
    all_gather,
    all_gather_into_tensor,
    all_gather_base,
    all_gather_coalesced,
    all_gather_in_manager,
    gather,
)
MOVES = MIRRORED_MOVES | table(broadcast, scatter, all_to_all_single, all_to_all_split, all_to_all)
POINT_TO_POINT = table(send_recv, isend_irecv, recv_any, batch_isend_irecv)
MIRRORED_OBJECTS = table(all_gather_object, gather_object)
OBJECTS = MIRRORED_OBJECTS | table(broadcast_object_list, scatter_object_list, object_ring)
BARRIERS = table(barrier, monitored_barrier)
MIRRORED_FUNCTIONAL = table(functional_all_reduce, functional_all_gather, functional_coalesced)
FUNCTIONAL = MIRRORED_FUNCTIONAL | table(
    functional_reduce_scatter, functional_broadcast, functional_all_to_all
)


@dataclass(frozen=True)
class Outcome:
    """What a call did, in a form that compares and pickles."""

    error: str = ""  # the type of the exception
    text: str = ""  # the first line of its message
    value: Any = None

    def __str__(self) -> str:
        return f"{self.error}: {self.text}" if self.error else str(self.value)


_WHERE_LOGGED = re.compile(r"\[F\d+ [^\]]*\]")  # the time and line of a failed check of glog


def outcome(function: Callable[..., Any], *args: Any) -> Outcome:
    try:
        return Outcome(value=frozen(function(*args)))
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        return Outcome(type(error).__name__, _WHERE_LOGGED.sub("", first_line))


def frozen(value: Any) -> Any:
    """The value with tensors as dtype, shape and bits: a NaN equals itself, -0 differs from 0."""
    if isinstance(value, torch.Tensor):
        dense = value.detach().contiguous()
        bits = bytes(dense.reshape(-1).view(torch.uint8).tolist()).hex()
        return (str(value.dtype), tuple(value.shape), tuple(value.stride()), bits)
    if isinstance(value, list | tuple):
        return [frozen(part) for part in value]
    return value


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings about names that torch deprecates, which both groups get."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
