"""GPTQ: round one input after the other, and let later inputs compensate the error.

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323), after Optimal Brain Quantization (arXiv 2208.11580).

Shape letters: G groups, O output channels of a group, I inputs of an output.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Node

from bitsweep.config.precision import Grid
from bitsweep.graphs import im2col
from bitsweep.quantization.weights import Codes


def gptq_codes(
    weight_GOI: Tensor,
    hessian_GII: Tensor,
    scale_GO1: Tensor,
    zero_point_GO1: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    block: int = 128,
) -> Tensor:
    """Codes that keep ||(W - Q) X||^2 small, where H = X X^T.

    With U the upper Cholesky factor of the inverse of H + damping mean(diag H) 1, input i is rounded to q_i, and
    w_j -= (w_i - q_i) U_ij / U_ii for all later inputs j.

    Args:
        weight_GOI: float weights.
        hessian_GII: H, of the inputs in the rounded network.
        scale_GO1, zero_point_GO1: of each output channel; may be broadcast.
        damping: share of the mean of H's diagonal that is added to it; larger for fewer images.
        act_order: round the inputs with the largest H_ii first instead of in their order.
        block: inputs whose effect on later ones is applied at once; changes the speed and not the result.

    Returns:
        Integral float codes within the grid, [G, O, I].
    """
    I = hessian_GII.shape[-1]
    hessian = hessian_GII.double()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    # An input that is always zero has no say, and its weights no effect: they are rounded to the nearest.
    floor = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    hessian = hessian + torch.diag_embed(floor.expand_as(diagonal))
    order_GI = diagonal.argsort(dim=1, descending=True) if act_order else torch.arange(I).expand_as(diagonal)
    hessian = hessian.gather(1, order_GI[:, :, None].expand_as(hessian))
    hessian = hessian.gather(2, order_GI[:, None, :].expand_as(hessian))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    order_GOI = order_GI[:, None, :].expand_as(weight_GOI)
    weight = weight_GOI.double().gather(2, order_GOI)
    codes = torch.empty_like(weight)
    for start in range(0, I, block):
        end = min(start + block, I)
        errors = torch.empty_like(weight[:, :, start:end])
        for i in range(start, end):
            code = torch.round(weight[:, :, i : i + 1] / scale_GO1) + zero_point_GO1
            code = code.clamp(grid.lo, grid.hi)
            error = (weight[:, :, i : i + 1] - (code - zero_point_GO1) * scale_GO1) / factor[:, i, i, None, None]
            weight[:, :, i:end] -= error * factor[:, i, None, i:end]
            codes[:, :, i : i + 1] = code
            errors[:, :, i - start : i - start + 1] = error
        weight[:, :, end:] -= errors @ factor[:, start:end, end:]
    return torch.empty_like(codes).scatter_(2, order_GOI, codes)


def hessian_of(layer: Node, weight: Tensor, inputs: Iterable[Tensor]) -> Tensor:
    """H = X X^T of a layer, float64 [G, I, I], from its inputs of each batch."""
    seen = (im2col.patches(x, layer, weight) for x in inputs)
    return im2col.gram((patch, patch) for patch in seen)


def gptq_layer(
    layer: Node,
    weight: Tensor,
    hessian_GII: Tensor,
    qparams: tuple[Tensor, Tensor],
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: bool = True,
) -> Codes:
    """Codes of the weights of a layer.

    Args:
        qparams: scale and zero point, of shape [C] or [].
    """
    groups, (scale, zero_point), grid = im2col.groups_of(layer), qparams, grid.of_weights(weight.shape)
    codes = gptq_codes(
        im2col.weight_matrix(weight, groups),
        hessian_GII,
        im2col.by_group(scale, groups),
        im2col.by_group(zero_point, groups),
        grid,
        damping=damping,
        act_order=act_order,
    )
    return Codes.from_float(codes.reshape(weight.shape), scale, zero_point, grid)
