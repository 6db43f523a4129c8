#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Compiles the backend against the headers of every supported release of torch. Downloads one wheel
# a release (about 1 GB each) into a temporary folder; run it by hand when backend/ changes.
#   ci/torch_versions.sh [version ...]
set -euo pipefail
cd "$(dirname "$0")/.."
versions=("$@")
[ "${#versions[@]}" -gt 0 ] || versions=(2.11.0 2.12.1 2.13.0 2.14.1 2.15.0)
python=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for version in "${versions[@]}"; do
    echo "== torch $version"
    python3 -m pip download --quiet --no-deps --dest "$work" "torch==$version"
    python3 - "$work"/torch-*.whl "$work/$version" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    headers = [n for n in wheel.namelist() if n.startswith("torch/include/")]
    wheel.extractall(sys.argv[2], headers)
PYTHON
    rm "$work"/torch-*.whl
    include="$work/$version/torch/include"
    for source in backend/*.cpp backend/bind/*.cpp; do
        g++ -std=c++20 -fsyntax-only -Wall -Wextra -Wno-unused-parameter -Werror -Ic_api -Ibackend \
            -isystem "$include" -isystem "$include/torch/csrc/api/include" -isystem "$python" \
            -DTORCH_EXTENSION_NAME=_C "$source"
    done
    rm -rf "${work:?}/$version"
done
