"""Values as they are while a graph runs."""

import torch

from bitsweep.graphs.observe import observe
from bitsweep.graphs.ops import is_layer
from tests.quantization.networks import images, mixed


def test_every_node_is_shown_with_what_it_reads_and_yields() -> None:
    graph = mixed()
    shown: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def see(node: torch.fx.Node, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if is_layer(node):
            shown.setdefault(node.name, []).append((inputs[0], output))

    batches = list(images())
    observe(graph, batches, see)
    layers = [node for node in graph.graph.nodes if is_layer(node)]
    assert list(shown) == [node.name for node in layers]
    assert all(len(seen) == len(batches) for seen in shown.values())
    first, last = shown[layers[0].name], shown[layers[-1].name]
    assert torch.equal(first[0][0], batches[0])
    torch.testing.assert_close(last[0][1], graph(batches[0]))
