# SPDX-License-Identifier: MIT
"""Nodes on one machine, in network namespaces: netns.py makes them, jobs.py runs on them."""

from pathlib import Path

WORKERS = Path(__file__).resolve().parent / "workers"
