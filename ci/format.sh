#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Formatting and lint of the whole tree, with the versions that requirements-dev.txt pins.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
git ls-files '*.c' '*.h' '*.cpp' '*.hpp' '*.cu' ':!third_party' | xargs clang-format --dry-run --Werror
ruff check .
ruff format --check .
mypy
python ci/check_layers.py
python ci/check_imports.py
