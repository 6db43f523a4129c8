# SPDX-License-Identifier: MIT
"""Broken and malicious checkpoints.

    python tests/hostile/corpus.py FOLDER     write them all

Each case is a name, files by name (a text is the target of a link), which of them to open, and a
part of the sentence that refuses it.
"""

import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

DATA = bytes(range(24))


@dataclass
class Case:
    name: str
    files: dict[str, bytes | str]
    sentence: str
    target: str = "model.safetensors"


def entry(dtype="F32", shape=(2, 3), begin=0, end=24) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def framed(header: bytes, data: bytes = DATA, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def file_of(header, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return framed(text, data)


GOOD = file_of({"__metadata__": {"format": "pt"}, "w": entry()})


def one(name, header, sentence, data=DATA) -> Case:
    return Case(name, {"model.safetensors": file_of(header, data)}, sentence)


def lengths() -> list[Case]:
    header = json.dumps({"w": entry()}).encode()
    cases = [Case("empty", {"model.safetensors": b""}, "too few")]
    for name, length in {
        "2_63": 1 << 63, "2_64": (1 << 64) - 1, "2_32": 1 << 32, "cap": 100_000_001,
        "file": len(header) + len(DATA) + 1,
    }.items():  # fmt: skip
        content = framed(header, length=length)
        cases.append(Case(f"length_{name}", {"model.safetensors": content}, "header is said"))
    for name, length in {"0": 0, "1": 1, "short": len(header) - 1}.items():
        content = framed(header, length=length)
        cases.append(Case(f"length_{name}", {"model.safetensors": content}, "JSON"))
    cases.append(
        Case("length_long", {"model.safetensors": framed(header, length=len(header) + 1)}, "JSON")
    )
    return cases


def truncated() -> list[Case]:
    return [
        Case(f"truncated_{n:03}", {"model.safetensors": GOOD[:n]}, "model.safetensors")
        for n in range(1, len(GOOD))
    ]


def offsets() -> list[Case]:
    a, b = entry("U8", (12,), 0, 12), entry("U8", (12,), 12, 24)
    return [
        one("overlap", {"a": a, "b": entry("U8", (13,), 11, 24)}, "'b' overlaps"),
        one("same_place", {"a": entry(), "b": entry()}, "overlaps"),
        one("gap", {"a": a, "b": entry("U8", (11,), 13, 24)}, "'b' leaves a gap"),
        one("not_from_zero", {"a": b}, "gap"),
        one("beyond", {"w": entry("F32", (3, 3), 0, 36)}, "'w' ends at byte 36"),
        one("far_beyond", {"w": entry("U8", (2**64 - 1,), 0, 2**64 - 1)}, "'w' ends at byte"),
        one("backwards", {"w": entry("F32", (2, 3), 24, 0)}, "end before they begin"),
        one("unused_data", {"a": a}, "behind its header"),
        one("negative", {"w": entry("F32", (2, 3), -24, 0)}, "data_offsets"),
        one("real", {"w": entry("F32", (2, 3), 0, 24.0)}, "data_offsets"),
        one("three", {"w": entry() | {"data_offsets": [0, 24, 24]}}, "data_offsets"),
        one("offset_2_64", {"w": entry("F32", (2, 3), 0, 2**64)}, "data_offsets"),
        one("wrong_size", {"w": entry("F32", (2, 2))}, "take 128 bits"),
    ]


def shapes() -> list[Case]:
    return [
        one("product", {"w": entry("F32", (2**32, 2**32))}, "'w' has a shape whose product"),
        one("product_then_zero", {"w": entry("F32", (2**63, 4, 0), 0, 0)}, "overflows", b""),
        one("bytes", {"w": entry("F32", (2**62,))}, "overflows"),
        one("wraps_to_24", {"w": entry("U8", (2**61 + 3,))}, "overflows"),
        one("shape_negative", {"w": entry("F32", (-2, -3))}, "whole numbers"),
        one("shape_real", {"w": entry("F32", (2.0, 3))}, "whole numbers"),
        one("shape_text", {"w": entry("F32", ("2", 3))}, "whole numbers"),
        one("shape_2_64", {"w": entry("F32", (2**64,))}, "whole numbers"),
        one("shape_none", {"w": entry() | {"shape": None}}, "not a list"),
        one("dtype", {"w": entry("F33")}, "'w' has the dtype 'F33'"),
        one("dtype_number", {"w": entry() | {"dtype": 32}}, "not a word"),
        one("odd_bits", {"w": entry("F4", (3,), 0, 2)}, "take 12 bits", b"ab"),
    ]


def texts() -> list[Case]:
    e = json.dumps(entry()).encode()
    zero = json.dumps(entry("U8", (0,), 0, 0)).encode()
    deep = b"[" * 100_000 + b"]" * 100_000
    return [
        one("double_name", b'{"w":' + e + b',"w":' + zero + b"}", "'w' twice"),
        one("double_key", b'{"w":{"dtype":"F32","dtype":"F32","shape":[6]}}', "'w' is not"),
        one("double_metadata", b'{"__metadata__":{},"__metadata__":{}}', "twice", b""),
        one("double_in_metadata", b'{"__metadata__":{"a":"","a":""}}', "'a' twice", b""),
        one("metadata_number", {"__metadata__": {"a": 1}, "w": entry()}, "other than text"),
        one("metadata_null_twice", b'{"__metadata__":null,"__metadata__":null}', "twice", b""),
        one("metadata_list", {"__metadata__": [], "w": entry()}, "not an object"),
        one("deep", b'{"w":' + deep + b"}", "'w' is not"),
        one("deep_shape", {"w": entry() | {"shape": json.loads("[" * 99 + "]" * 99)}}, "whole"),
        one("deep_objects", b'{"w":' * 50_000 + e + b"}" * 50_000, "'w' is not"),
        one("bad_utf8", b'{"w\xff":' + e + b"}", "UTF-8"),
        one("overlong_utf8", b'{"w\xc0\xaf":' + e + b"}", "UTF-8"),
        one("surrogate", b'{"w\\ud800":' + e + b"}", "JSON is not valid"),
        one("nul", b'{"w\\u0000x":' + e + b"}", "NUL"),
        one("bom", b"\xef\xbb\xbf" + json.dumps({"w": entry()}).encode(), "begin with '{'"),
        one("space_first", b" " + json.dumps({"w": entry()}).encode(), "begin with '{'"),
        one("list", b"[]", "begin with '{'", b""),
        one("after", b"{} {}", "JSON is not valid", b""),
        one("nul_padding", json.dumps({"w": entry()}).encode() + b"\0\0", "JSON is not valid"),
        one("comment", b"{/**/}", "JSON is not valid", b""),
        one("nan", b'{"w":NaN}', "JSON is not valid"),
        one("fourth_key", {"w": entry() | {"x": 1}}, "'w' is not"),
        one("no_entry", {"w": None}, "'w' is not"),
        one("escape", {"\x1b]0;x\x07": entry("F33")}, "'?]0;x?'"),
        one("long_name", {"w" * 100_000: entry("F33")}, "wwww"),
        Case("pickle", {"model.safetensors": b"\x80\x02}q\x00." * 99}, "torch.save"),
    ]


def index(shards: dict, **more) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": shards} | more).encode()


def indexes() -> list[Case]:
    name, good = "model.safetensors.index.json", {"a.safetensors": GOOD}
    other = file_of({"v": entry()})

    def case(title, content, sentence, **files) -> Case:
        everything = {name: content} | {k.replace("_s", ".s"): v for k, v in files.items()}
        return Case(title, everything, sentence, target="")

    both = {"a_safetensors": GOOD, "b_safetensors": GOOD}
    return [
        case("index_up", index({"w": "../../x"}), "'../../x'"),
        case("index_absolute", index({"w": "/etc/passwd"}), "'/etc/passwd'"),
        case("index_sub", index({"w": "sub/x.safetensors"}), "'sub/x.safetensors'"),
        case("index_dots", index({"w": ".."}), "'..'"),
        case("index_self", index({"w": name}), "model.safetensors.index.json"),
        case("index_nul", index({"w": "a.safetensors\0x"}), "other than names"),
        case("index_missing", index({"w": "a.safetensors"}), "a.safetensors"),
        case("index_number", index({"w": 1}), "other than names"),
        case("index_empty", index({}), "no weight_map"),
        case("index_list", b"[]", "not an object"),
        case("index_nothing", b"", "nothing"),
        case("index_utf8", b'{"weight_map":{"\xff":"a"}}', "UTF-8"),
        case("index_deep", b'{"weight_map":' + b"[" * 99999 + b"]" * 99999 + b"}", "deeper"),
        case("index_deep_metadata", index({"w": "a.safetensors"}, metadata=json.loads(
            "[" * 900 + "]" * 900)), "deeper", a_safetensors=GOOD),
        case("index_two_maps", b'{"weight_map":{"w":"a.safetensors"},"weight_map":'
             b'{"w":"b.safetensors"}}', "'weight_map' twice", **both),
        case("index_double", b'{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}', "twice"),
        case("index_lies", index({"v": "a.safetensors"}), "'v' is said", a_safetensors=GOOD),
        case("index_swapped", index({"w": "b.safetensors", "v": "a.safetensors"}), "is said",
             a_safetensors=GOOD, b_safetensors=other),
        case("index_in_two", index({"w": "a.safetensors", "v": "b.safetensors"}),
             "'w' is in a.safetensors and in b.safetensors", **both),
        case("index_silent", index({"w": "a.safetensors"}), "does not name the tensor 'v'",
             a_safetensors=file_of({"w": entry("U8", (12,), 0, 12),
                                    "v": entry("U8", (12,), 12, 24)})),
        case("shard_broken", index({"w": "a.safetensors"}), "a.safetensors",
             a_safetensors=GOOD[:-1]),
        case("shard_link", index({"w": "a.safetensors"}), "outside of its folder",
             a_safetensors="/etc/passwd"),
        case("shard_link_up", index({"w": "a.safetensors"}), "outside of its folder",
             a_safetensors="../good.safetensors"),
        case("shard_link_loop", index({"w": "a.safetensors"}), "a.safetensors",
             a_safetensors="a.safetensors"),
        Case("file_link", {"model.safetensors": "../good.safetensors"}, "outside", target=""),
        Case("several", good | {"b.safetensors": GOOD}, "several", target=""),
        Case("no_files", {"config.json": b"{}"}, "no safetensors file", target=""),
    ]  # fmt: skip


def all_cases() -> list[Case]:
    return [*lengths(), *truncated(), *offsets(), *shapes(), *texts(), *indexes()]


def write(case: Case, folder: Path) -> Path:
    """Makes the case's files in a folder of its own, with a good file beside it."""
    (folder / "good.safetensors").write_bytes(GOOD)
    home = folder / case.name
    home.mkdir()
    for name, content in case.files.items():
        if isinstance(content, str):
            (home / name).symlink_to(content)
        else:
            (home / name).write_bytes(content)
    return home / case.target


def seeds(folder: Path) -> None:
    """What the fuzzer begins with: headers by themselves, and indexes."""
    for case in all_cases():
        if case.name.startswith("truncated") or case.name in ("deep", "deep_objects", "long_name"):
            continue
        for name, content in case.files.items():
            if isinstance(content, str) or len(content) > 4096 or not content:
                continue
            (folder / f"{case.name}-{name.split('.')[-1]}").write_bytes(content)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    if "--seeds" in sys.argv:
        seeds(root)
    else:
        for each in all_cases():
            print(write(each, root))
