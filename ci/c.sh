#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Everything about liblofi: two compilers, sanitizers, the kernels of 64-bit Arm in an emulator,
# exported symbols, layers, format, and programs against the installed library. Each build is in
# build/<name>.
#   ci/c.sh [gcc] [clang] [address] [thread] [fuzz] [arm] [install] [checks]   (all by default)
set -euo pipefail
cd "$(dirname "$0")/.."
generator=()
if command -v ninja > /dev/null; then generator=(-G Ninja); fi

# build NAME COMPILER [cmake arguments]
build() {
  local name=$1 compiler=$2
  shift 2
  echo "== $name"
  cmake -S . -B "build/$name" "${generator[@]}" -DCMAKE_C_COMPILER="$compiler" -DLOFI_TESTS=ON \
    -DLOFI_WERROR=ON "$@" > /dev/null
  cmake --build "build/$name" --parallel "${JOBS:-2}" --target "${TARGET:-all}"
}

run_tests() {
  local name=$1
  shift
  ctest --test-dir "build/$name" --output-on-failure --parallel "${JOBS:-2}" "$@"
}

run_gcc() {
  build gcc gcc
  check_layers
  run_tests gcc
}

check_layers() {
  if command -v python3 > /dev/null; then python3 ci/check_layers.py build/gcc; fi
}

run_clang() {
  if ! command -v clang > /dev/null; then
    echo "== clang: skipped, it is not installed"
    return
  fi
  build clang clang -DLOFI_CUDA=OFF # as where there is no nvcc
  run_tests clang
}

run_address() {
  build address gcc -DLOFI_SANITIZE=address -DCMAKE_BUILD_TYPE=RelWithDebInfo
  run_tests address
}

# The tests that start threads.
run_thread() {
  build thread gcc -DLOFI_SANITIZE=thread -DCMAKE_BUILD_TYPE=RelWithDebInfo
  run_tests thread -R '^(session|topology|status|comm|comm_faults|comm_threads|average|ckpt|fake_cuda|cuda|nccl|nccl_faults|nccl_average)$'
}

# On Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user. Linked statically, so that the
# emulator need not find a C library.
run_arm() {
  if ! command -v aarch64-linux-gnu-gcc > /dev/null || ! command -v qemu-aarch64 > /dev/null; then
    echo "== arm: skipped, aarch64-linux-gnu-gcc or qemu-aarch64 is not installed"
    return
  fi
  build arm aarch64-linux-gnu-gcc -DLOFI_CLI=OFF -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_EXE_LINKER_FLAGS=-static \
    -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64
  run_tests arm -R '^(kernels|float8|fold|digest)$'
}

# The parsers of files, for FUZZ_SECONDS from the corpus on. On Debian: clang, libclang-rt-14-dev.
run_fuzz() {
  local probe
  probe=$(mktemp -d)
  echo 'int LLVMFuzzerTestOneInput(void); int LLVMFuzzerTestOneInput(void) { return 0; }' \
    > "$probe/probe.c"
  if ! clang -fsanitize=fuzzer,address "$probe/probe.c" -o "$probe/probe" 2> /dev/null; then
    echo '== fuzz: skipped, clang or its runtime for libFuzzer is not installed'
    rm -rf "$probe"
    return
  fi
  rm -rf "$probe"
  TARGET=fuzz_safetensors build fuzz clang -DLOFI_FUZZ=ON -DLOFI_TESTS=OFF \
    -DLOFI_SANITIZE=address -DCMAKE_BUILD_TYPE=RelWithDebInfo
  mkdir -p build/fuzz/found build/fuzz/artifacts
  build/fuzz/tests/fuzz/fuzz_safetensors "-max_total_time=${FUZZ_SECONDS:-20}" -max_len=4096 \
    -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix=build/fuzz/artifacts/ build/fuzz/found tests/fuzz/corpus 2>&1 |
    tee build/fuzz/log | tail -n 5
}

consumer() {
  cat << 'SOURCE'
#include <lofi.h>
#include <stdio.h>

int main(void)
{
    float a[2] = {1, 2}, b[2] = {3, 6}, out[2] = {0, 0};
    const void *in[2] = {a, b};
    lofi_call call = LOFI_CALL_INIT;
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;

    if (call.size != sizeof call || options.world_size != 1) return 1;
    if (lofi_mean(LOFI_F32, out, in, NULL, 2, 2) != LOFI_OK) return 1;
    if (lofi_mean(LOFI_F32, out, in, NULL, 0, 2) != LOFI_INVALID) return 1;
    printf("%s: %g %g\n", lofi_build_info(), (double)out[0], (double)out[1]);
    return out[0] == 2 && out[1] == 4 ? 0 : 1;
}
SOURCE
}

run_install() {
  local prefix
  build gcc gcc
  echo '== install'
  prefix=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$prefix'" EXIT
  cmake --install build/gcc --prefix "$prefix" > /dev/null
  local library
  library=$(dirname "$(find "$prefix" -name liblofi.so)")
  consumer > "$prefix/consumer.c"
  cp "$prefix/consumer.c" "$prefix/consumer.cpp"
  local flags=(-Wall -Wextra -Wpedantic -Werror "-I$prefix/include" "-L$library"
    "-Wl,-rpath,$library")
  gcc -std=c11 "${flags[@]}" "$prefix/consumer.c" -o "$prefix/consumer_c" -llofi
  g++ -std=c++17 "${flags[@]}" "$prefix/consumer.cpp" -o "$prefix/consumer_cpp" -llofi
  "$prefix/consumer_c"
  "$prefix/consumer_cpp"
  # Each part of lofi.h stands by itself.
  local header
  for header in "$prefix"/include/lofi/*.h; do
    echo "#include \"lofi/$(basename "$header")\"" > "$prefix/part.c"
    cp "$prefix/part.c" "$prefix/part.cpp"
    gcc -std=c11 "${flags[@]}" -fsyntax-only "$prefix/part.c"
    g++ -std=c++17 "${flags[@]}" -fsyntax-only "$prefix/part.cpp"
  done
  # The files for pkg-config and CMake find the library where it was installed.
  if command -v pkg-config > /dev/null; then
    local found
    read -ra found <<< "$(PKG_CONFIG_PATH="$library/pkgconfig" pkg-config --cflags --libs lofi)"
    gcc -std=c11 "$prefix/consumer.c" -o "$prefix/consumer_pc" "${found[@]}"
  fi
  mkdir "$prefix/project"
  cat > "$prefix/project/CMakeLists.txt" << 'PROJECT'
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES C)
find_package(lofi 0.1 REQUIRED)
add_executable(consumer ../consumer.c)
target_link_libraries(consumer PRIVATE lofi::lofi)
PROJECT
  cmake -S "$prefix/project" -B "$prefix/project/build" -DCMAKE_PREFIX_PATH="$prefix" > /dev/null
  cmake --build "$prefix/project/build" > /dev/null
  "$prefix/project/build/consumer"
}

run_checks() {
  [ -e build/gcc/liblofi.so ] || build gcc gcc
  echo '== checks'
  ci/check_symbols.sh build/gcc/liblofi.so
  check_layers
  # One version: other ones format differently.
  if command -v clang-format > /dev/null && clang-format --version | grep -q 'version 14'; then
    find c_api tests/c tests/fuzz \( -name '*.[ch]' -o -name '*.cu' \) -print0 | xargs -0 clang-format --dry-run --Werror
    echo 'formatted'
  fi
}

if [ "$#" -eq 0 ]; then set -- gcc clang address thread fuzz arm install checks; fi
for step in "$@"; do
  case $step in
    gcc | clang | address | thread | fuzz | arm | install | checks) "run_$step" ;;
    *)
      echo "ci/c.sh knows no step '$step': choose gcc, clang, address, thread, fuzz, arm," \
        'install, checks' >&2
      exit 2
      ;;
  esac
done
