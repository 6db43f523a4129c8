#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Includes point one way: python -> backend -> c_api/lofi.h -> comm -> transport -> cuda -> kernels, core;
# cli -> c_api/lofi.h -> ckpt -> kernels, core.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0

# refuse WHERE PATTERN WHY: no #include under WHERE may match PATTERN
refuse() {
  local found
  [ -d "$1" ] || return 0
  found=$(grep -rnE --include='*.c' --include='*.h' --include='*.cpp' --include='*.hpp' \
    "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]$2" "$1" || true)
  [ -n "$found" ] || return 0
  printf '%s\n%s: %s\n' "$found" "$1" "$3" >&2
  status=1
}

refuse c_api '(torch|ATen|c10|pybind11|Python)' 'liblofi knows neither torch nor Python'
refuse c_api '[^>"]*backend' 'liblofi does not know its callers'
refuse backend '(\.\./)*(c_api/)?(core|comm|kernels|cuda|transport|ckpt|rng|sched)/' \
  'the only header of liblofi is lofi.h'
refuse c_api/core '(comm|transport|kernels|cuda|ckpt|cli)/' 'core is below everything'
refuse c_api/kernels '(comm|transport|cuda|ckpt|cli)/' 'kernels do not know who calls them'
refuse c_api/cuda '(comm|transport|ckpt|cli)/' 'what runs on CUDA does not know who calls it'
refuse c_api/transport '(comm|ckpt|cli)/' 'transports do not know the communicator'
refuse c_api/comm '(ckpt|cli)/' 'communicators do not know of files'
refuse c_api/ckpt '(comm|transport|cuda|cli)/' 'files do not know of communicators'
refuse c_api/cli '(core|comm|kernels|cuda|transport|ckpt)/' 'the program uses lofi.h only'
[ "$status" -ne 0 ] || echo 'includes point one way'
exit "$status"
