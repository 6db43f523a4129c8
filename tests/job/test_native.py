# SPDX-License-Identifier: MIT
"""The native module: its stub says what it offers, and it refuses words that it does not know."""

import ast
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lofi
import pytest
import torch.distributed as dist
from lofi.job.native import _C

STUB = Path(lofi.__file__).parent / "_C.pyi"


def _stubbed() -> set[str]:
    names = set()
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
    return names


@pytest.mark.quick
def test_the_stub_lists_what_the_module_offers():
    assert _stubbed() == {name for name in vars(_C) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("call", "arguments", "known"),
    [
        (_C.event, (5,), "event 5: .* 0 to 4"),
        (_C.event, (-1,), "event -1"),
        (_C.push_scope, (2,), "scope 2: .* 0 to 1"),
        (_C.set_issuer, (3,), "issuer 3: .* 0 to 2"),
        (_C.count, (2, 0, 0), "scope 2"),
        (_C.count, (0, 6, 0), "purpose 6: .* 0 to 5"),
        (_C.count, (0, -1, 0), "purpose -1"),
        (_C.log, (5, "never written"), "log level 5: .* 0 to 4"),
    ],
)
def test_numbers_outside_of_an_enumeration_are_refused(call, arguments, known):
    before = _C.stats()
    with pytest.raises(ValueError, match=known):
        call(*arguments)
    assert _C.stats() == before


@pytest.fixture
def backend():
    store, timeout = dist.HashStore(), timedelta(seconds=5)
    topology = _C.Topology(store, 0, 1, 0, "", "", timeout)
    made = []
    source = SimpleNamespace(make=lambda device, span: made.append((device, span)))
    backend = _C.BackendLofi(_C.Group(topology, []), source, timeout, "g", False, False)
    yield backend
    assert made == []  # nothing was made for a word that is not known


@pytest.mark.quick
@pytest.mark.parametrize("span", ["nodes", "World", ""])
def test_inner_refuses_unknown_ranks_and_lists_the_known(backend, span):
    with pytest.raises(ValueError, match="node, world or column"):
        backend.inner("cpu", span)


@pytest.mark.parametrize("device", ["gpu", "meta", "", "cpux"])
def test_unknown_devices_are_refused_and_the_known_listed(backend, device):
    with pytest.raises(ValueError, match="cpu or cuda"):
        backend.inner(device, "node")
    with pytest.raises(ValueError, match="cpu or cuda"):
        backend.release(device)
