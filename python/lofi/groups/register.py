# SPDX-License-Identifier: MIT
"""The name "lofi" in torch.distributed. Runs inside `import torch`: cheap, silent, idempotent."""

import os
import sys
from typing import Any

NAME = "lofi"
# The launcher sets this variable, so that processes of the script (mp.spawn) are taken over when
# they import torch.
LAUNCHED = "LOFI_LAUNCHED"


def _create(options: Any, backend_options: Any = None) -> Any:
    from lofi.groups.create import create

    return create(options, backend_options)


def register() -> None:
    """Make backend "lofi" known to torch.distributed. Patches nothing, loads no native code."""
    import torch.distributed as dist

    if not dist.is_available() or NAME.upper() in dist.Backend._plugins:
        return
    dist.Backend.register_backend(NAME, _create, extended_api=True, devices=["cpu", "cuda"])


def autoload() -> None:
    """Entry point of group torch.backends. An exception here would break `import torch`."""
    try:
        register()
        if os.environ.get(LAUNCHED):
            from lofi.features import take_over

            take_over()
    except Exception as error:
        print(f"lofi: could not register with torch: {error!r}", file=sys.stderr)
