"""What is told of the channels of a tensor."""

import torch
from torch import Tensor
from torch.fx import Node

from bitsweep.graphs.ops import LAYER_KINDS, aten


def by_channel(values: Tensor, node: Node) -> Tensor:
    """Values as [C, M]."""
    return values.detach().movedim(_axis(values, node), 0).flatten(1)


def _axis(values: Tensor, node: Node) -> int:
    tokens = node.target == aten.layer_norm.default or values.ndim in (1, 3)
    return -1 if LAYER_KINDS.get(node.target, "linear" if tokens else "") == "linear" else 1


def ends_of_channels(values: Tensor, node: Node) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel, [C] each."""
    values = values.detach()
    if _axis(values, node) == 1 and values.ndim > 2:
        low_NC, high_NC = torch.aminmax(values.flatten(2), dim=2)
        return low_NC.amin(0), high_NC.amax(0)
    low_C, high_C = torch.aminmax(by_channel(values, node), dim=1)
    return low_C, high_C


def of_all_images(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``Source`` tells of channels, from what is known of them on parts of the images."""
    if not parts:
        return {}
    of = {what: torch.stack([part[what] for part in parts]) for what in parts[0]}
    if "low_C" in of:
        return {"low_C": of["low_C"].amin(0), "high_C": of["high_C"].amax(0)}
    share_P1 = of["share"][:, None]
    mean_C = (share_P1 * of["mean_C"]).sum(0)
    variance_C = (share_P1 * (of["variance_C"] + (of["mean_C"] - mean_C).square())).sum(0)
    return {"shift_C": (share_P1 * of["shift_C"]).sum(0), "spread_C": variance_C.sqrt()}
