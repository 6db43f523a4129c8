# SPDX-License-Identifier: MIT
"""Checkpoints in files, averaged: safetensors by liblofi alone, torch's formats through torch.

Files of torch.save are read without running code (weights_only=True), by mapping, so that only the
result is in memory. (Those of torch before 1.6 can't be mapped and are read whole. Folders of
torch.distributed.checkpoint are read by torch's own converter, which runs what their metadata hold:
they have to be trusted.) Tensors are found by their path through dicts, lists and tuples
("model.fc.bias", "optimizer.state.0.exp_avg"); what is no tensor comes from the first file.
"""

import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from lofi.files import adapters
from lofi.files import names as naming
from lofi.files.contents import save, tensors_of, with_tensors
from lofi.files.numbers import Findings, Mix
from lofi.files.reading import load
from lofi.job.log import log
from lofi.job.native import _C

INTEGERS = ("equal", "first")
STATISTICS = ("running_mean", "running_var")  # of BatchNorm
# `lofi average --dtype` takes the same names; the values are torch's spelling.
DTYPES = {
    "f64": "float64", "fp64": "float64", "f32": "float32", "fp32": "float32",
    "f16": "float16", "fp16": "float16", "bf16": "bfloat16",
    "f8_e4m3": "float8_e4m3fn", "fp8": "float8_e4m3fn", "f8_e5m2": "float8_e5m2",
}  # fmt: skip


def average_checkpoints(
    paths: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    weights: Sequence[float] | None = None,
    base: str | os.PathLike | None = None,
    alpha: float | None = None,
    normalize: bool = True,
    only: str | None = None,
    skip: str | None = None,
    dtype: str | torch.dtype | None = None,
    integers: str = "equal",
    strip_prefix: str | Sequence[str] = (),
    lora: str | None = None,
    force: bool = False,
    force_config: bool = False,
) -> None:
    """Write the average of checkpoints to `out`, in the format of the first (tensors by name, of
    torch.save, also to a .safetensors file).

    safetensors files and Hugging Face folders, as `lofi average` takes them; files of torch.save
    (.pt, .pth, .bin; nested as they may be); folders of torch.distributed.checkpoint. The same bits
    as `finalize_average`: a float64 sum in the order of `paths`, rounded once to the dtype.

    weights: one for each path; equal by default.
    base, alpha: (1 - alpha) * base + alpha * average, also rounded once. One needs the other.
    normalize: False takes weights for coefficients (task arithmetic), which may be negative and are
        not divided by their sum W: w0 * x0 + w1 * x1 ..., and with a base
        (1 - alpha * W) * base + alpha * (w0 * x0 + w1 * x1 ...).
    only, skip: regular expressions (POSIX extended) searched in the names of tensors; what is not
        selected comes from the first path.
    dtype: of the output's real floating-point tensors (torch.bfloat16, "bfloat16" or "bf16", ...);
        by default each one's own.
    integers: "equal", integers and booleans that differ are an error, or "first".
    strip_prefix: one or several beginnings of names ("module." of DDP, "_orig_mod." of
        torch.compile), each taken off in the inputs (in nested files: the dicts of tensors) all of
        whose names have it; one that is nowhere is an error. `only` and `skip` see what is left.
    lora: what to make of LoRA adapters (folders that PEFT saved as safetensors). None averages them
        factor by factor, which is not the average of what they do: a warning says so, and scales or
        ranks that differ are an error. "exact" averages the products of the factors, in an adapter
        whose rank is the sum of theirs; "svd=8" writes the best approximation of rank 8 to that.
    force: replace an output that exists; of a folder, the checkpoint in it: what else lies there
        stays.
    force_config: average Hugging Face folders although their configs or tokenizers differ in what
        changes a model's output; the first's are taken.
    Quantised weights (codes with scales) are an error: the mean of codes is not the code of a mean.
    A tensor that one input lacks is no error if it is tied in another: equal, bit for bit, to one
    that both have. NaN, infinities and averages beyond the range of their dtype are written, and
    warned of; what has the factor 0 (a weight, alpha) is left out of the sum with them.

    TypeError, ValueError, FileExistsError or RuntimeError say what is wrong; nothing is written
    then, nor after Ctrl-C.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise TypeError(f"lofi: paths is {paths!r}: it has to be a list of paths")
    names = [os.fspath(path) for path in paths]
    if not names:
        raise ValueError("lofi: an average of no checkpoints")
    if integers not in INTEGERS:
        raise ValueError(f"lofi: integers is {integers!r}; use one of {', '.join(INTEGERS)}")
    if weights is not None and len(weights) != len(names):
        raise ValueError(f"lofi: {len(names)} checkpoints need as many weights, not {len(weights)}")
    if (base is None) != (alpha is None):
        raise ValueError("lofi: base and alpha belong together: give both, or neither")
    if not normalize and weights is None:
        raise ValueError("lofi: normalize=False is about weights: give them")
    alpha = 1.0 if alpha is None else alpha
    prefixes = [strip_prefix] if isinstance(strip_prefix, str) else list(strip_prefix)
    if any(not isinstance(prefix, str) or not prefix for prefix in prefixes):
        raise ValueError(f"lofi: strip_prefix is {strip_prefix!r}: give texts that are not empty")
    for word, expression in (("only", only), ("skip", skip)):
        if expression and "\0" in expression:
            raise ValueError(f"lofi: {word} has a NUL in it")
    only, skip = only or None, skip or None
    if dtype is not None:
        word = str(dtype).removeprefix("torch.")
        dtype = DTYPES.get(word.lower(), word.lower())
    target, origin = os.fspath(out), None if base is None else os.fspath(base)
    inputs = [*names, *([origin] if origin else [])]
    how: dict[str, Any] = {
        "weights": weights,
        "alpha": alpha,
        "raw_weights": not normalize,
        "only": only,
        "skip": skip,
        "dtype": dtype,
        "strip_prefixes": prefixes,
    }
    for path in inputs:
        if not os.path.lexists(path):
            raise FileNotFoundError(f"lofi: {path}: there is no such file or folder")
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise FileNotFoundError(f"lofi: {target}: there is no folder to write it to")
    first = kind_of(names[0])
    if first == "safetensors" and target.endswith((".pt", ".pth", ".bin")):
        raise ValueError(
            f"lofi: {target} is the name of a file of torch.save, the inputs are {first}"
        )
    for path in inputs:
        if kind_of(path) != first:
            raise ValueError(f"lofi: {names[0]} is {first}, {path} is {kind_of(path)}")
    if first == "safetensors":
        _C.average_files(
            names,
            target,
            base=origin,
            integers_first=integers == "first",
            force=force,
            force_config=force_config,
            lora=lora,
            **how,
        )
        return
    if lora is not None:
        raise ValueError(
            f"lofi: lora is for adapters in safetensors files, and {names[0]} is {first}"
        )
    _refuse_target(target, inputs, force, first)
    if first == "a folder of torch.distributed.checkpoint":
        _average_sharded(names, target, origin, force, integers=integers, **how)
    else:
        if target.endswith(".safetensors") and not _is_flat(load(names[0])):
            raise ValueError(
                f"lofi: {names[0]} holds more than tensors by name, which {target} can't: give the "
                "output another ending, such as .pt"
            )
        content = _average_pickled(names, origin, integers=integers, **how)
        save(content, target, like=target if os.path.exists(target) else None)


def _is_flat(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )


def kind_of(path: str) -> str:
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, ".metadata")):
            return "a folder of torch.distributed.checkpoint"
        return "safetensors"
    if path.endswith((".safetensors", ".json")):
        return "safetensors"
    return "a file of torch.save"


def _refuse_target(target: str, inputs: list[str], force: bool, kind: str) -> None:
    if target.endswith(os.sep) and not kind.startswith("a folder"):
        raise ValueError(f"lofi: {target} names a folder, and the output will be {kind}")
    if not os.path.lexists(target):
        return
    real = os.path.realpath(target)
    for path in inputs:
        if os.path.realpath(path) == real or os.path.realpath(path).startswith(real + os.sep):
            raise ValueError(f"lofi: {target} is or holds the input {path}: write elsewhere")
    if not force:
        raise FileExistsError(f"lofi: {target} exists; force=True replaces it")
    if not (os.path.isfile(target) or os.path.isdir(target)) or kind_of(target) != kind:
        raise ValueError(f"lofi: {target} is not {kind}, and is not replaced by one")
    if os.path.isdir(target) and os.path.islink(target.rstrip(os.sep)):
        raise ValueError(f"lofi: {target} is a link to a folder: name the folder itself")


def _average_pickled(
    paths: list[str],
    base: str | None,
    *,
    weights: Sequence[float] | None,
    alpha: float,
    raw_weights: bool,
    only: str | None,
    skip: str | None,
    dtype: str | None,
    integers: str,
    strip_prefixes: list[str],
    labels: list[str] | None = None,
) -> Any:
    """`labels`: what errors call the paths, and the base last."""
    paths = [*paths, *([base] if base else [])]
    labels = labels or paths
    contents = [load(path) for path in paths]
    naming.strip(contents, strip_prefixes)
    found = [_named(content, label) for content, label in zip(contents, labels, strict=True)]
    if not found[0]:
        raise ValueError(f"lofi: {labels[0]} has no tensors: there is nothing to average")
    selected = [_selected(tensors, only, skip) for tensors in found]
    if not selected[0]:
        raise ValueError(
            f"lofi: {labels[0]}: none of its tensors is selected: "
            f"only is {only!r}, skip is {skip!r}"
        )
    for tensors, chosen, label in zip(found, selected, labels, strict=True):
        _refuse_codes(tensors, chosen, label)
    naming.match(contents, found, selected, labels)
    mix = Mix(len(paths) - bool(base), weights, base is not None, alpha, raw_weights)
    findings = Findings(labels, mix)
    averaged: dict[tuple, torch.Tensor] = {}  # by where the data lie in all files: tied ones once
    put: dict[str, torch.Tensor] = {}
    statistics = 0
    for name, tensor in found[0].items():
        if name not in selected[0]:
            continue
        same = [_tensor_of(name, tensor, of, at) for of, at in zip(found, labels, strict=True)]
        if not _has_mean(tensor):
            if integers == "equal":
                _refuse_different(name, same, labels)
            continue
        parts = list(itertools.compress(same, mix.mixed))
        statistics += name.rpartition(".")[2] in STATISTICS and _are_different(parts)
        key = tuple(_place(one) for one in same)
        if key not in averaged:
            averaged[key] = _average(name, same, labels, findings, dtype)
        put[name] = averaged[key]
    findings.tell()
    adapters.warn_of_mean(found, selected[0], labels[0])
    if statistics:
        log(
            "warn",
            f"{statistics} running statistics of BatchNorm (running_mean, running_var) are "
            "averages now, and not those of the averaged weights: recompute them on data "
            "(torch.optim.swa_utils.update_bn)",
        )
    return with_tensors(contents[0], put)


def _selected(names: Iterable[str], only: str | None, skip: str | None) -> set[str]:
    names = list(names)
    if only is None and skip is None:
        return set(names)
    return set(itertools.compress(names, _C.select_names(only, skip, names)))


_DTYPES_OF_CODES = {
    torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip


def _refuse_codes(tensors: dict[str, torch.Tensor], selected: set[str], label: str) -> None:
    names = list(tensors)
    dtypes = [_DTYPES_OF_CODES.get(tensors[name].dtype, "F32") for name in names]
    pair = _C.find_quantised(names, dtypes)
    if pair is None:
        return
    codes, scales = names[pair[0]], names[pair[1]]
    if codes in selected or scales in selected:
        raise ValueError(
            f"lofi: {codes} of {label} holds codes of quantised weights, whose scales are in "
            f"{scales}: the mean of codes is not the code of a mean. Dequantise the checkpoints "
            "first, average them, and quantise the average"
        )


def _has_mean(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _place(tensor: torch.Tensor) -> tuple:
    return (
        tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape,
        tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg(),
    )  # fmt: skip


def _named(content: Any, label: str) -> dict[str, torch.Tensor]:
    try:
        pairs = list(tensors_of(content, others=True))
    except RecursionError:
        raise ValueError(f"lofi: {label} holds something that contains itself") from None
    for name, tensor in pairs:
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"lofi: {name} of {label} is a tensor without dense data")
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"lofi: {label} has two tensors whose path is {twice}")
    return found


def _tensor_of(
    name: str, first: torch.Tensor, found: dict[str, torch.Tensor], path: str
) -> torch.Tensor:
    tensor = found[name]
    if _has_mean(tensor) != _has_mean(first):
        raise ValueError(f"lofi: {name} is {tensor.dtype} in {path}, {first.dtype} in the first")
    if tensor.shape != first.shape:
        raise ValueError(
            f"lofi: {name} is {list(tensor.shape)} in {path}, {list(first.shape)} in the first file"
        )
    return tensor


def _refuse_different(name: str, tensors: list[torch.Tensor], paths: list[str]) -> None:
    for tensor, path in zip(tensors, paths, strict=True):
        if _are_different([tensors[0], tensor]):
            raise ValueError(
                f"lofi: {name} holds {tensors[0].dtype}, which has no mean, and differs between "
                f"{paths[0]} and {path}: integers='first' takes the first's"
            )


def _are_different(tensors: list[torch.Tensor]) -> bool:
    first, *others = tensors
    return any(one.dtype != first.dtype or not torch.equal(one, first) for one in others)


def _average(
    name: str,
    tensors: list[torch.Tensor],
    labels: list[str],
    findings: Findings,
    dtype: str | None,
) -> torch.Tensor:
    is_complex = any(tensor.is_complex() for tensor in tensors)
    if is_complex and len({tensor.dtype for tensor in tensors}) > 1:
        raise ValueError(f"lofi: {name} is complex: its dtype must be the same everywhere")
    wanted = getattr(torch, dtype, None) if dtype and not is_complex else tensors[0].dtype
    if not isinstance(wanted, torch.dtype) or not (wanted.is_floating_point or wanted.is_complex):
        raise ValueError(f"lofi: dtype is {dtype!r}; use a name such as 'bfloat16'")
    out = torch.empty(tensors[0].shape, dtype=wanted)
    inputs = [tensor.resolve_conj().resolve_neg().contiguous() for tensor in tensors]
    try:
        findings.mix.run(out, inputs)
    except ValueError as error:
        raise ValueError(
            f"lofi: {name} of {labels[0]} and others: {str(error).removeprefix('lofi: ')}"
        ) from error
    findings.look(name, out, inputs)
    return out


def _average_sharded(
    names: list[str], target: str, base: str | None, is_forced: bool, **how: Any
) -> None:
    """torch's converter writes a file of torch.save for each folder, and these are averaged."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp

    labels = [*names, *([base] if base else [])]
    parent = os.path.dirname(os.path.abspath(target))
    with tempfile.TemporaryDirectory(dir=parent, prefix=".lofi-") as folder:
        files = []
        for number, name in enumerate(labels):
            files.append(os.path.join(folder, f"{number}.pt"))
            try:
                dcp_to_torch_save(name, files[-1])
            except Exception as error:
                told = str(error).split("\n")[0]
                raise ValueError(f"lofi: {name} can't be read: {told}") from error
        origin = files.pop() if base else None
        whole, made = os.path.join(folder, "average.pt"), os.path.join(folder, "average")
        save(_average_pickled(files, origin, labels=labels, **how), whole)
        torch_save_to_dcp(whole, made)
        if is_forced and os.path.isdir(target):
            _replace_sharded(made, target.rstrip(os.sep), folder + "-old")
        else:
            _name_sharded(made, target, folder + "-old", is_forced)


def _name_sharded(made: str, target: str, old: str, is_forced: bool) -> None:
    """With force the target may have come meanwhile, of another process: the last one stays."""
    try:
        os.rename(made, target)
    except OSError:
        if not is_forced or not os.path.isdir(target):
            raise
        _replace_sharded(made, target.rstrip(os.sep), old)


def _replace_sharded(made: str, target: str, old: str) -> None:
    """Only the checkpoint in the folder is replaced: what else lies there moves to the new one by
    way of `old`, a free name. lofi__folder_merge does the same in C."""
    os.chmod(made, os.stat(target).st_mode & 0o7777 | 0o700)
    try:
        os.rename(target, old)
        os.rename(made, target)
    except BaseException:
        if not os.path.lexists(target):
            os.rename(old, target)
        raise
    try:
        _move_others(old, target)
    except OSError as error:
        raise RuntimeError(
            f"lofi: {target}: the average is complete, but what was there before is in {old} "
            f"still: {error}"
        ) from error


def _move_others(old: str, new: str) -> None:
    names, taken = os.listdir(old), os.listdir(new)
    replaced = {n for n in names if n == ".metadata" or n.endswith(".distcp") or n in taken}
    for name in names:
        if name not in replaced:
            os.rename(os.path.join(old, name), os.path.join(new, name))
    for name in replaced:
        os.unlink(os.path.join(old, name))
    os.rmdir(old)  # what was put there meanwhile makes this fail, and is kept
