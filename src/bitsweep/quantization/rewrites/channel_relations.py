"""Which channels of what a node reads have the factors of the channels that it yields.

A rectifier, a pooling or a product with a gate yields multiples of what it reads, channel by channel; a sum does where
all that is added has the same factors. What concatenates, takes apart, shuffles or pads channels moves the factors with
them.
"""

import torch
from torch import Tensor
from torch.fx import Node

from bitsweep.graphs.ops import LAYER_KINDS, arguments, aten, with_defaults
from bitsweep.quantization.rewrites.equalization import EQUIVARIANT

#: Functions x g(x), each with its gate g as slope and offset before a function from 0 to 1.
GATED = {aten.hardswish.default, aten.silu.default}
_RESHAPES = {aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.pixel_unshuffle.default}
_COPIES = {aten.clone.default, aten.contiguous.default}
_SWAPS = {aten.transpose.int, aten.permute.default}
#: What a node yields of channels in two dimensions, as a shuffle has them half way: [N, G, C / G, H, W].
_SHUFFLED = _RESHAPES | _COPIES | _SWAPS


def channels_of(node: Node) -> int:
    """Number of channels of [N, C, ...], or of [N, G, C / G, H, W], that a node yields; 0 for something else."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0
    if value.ndim == 5 and node.target in _SHUFFLED:
        return int(value.shape[1] * value.shape[2])
    if value.ndim == 3 and node.target == aten.mean.dim:
        return int(value.shape[1])
    if value.ndim not in (2, 4) or (LAYER_KINDS.get(node.target) == "linear" and value.ndim != 2):
        return 0
    return int(value.shape[1])


def relation(read: Node, user: Node) -> Tensor | None:
    """Which channel of what a node reads each channel that it yields has its factor from.

    Returns:
        int64 [channels of the user], -1 for channels that come from elsewhere; None where factors do not go through.
    """
    channels, yielded = channels_of(read), channels_of(user)
    if not channels or not yielded:
        return None
    own_C = torch.arange(channels)
    found_C = own_C if user.target in GATED else _moved(read, user, own_C)
    return found_C if found_C is not None and len(found_C) == yielded else None


def _moved(read: Node, user: Node, own_C: Tensor) -> Tensor | None:
    """The channels of what a node reads, in the places where it yields them."""
    value, result = read.meta["val"], user.meta["val"]
    if user.target in (aten.add.Tensor, aten.sub.Tensor):
        added = [each.meta["val"] for each in user.args[:2] if isinstance(each, Node) and each.op != "get_attr"]
        joins = len(added) == 2 and all(_sizes(each) == _sizes(result) for each in added) and not user.kwargs
        return own_C if joins else None
    if user.target == aten.mul.Tensor:
        # The larger of two factors of a product keeps its shape.
        return own_C if _sizes(result) == _sizes(value) else None
    if user.target == aten.div.Tensor:
        return own_C if not isinstance(user.args[1], Node) else None
    if user.target == aten.cat.default:
        return _joined(read, user, own_C)
    if user.target == aten.slice.Tensor:
        return _sliced(user, own_C, value.ndim)
    if user.target == aten.pad.default:
        sizes = [int(size) for size in arguments(user)[1]]
        if user.args[3:] not in ((), (None,), (0,)) or len(sizes) > 2 * (value.ndim - 1):
            return None
        of_channels = sizes[-2:] if len(sizes) == 2 * (value.ndim - 1) else [0, 0]
        return torch.nn.functional.pad(own_C + 1, of_channels) - 1
    if user.target in _SHUFFLED:
        return _reshaped(user, own_C, value, result)
    if user.target == aten.mean.dim:
        return own_C if all(dim % value.ndim > 1 for dim in arguments(user)[1]) else None
    return own_C if user.target in EQUIVARIANT and value.ndim in (2, 4) else None


def _joined(read: Node, user: Node, own_C: Tensor) -> Tensor | None:
    """Of channels that others are put beside, or their own other places; a tensor may be there more than once."""
    dim = with_defaults(user)[1] % user.meta["val"].ndim
    if dim != 1:
        return own_C if dim > 1 else None
    parts: list[Node] = list(arguments(user)[0])
    return torch.cat([own_C if part is read else torch.full((channels_of(part),), -1) for part in parts])


def _sliced(user: Node, own_C: Tensor, dims: int) -> Tensor | None:
    _, dim, *ends = with_defaults(user)
    if dim % dims > 1:
        return own_C
    return None if dim % dims == 0 or any(isinstance(end, Node) for end in ends) else own_C[slice(*ends)]


def _reshaped(user: Node, own_C: Tensor, value: Tensor, result: Tensor) -> Tensor | None:
    """Where channels become several consecutive ones each, or lie in two dimensions, which are swapped."""
    if user.target in _COPIES:
        return own_C
    if user.target in _SWAPS:
        dims = [dim % value.ndim for dim in (arguments(user)[1] if len(user.args) == 2 else arguments(user)[1:3])]
        swapped = value.ndim == 5 and dims in ([0, 2, 1, 3, 4], [1, 2], [2, 1])
        return own_C.view(int(value.shape[1]), -1).T.flatten() if swapped else None
    if 5 in (value.ndim, result.ndim):
        return own_C if {value.ndim, result.ndim} == {4, 5} and value.shape[-2:] == result.shape[-2:] else None
    several, left = divmod(int(result.shape[1]), len(own_C))
    return None if left or value.ndim == 3 else own_C.repeat_interleave(several)


def _sizes(value: Tensor) -> list[int]:
    """Shape of one image's part."""
    return [int(size) for size in value.shape[1:]]
