# SPDX-License-Identifier: MIT
"""Builds lofi._C and the program lofi with cmake, against the torch of the building environment."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PROGRAM = "lofi"


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


def build(target: str) -> Path:
    """Build one target of cmake; the folder of the build."""
    if shutil.which("cmake") is None:
        sys.exit("lofi: cmake is needed to build (apt-get install cmake g++)")
    torch_dir, torch_version = torch_facts()
    # One folder for each pair of Python and torch, kept: a second build compiles what changed.
    folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch_version}"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder),
        "-DCMAKE_BUILD_TYPE=Release", "-DLOFI_TORCH=ON", "-DLOFI_TESTS=OFF", "-DLOFI_CLI=OFF",
        f"-DLOFI_TORCH_DIR={torch_dir}",
        f"-DLOFI_PYTHON_INCLUDE={sysconfig.get_paths()['include']}",
        f"-DLOFI_EXT_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
    ]  # fmt: skip
    if shutil.which("ninja") and not (folder / "Makefile").exists():
        configure += ["-G", "Ninja"]
    if shutil.which("ccache"):
        configure += ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
    subprocess.run(configure, check=True)
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
    command = ["cmake", "--build", str(folder), "--parallel", jobs, "--target", target]
    subprocess.run(command, check=True)
    return folder


def put(source: Path, target: Path) -> None:
    """The target is replaced, not written into: a running process may have the old one mapped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".new")
    shutil.copy2(source, temporary)
    temporary.replace(target)


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        put(build("lofi_c10d") / "backend" / target.name, target)


class BuildProgram(Command):
    """In place of build_scripts, which takes scripts for text. pip puts what is built here where it
    puts the scripts of other packages: on PATH."""

    def initialize_options(self) -> None:
        self.build_dir: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_scripts", "build_dir"))

    def run(self) -> None:
        assert self.build_dir is not None
        put(build("lofi_program") / "program" / PROGRAM, Path(self.build_dir) / PROGRAM)

    def get_source_files(self) -> list[str]:
        return []


setup(
    ext_modules=[Extension("lofi._C", [])],
    scripts=[PROGRAM],
    cmdclass={"build_ext": BuildExtension, "build_scripts": BuildProgram},
)
