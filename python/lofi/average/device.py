# SPDX-License-Identifier: MIT
"""Which tensors lie on a GPU, and their mean there: the one place where an average asks."""

from typing import Any

import torch

from lofi.job.log import log
from lofi.job.native import _C


class Gpu:
    """A test may put another one in its place: see `gpu`."""

    has_kernel = _C.CUDA_IS_BUILT
    kernel = staticmethod(_C.cuda_mean)

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.is_cuda

    def put_mean(self, out: torch.Tensor, pieces: torch.Tensor, weights: list[float]) -> bool:
        """The mean of the rows of `pieces` goes to `out`, on the current stream. False: there is no
        kernel for it, and nothing was done."""
        if not self.has_kernel or len(pieces) > _C.CUDA_MEAN_INPUTS:
            return False
        try:
            with torch.cuda.device(out.device):
                stream = torch.cuda.current_stream().cuda_stream
                self.kernel(out, pieces, weights, stream)
        except NotImplementedError as error:
            log("warn", f"means of tensors on a GPU are taken on the CPU: {error}")
            self.has_kernel = False
        return self.has_kernel


gpu: Any = Gpu()
