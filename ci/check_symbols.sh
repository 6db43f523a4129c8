#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What liblofi.so exports, what lofi.map lists and what lofi.h declares are the same functions.
#   ci/check_symbols.sh [path of liblofi.so]
set -euo pipefail
cd "$(dirname "$0")/.."
library=${1:-build/gcc/liblofi.so}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LC_ALL=C

nm --dynamic --defined-only "$library" | awk '$2 ~ /[A-Z]/ && $3 !~ /^LOFI_/ {print $3}' |
  sed 's/@.*//' | sort > "$work/exported"
sed -n 's/^ *\(lofi_[a-z0-9_]*\);$/\1/p' c_api/lofi.map | sort > "$work/listed"
# The preprocessor removes comments and line markers; a declaration is a name before "(" that is
# neither a macro nor the type in a pointer to a function.
${CC:-cc} -std=c11 -E -P -Ic_api c_api/lofi.h | tr '\n' ' ' | sed 's/typedef [^;{]*;//g' |
  grep -oP '\blofi_[a-z0-9_]* *\((?!\*)' | tr -d ' (' | sort -u > "$work/declared"

status=0
for other in listed declared; do
  if ! diff -u --label exported "$work/exported" --label "$other" "$work/$other"; then
    echo "the functions exported by $library are not the functions $other" >&2
    status=1
  fi
done
[ "$status" -ne 0 ] || echo "$(wc -l < "$work/exported") functions: exported, listed and declared"
exit "$status"
