# SPDX-License-Identifier: MIT
"""Builds liblofi and lofi._C with cmake, against the torch of the building environment."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def torch_facts() -> tuple[Path, str]:
    """The torch package's folder and version, without importing it (3 s)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "lofi: torch is not installed in the environment that builds: install torch first, "
            "then run pip install --no-build-isolation ."
        )
    folder = Path(spec.origin).parent
    text = (folder / "version.py").read_text()
    version = text.split("__version__ = '")[1].split("'")[0]
    return folder, version


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if shutil.which("cmake") is None:
            sys.exit("lofi: cmake is needed to build (apt-get install cmake g++)")
        torch_dir, torch_version = torch_facts()
        # One folder for each pair of Python and torch, kept: a second build compiles what changed.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch_version}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build),
            "-DCMAKE_BUILD_TYPE=Release", "-DLOFI_TORCH=ON", "-DLOFI_TESTS=OFF", "-DLOFI_CLI=OFF",
            f"-DLOFI_TORCH_DIR={torch_dir}",
            f"-DLOFI_PYTHON_INCLUDE={sysconfig.get_paths()['include']}",
            f"-DLOFI_EXT_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
        ]  # fmt: skip
        if shutil.which("ninja") and not (build / "Makefile").exists():
            configure += ["-G", "Ninja"]
        if shutil.which("ccache"):
            configure += ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced, not written into: a running process may have the old one mapped.
        temporary = target.with_suffix(".new")
        shutil.copy2(build / "backend" / target.name, temporary)
        temporary.replace(target)


setup(ext_modules=[Extension("lofi._C", [])], cmdclass={"build_ext": CMakeBuild})
