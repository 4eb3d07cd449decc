"""What the guard hands on: the network, and what was done to it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from bitsweep.graphs.ops import set_attribute
from bitsweep.quantization.guard.remedies import Remedy
from bitsweep.quantization.placement import Placement
from bitsweep.quantization.weights import Codes
from bitsweep.results import Table


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A float network that is ready to be rounded.

    Attributes:
        graph: computes the same as before.
        placement: of the pairs.
        corrected: paths of the weights of the layers whose biases are to make up for the means that rounding shifts.
        floats: paths of the weights that stay float.
        remedies: what was done.
        tables: what costs most, and what was done, where anything had to be.
    """

    graph: GraphModule
    placement: Placement
    corrected: frozenset[str] = frozenset()
    floats: frozenset[str] = frozenset()
    remedies: tuple[Remedy, ...] = ()
    tables: tuple[Table, ...] = ()

    def kept(
        self, graph: GraphModule, codes: Mapping[str, Codes], parameters: Mapping[str, Tensor]
    ) -> dict[str, Codes]:
        """The codes without those of weights that stay float, which a rounded graph reads again."""
        for path in self.floats:
            set_attribute(graph, path, parameters[path])
        return {path: each for path, each in codes.items() if path not in self.floats}

    def remedies_by_layer(self) -> dict[str, str]:
        """What was done to each layer and why, by its name."""
        told: dict[str, list[str]] = {}
        for remedy in self.remedies:
            for layer in remedy.layers:
                told.setdefault(layer, []).append(str(remedy))
        return {layer: "; ".join(sentences) for layer, sentences in told.items()}
