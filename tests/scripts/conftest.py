# SPDX-License-Identifier: MIT
import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside():
    """The fixture of all tests, made to do nothing: LOFI_EVAL reaches the scripts, and
    launch.py leaves the other settings out."""
