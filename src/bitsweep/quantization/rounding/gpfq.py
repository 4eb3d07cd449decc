"""GPFQ: greedy path-following quantization, which follows the output of each neuron input by input.

Papers: Lybrand, Saab, "A Greedy Algorithm for Quantizing Neural Networks" (arXiv 2010.15979); Zhang, Zhou, Saab,
"Post-training Quantization for Neural Networks with Provable Guarantees" (arXiv 2201.11113).

Shape letters: G groups, O output channels of a group, I inputs of an output, P samples.
"""

import torch
from torch import Tensor

from bitsweep.quantization.rounding.alphabets import ToCode


def gpfq_codes(
    weight_GOI: Tensor,
    gram_GII: Tensor,
    cross_GII: Tensor,
    scale_GO1: Tensor,
    zero_point_GO1: Tensor,
    to_code: ToCode,
    *,
    block: int = 128,
) -> Tensor:
    """Codes in the covariance form, whose memory does not depend on the number of samples.

    With H = X~ X~^T and G = X~ X^T, the argument of input t is

        (G_tt w_t + sum_{j<t} w_j G_tj - sum_{j<t} q_j H_tj) / H_tt,    0 where H_tt = 0

    Args:
        gram_GII: H, of the inputs in the rounded network.
        cross_GII: G, of these with the inputs of the float network.
        scale_GO1, zero_point_GO1: of each output channel; may be broadcast.
        to_code: see `bitsweep.quantization.rounding.alphabets.rounder`.
        block: inputs whose effect on later ones is applied at once; changes the speed and not the result.

    Returns:
        Integral float codes, [G, O, I].
    """
    weight, gram, cross = weight_GOI.double(), gram_GII.double(), cross_GII.double()
    O, I = weight.shape[1:]
    scale, zero_point = scale_GO1.double().expand(-1, O, 1), zero_point_GO1.double().expand(-1, O, 1)
    codes, values = torch.empty_like(weight), torch.empty_like(weight)
    for start in range(0, I, block):
        end = min(start + block, I)
        followed = weight[:, :, :start] @ cross[:, start:end, :start].mT
        followed -= values[:, :, :start] @ gram[:, start:end, :start].mT
        for t in range(start, end):
            energy = gram[:, None, t, t, None]
            path = weight[:, :, start : t + 1] @ cross[:, t, start : t + 1, None]
            path = path - values[:, :, start:t] @ gram[:, t, start:t, None]
            argument = (followed[:, :, t - start, None] + path) / torch.where(energy > 0, energy, 1.0)
            argument = torch.where(energy > 0, argument, 0.0)
            codes[:, :, t : t + 1] = to_code(argument, scale, zero_point)
            values[:, :, t : t + 1] = (codes[:, :, t : t + 1] - zero_point) * scale
    return codes


def gpfq_codes_of_samples(
    weight_GOI: Tensor,
    inputs_GIP: Tensor,
    rounded_inputs_GIP: Tensor,
    scale_GO1: Tensor,
    zero_point_GO1: Tensor,
    to_code: ToCode,
) -> Tensor:
    """The same codes in the form of the papers, on the samples themselves.

    With u_0 = 0, for every input t: q_t = Q(<X~_t, u_{t-1} + w_t X_t> / ||X~_t||^2) and
    u_t = u_{t-1} + w_t X_t - q_t X~_t.
    """
    weight, inputs, rounded = weight_GOI.double(), inputs_GIP.double(), rounded_inputs_GIP.double()
    G, O, I = weight.shape
    scale, zero_point = scale_GO1.double().expand(-1, O, 1), zero_point_GO1.double().expand(-1, O, 1)
    state = weight.new_zeros(G, O, inputs.shape[2])
    codes = torch.empty_like(weight)
    for t in range(I):
        state += weight[:, :, t, None] * inputs[:, None, t]
        energy = rounded[:, t].square().sum(1)[:, None, None]
        argument = state @ rounded[:, t, :, None] / torch.where(energy > 0, energy, 1.0)
        code = to_code(torch.where(energy > 0, argument, 0.0), scale, zero_point)
        state -= (code - zero_point) * scale * rounded[:, None, t]
        codes[:, :, t : t + 1] = code
    return codes
