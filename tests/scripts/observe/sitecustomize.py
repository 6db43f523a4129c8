# SPDX-License-Identifier: MIT
"""Watches a training script from inside each of its ranks. On PYTHONPATH, Python imports it first.

LOFI_TEST_OBSERVE=folder   each rank writes there
    steps.rank<r>.jsonl    after every step of an optimizer: its number, a digest of its parameters
    last.rank<r>.pt        at exit: the state dict of the last DDP model, as the last step left it
    ema.rank<r>.pt         at exit: the same of timm's ModelEma, where there is one
LOFI_TEST_NO_CUDA=1        a script that was written for CUDA finds stand-ins on the CPU
LOFI_TEST_SEED=number      seeds `random`, which some scripts leave to chance

Nothing here imports torch: the work is done once the script, or lofi, has imported it.
"""

import importlib.abc
import importlib.util
import os
import random
import sys


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls an action with a module as soon as that has been executed."""

    def __init__(self, actions):
        self.actions = actions
        self.searching = set()

    def find_spec(self, name, path=None, target=None):
        if name not in self.actions or name in self.searching:
            return None
        self.searching.add(name)  # the search below must pass this finder by
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching.discard(name)
        if spec is not None:
            spec.loader.exec_module = self._then(spec.loader.exec_module, self.actions[name])
        return spec

    @staticmethod
    def _then(execute, action):
        def exec_module(module):
            execute(module)
            action(module)

        return exec_module


class Copies:
    """Copies of what is in memory after each step, written at exit: the average comes between."""

    def __init__(self, path):
        import atexit

        self.path = path
        self.tensors = {}
        atexit.register(self.write)

    def take(self, torch, state):
        with torch.no_grad():
            for name, tensor in state.items():
                if name in self.tensors:
                    self.tensors[name].copy_(tensor)
                else:
                    self.tensors[name] = tensor.detach().clone()

    def write(self):
        if not self.tensors:
            return
        import torch

        with open(self.path, "wb") as file:  # lofi watches for files that are saved by name
            torch.save(self.tensors, file)


def _path(kind):
    return os.path.join(os.environ["LOFI_TEST_OBSERVE"], kind.format(os.environ["RANK"]))


def _observe_steps(torch):
    import hashlib
    import json

    steps = open(_path("steps.rank{}.jsonl"), "w", buffering=1)  # noqa: SIM115 - for good
    last = Copies(_path("last.rank{}.pt"))
    wrapped = []
    count = 0

    def note(optimizer, args, kwargs):
        nonlocal count
        count += 1
        digest = hashlib.sha256()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                digest.update(parameter.detach().cpu().contiguous().reshape(-1).numpy())
        steps.write(json.dumps({"step": count, "digest": digest.hexdigest()}) + "\n")
        if wrapped:
            last.take(torch, wrapped[-1].state_dict())

    def remember(original, self, module, *args, **kwargs):
        original(self, module, *args, **kwargs)
        wrapped.append(module)

    _wrap(torch.nn.parallel.DistributedDataParallel, "__init__", remember)
    optimizers = sys.modules["torch.optim.optimizer"]  # torch.optim has no such name
    optimizers.register_optimizer_step_post_hook(note)


def _observe_ema(model_ema):
    import torch

    copies = Copies(_path("ema.rank{}.pt"))

    def update(original, self, model):
        original(self, model)
        copies.take(torch, self.ema.state_dict())

    _wrap(model_ema.ModelEma, "update", update)


def _wrap(owner, name, function):
    import functools

    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args, **kwargs):
        return function(original, *args, **kwargs)

    setattr(owner, name, call)


def _stand_in_for_cuda(torch):
    # One function for each: torch._dynamo does not take one under two names.
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None

    def on_cpu(original, *args, **kwargs):
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return original(*args, **kwargs)

    for factory in ("tensor", "full"):
        _wrap(torch, factory, on_cpu)

    def without_devices(original, self, module, device_ids=None, *args, **kwargs):
        original(self, module, None, *args, **kwargs)

    _wrap(torch.nn.parallel.DistributedDataParallel, "__init__", without_devices)

    def not_nccl(original, *args, **kwargs):
        # Under the launcher the script names what it likes: that is what is tested.
        if "LOFI_LAUNCHED" not in os.environ and kwargs.get("backend") == "nccl":
            kwargs["backend"] = "gloo"
        return original(*args, **kwargs)

    _wrap(torch.distributed, "init_process_group", not_nccl)


def _prepare(torch):
    if os.environ.get("LOFI_TEST_NO_CUDA") == "1":
        _stand_in_for_cuda(torch)
    if _is_observed():
        _observe_steps(torch)


def _is_observed():
    return "LOFI_TEST_OBSERVE" in os.environ and "RANK" in os.environ


_actions = {"torch": _prepare}
if _is_observed():
    _actions["timm.utils.model_ema"] = _observe_ema
sys.meta_path.insert(0, _AfterImport(_actions))
if "LOFI_TEST_SEED" in os.environ:
    random.seed(int(os.environ["LOFI_TEST_SEED"]) + int(os.environ.get("RANK", "0")))
