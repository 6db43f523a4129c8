# SPDX-License-Identifier: MIT
"""What ci/gpu found, as JSON and as a table. Exit code 1 if anything failed or no GPU was there."""

import csv
import json
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
    if torch.distributed.is_nccl_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        found["driver"] = subprocess.run(
            query, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["driver"] = None
    return found


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "steps.txt").read_text().splitlines()
    named = (line.split("\t") for line in lines)
    return [{"step": n, "exit_code": int(code), "seconds": int(s)} for n, code, s in named]


def tests(path: Path) -> list[dict[str, Any]]:
    found = []
    for case in ET.parse(path).iter("testcase") if path.exists() else []:
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        result = "failed" if bad is not None else "skipped" if skipped is not None else "passed"
        why = bad if bad is not None else skipped
        found.append(
            {
                "test": f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}",
                "result": result,
                "seconds": float(case.get("time", 0)),
                "why": "" if why is None else why.get("message", "")[:500],
                "measured": {p.get("name"): p.get("value") for p in case.iter("property")},
            }
        )
    return found


def benchmark(folder: Path) -> list[dict[str, str]]:
    path = folder / "gpu_step.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"GPU {about['gpu']}, driver {about['driver']}, torch {about['torch']}, "
        f"NCCL {about.get('nccl')}, Python {about['python']}",
        "",
    ]
    for step in results["steps"]:
        code = step["exit_code"]
        how = "ok" if code == 0 else f"exit code {code}"
        lines.append(f"{step['step']:<22} {how:<14} {step['seconds']:>5} s")
    lines.append("")
    for test in results["tests"]:
        lines.append(f"{test['result']:<8} {test['seconds']:>7.1f} s  {test['test']}")
        if test["result"] != "passed":
            lines.append(f"         {test['why'].splitlines()[0] if test['why'] else ''}")
        lines += [f"         {name} = {value}" for name, value in test["measured"].items()]
    lines.append("")
    for row in results["benchmark"]:
        lines.append("  ".join(f"{name} {value}" for name, value in row.items() if value != ""))
    return "\n".join(lines) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    results = {
        "machine": machine(),
        "steps": steps(folder),
        "tests": tests(folder / "c_tests.xml") + tests(folder / "gpu_tests.xml"),
        "benchmark": benchmark(folder),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    (folder / "table.txt").write_text(text)
    print(text)
    ran = [test for test in results["tests"] if test["result"] != "skipped"]
    failed = [step for step in results["steps"] if step["exit_code"] != 0]
    if failed or not ran or results["machine"]["gpu"] is None:
        sys.exit(1)


if __name__ == "__main__":
    main()
