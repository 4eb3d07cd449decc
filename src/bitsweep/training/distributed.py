"""Several processes that train one network, each on its share of every batch, as one process would on all of it.

Gradients, the statistics of batch normalisation and the figures of a validation are those of the whole batch. Only what
is drawn for every image by itself, as in dropout, is another than in one process.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """A process among those that train together.

    Attributes:
        rank: its number, from 0 on.
        size: how many there are.
        rendezvous: file through which they find one another; none of them has made it before.
        has_unused: whether there are parameters that learn and have no part in the loss, as in auxiliary heads, whose
            gradients nobody is to wait for.
    """

    rank: int = 0
    size: int = 1
    rendezvous: Path | None = None
    has_unused: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that speaks and writes for all."""
        return self.rank == 0

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Let the processes find one another, and part at the end."""
        if self.size == 1:
            yield
            return
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{self.rendezvous}", rank=self.rank, world_size=self.size)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, or of what belongs to its images."""
        return batch[self.rank :: self.size]

    def mean(self, values: Tensor) -> Tensor:
        """Means over the processes."""
        return values if self.size == 1 else _mean(values)

    def normalize_together(self, network: nn.Module) -> None:
        """Let every batch normalisation of a network compute its statistics from all processes' images."""
        if self.size == 1:
            return
        if next(network.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            return
        for module in list(network.modules()):
            for name, part in module.named_children():
                if isinstance(part, _BatchNorm):
                    setattr(module, name, JointBatchNorm(part))

    def connect(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are means over the processes, of the parameters that learn as of now."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            forward_sync_buffers=False,
            find_unused_parameters=self.has_unused,
        )


class JointBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of all processes' images, for the CPU, where PyTorch has none.

    It shares its parameters and buffers with the normalisation that it takes the place of.
    """

    def __init__(self, original: _BatchNorm) -> None:
        super().__init__(original.num_features, original.eps, original.momentum, affine=original.affine)
        self._parameters, self._buffers = original._parameters, original._buffers
        self.training = original.training

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise channels, the second dimension; every process has as many images."""
        if not self.training:
            return super().forward(input)
        others = [dim for dim in range(input.ndim) if dim != 1]
        as_input = [-1 if dim == 1 else 1 for dim in range(input.ndim)]
        mean_C: Tensor = _Mean.apply(input.mean(others))  # type: ignore[no-untyped-call]
        centred = input - mean_C.reshape(as_input)
        variance_C: Tensor = _Mean.apply(centred.square().mean(others))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None:
                assert self.momentum is not None and self.num_batches_tracked is not None
                count = input.numel() / self.num_features * dist.get_world_size()
                self.running_mean.lerp_(mean_C, self.momentum)
                self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)
                self.num_batches_tracked += 1
        normalised = centred * torch.rsqrt(variance_C + self.eps).reshape(as_input)
        if not self.affine:
            return normalised
        return torch.addcmul(self.bias.reshape(as_input), normalised, self.weight.reshape(as_input))


class _Mean(torch.autograd.Function):
    """Means over the processes, through which gradients flow to all of them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _mean(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def _mean(values: Tensor) -> Tensor:
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed / dist.get_world_size()
