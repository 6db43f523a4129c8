# SPDX-License-Identifier: MIT
"""The changes that lofi makes in torch, once, when the first lofi group is made.

Hooks sit on classes and modules, never on a user's objects; what they know of a model is kept in
tables by identity (lofi.job.job), so that deepcopy and pickle of a wrapped model stay clean. Every
hook calls the original unless a lofi group that spans nodes is involved.
"""

from lofi.hooks import c10d, dcp, ddp, fsdp, functional, objects, optimizer, refuse, view


def install() -> None:
    for module in (c10d, ddp, fsdp, functional, objects, optimizer, refuse, dcp, view):
        module.install()
