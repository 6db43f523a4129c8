# SPDX-License-Identifier: MIT
import os
import tempfile

import pytest


@pytest.fixture(autouse=True, scope="session")
def _temporary_files(tmp_path_factory):
    """What the tests' programs leave in the folder for temporary files (torchrun: one folder a
    run) goes when pytest's own folder goes: with the last test, if all pass."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in list(os.environ):
        if name.startswith("LOFI_") and not name.startswith("LOFI_TEST_"):
            monkeypatch.delenv(name)
