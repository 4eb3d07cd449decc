"""How many bits each layer gets, by their measured effect.

Paper: Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks" (arXiv 1911.03852), which
adds up the harm of layers as if they were independent. There it is estimated by curvature; here it is measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from bitsweep.config.precision import Grid
from bitsweep.quantization import grids
from bitsweep.quantization.analysis.sensitivity import Effect, Rounding, effects
from bitsweep.quantization.weights import Codes


@dataclass(frozen=True, kw_only=True)
class Study:
    """A float network, and codes of its layers on every grid that they may get.

    Attributes:
        paths: of the weights of each layer, by the name of its node.
        codes: by the path of the weights.
        activations: scale, zero point and grid of each layer's input, by the name of its node.
        labelled: images, float32 [N, 3, H, W], with their labels [N].
        parameters: of the float network, by path.
    """

    graph: GraphModule
    paths: Mapping[str, str]
    codes: Mapping[str, Mapping[Grid, Codes]]
    activations: Mapping[str, tuple[Tensor, Tensor, Grid]]
    labelled: Sequence[tuple[Tensor, Tensor]]
    parameters: Mapping[str, Tensor]

    def harms(self) -> list[dict[Grid, float]]:
        """What weights on each grid do on their own: divergence in nats, never less than that of more bits."""
        choices = [(path, grid) for path, codes in self.codes.items() for grid in codes]
        changes = [self._roundings({path: grid}, activations=False) for path, grid in choices]
        seen = effects(self.graph, changes, self.labelled, base={}, parameters=self.parameters)
        divergence = {choice: effect.divergence for choice, effect in zip(choices, seen, strict=True)}
        harms = []
        for path, codes in self.codes.items():
            harm, worst = {}, 0.0
            for grid in sorted(codes, key=lambda grid: -grid.bits):
                worst = harm[grid] = max(worst, divergence[path, grid])
            harms.append(harm)
        return harms

    def sizes(self) -> list[dict[Grid, int]]:
        """Bits that weights take on each grid, scales included."""
        return [
            {grid: grids.stored_bits(each.codes.shape, grid) for grid, each in codes.items()}
            for codes in self.codes.values()
        ]

    def megabytes(self, chosen: Mapping[str, Grid]) -> float:
        """Size of all weights, in 10^6 bytes; float32 for those that nothing was chosen for."""
        bits = (
            grids.stored_bits(codes[chosen[path]].codes.shape, chosen[path])
            if path in chosen
            else 32 * self.parameters[path].numel()
            for path, codes in self.codes.items()
        )
        return sum(bits) / 8e6

    def effect(self, chosen: Mapping[str, Grid]) -> Effect:
        """What all choices do together, with activations rounded."""
        (effect,) = effects(
            self.graph,
            [self._roundings(chosen, activations=True)],
            self.labelled,
            base={},
            parameters=self.parameters,
        )
        return effect

    def _roundings(self, chosen: Mapping[str, Grid], *, activations: bool) -> dict[str, Rounding]:
        return {
            name: Rounding(
                weight=self.codes[path][chosen[path]].values,
                activation=self.activations.get(name) if activations else None,
            )
            for name, path in self.paths.items()
            if path in chosen
        }


def cheapest_steps(
    sizes: Sequence[Mapping[Grid, int]], harms: Sequence[Mapping[Grid, float]]
) -> list[tuple[Grid, ...]]:
    """Grids of all layers on the way from the largest network to the smallest, one layer changed in each step.

    Each step goes where the harm that it adds is least for the size that it saves. Of all choices that are as small as
    one of these, none has a smaller sum of harms (the greedy solution of the multiple-choice knapsack problem, exact at
    the corners of its convex hull).

    Args:
        sizes: for each layer, its size on every grid.
        harms: for each layer, the harm of every grid; a smaller grid's is not less.
    """
    now = [max(size, key=size.__getitem__) for size in sizes]
    steps = [tuple(now)]
    while True:
        moves = [
            ((harm[grid] - harm[now[layer]]) / (size[now[layer]] - size[grid]), -size[grid], layer, grid)
            for layer, (size, harm) in enumerate(zip(sizes, harms, strict=True))
            for grid in size
            if size[grid] < size[now[layer]]
        ]
        if not moves:
            return steps
        _, _, layer, now[layer] = min(moves, key=lambda move: move[:3])
        steps.append(tuple(now))


def last_that(holds: Callable[[int], bool], count: int) -> int:
    """The largest index below ``count`` for which something holds, by bisection; 0 where it never does.

    Should it hold with gaps, an index is found for which it holds and not for the next.
    """
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
