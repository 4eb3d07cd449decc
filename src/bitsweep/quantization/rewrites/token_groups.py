"""Which channels of tokens can have the factor 1 / s_i, while the layers that read them make up for it.

A layer normalisation, and a layer before attention or a ReLU, can yield other multiples of their channels. Between them
and the layers that read them values are moved in many ways: windows, heads, parts for queries, keys and values. Labels
find the way: the graph runs once on a few images, and whatever moves values moves the labels of their channels, too.
That takes a run, and goes forward from one start only; where channels stay on one axis, the rules of
``channel_relations.py`` take none, and go back from sums to all that is added. What comes of factors is in
``channel_scaling.py``.
"""

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from bitsweep.graphs.ops import LAYER_KINDS, arguments, aten, is_layer
from bitsweep.quantization.rewrites.channel_groups import ScalingGroup, makes_up, owns_parameters

#: Yield values that they read, or zeros, or positive parts.
_MOVING = {
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.squeeze.dim, aten.unsqueeze.default, aten.unflatten.int, aten.contiguous.default, aten.clone.default,
    aten.slice.Tensor, aten.select.int, aten.unbind.int, aten.roll.default, getitem, aten.relu.default,
}  # fmt: skip
#: Yield means of values.
_POOLING = {aten.mean.dim, aten.adaptive_avg_pool2d.default}
#: Which argument of an operation of attention it yields weighted means of.
_ATTENDED = {aten.scaled_dot_product_attention.default: 2, aten.matmul.default: 1}


@torch.no_grad()
def token_groups(graph: GraphModule, images: Tensor) -> list[ScalingGroup]:
    """The groups that start with layer normalisations, and with layers that yield tokens, in order.

    Args:
        images: a few, float32 [N, C, H, W].
    """
    if all(node.target != aten.layer_norm.default for node in graph.graph.nodes):
        return []
    labelled = _Labelled(graph)
    labelled.run(images)
    groups = (_group(start, first, count, labelled) for start, (first, count) in labelled.starts.items())
    return [group for group in groups if group is not None]


def _group(start: Node, first: int, count: int, labelled: "_Labelled") -> ScalingGroup | None:
    """The channels of a start that layers read; None where they do not make up for factors."""
    own = {node: labels - first for node, labels in labelled.read_F.items()}
    own = {node: labels for node, labels in own.items() if ((labels >= 0) & (labels < count)).any()}
    reach_C = torch.zeros(count)
    for reader, channels in own.items():
        low, high = int(channels.min()), int(channels.max()) + 1
        in_order = torch.equal(channels, torch.arange(low, low + len(channels)).to(channels))
        if low < 0 or high > count or not in_order or labelled.lost & set((channels + first).tolist()):
            return None
        reach_C[low:high] = torch.maximum(reach_C[low:high], labelled.reach_F[reader])
    carriers = {
        node: torch.arange(low - first, high + 1 - first)
        for node, (low, high) in labelled.carried.items()
        if first <= low <= high < first + count
    }
    if not own:
        return None
    return ScalingGroup(
        starts=(start,), carriers=carriers, gated=(), readers=tuple(own), channels=count, reach_C=reach_C
    )


class _Labelled(Interpreter):
    """Runs a float network, and lets the label of a channel go with every value that is a multiple of that.

    Label 0 is that of zeros that were put around. A label is lost where something else is computed from its values.

    Attributes:
        starts: first label and number of channels of each.
        carried: smallest and largest label of what nodes yield.
        read_F: by the layer that reads them, the labels of its inputs.
        reach_F: largest magnitudes of the same.
    """

    def __init__(self, network: GraphModule) -> None:
        super().__init__(network)
        self.starts: dict[Node, tuple[int, int]] = {}
        self.carried: dict[Node, tuple[int, int]] = {}
        self.read_F: dict[Node, Tensor] = {}
        self.reach_F: dict[Node, Tensor] = {}
        self.lost: set[float] = set()
        self._network = network
        self._labels: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        read = [node for node in n.all_input_nodes if node in self._labels]
        if read and not self._goes_on(n, read, result):
            for node in read:
                self._lose(self._labels[node])
        if _starts(n, result):
            self._start(n, result)
        for node in self.user_to_last_uses.get(n, []):
            self._labels.pop(node, None)
        return result

    def _start(self, n: Node, result: Tensor) -> None:
        first, count = 1 + sum(count for _, count in self.starts.values()), result.shape[-1]
        self.starts[n] = first, count
        self._carry(n, torch.arange(first, first + count, dtype=torch.float64).expand(result.shape))

    def _carry(self, n: Node, labels: Any) -> None:
        self._labels[n] = labels
        if isinstance(labels, Tensor) and (held := labels[labels > 0]).numel():
            self.carried[n] = int(held.min()), int(held.max())

    def _lose(self, labels: Any) -> None:
        for each in [labels] if isinstance(labels, Tensor) else labels:
            self.lost.update(each.unique().tolist())

    def _goes_on(self, n: Node, read: list[Node], result: Any) -> bool:
        """Hand on the labels of what a node reads, or keep them where a layer reads them; whether that can be."""
        if n.target in _ATTENDED:
            value = arguments(n)[_ATTENDED[n.target]]
            for node in read:
                if node is not value:
                    self._lose(self._labels[node])
            labels = self._labels.get(value)
            if labels is None or not (labels == labels[..., :1, :]).all():
                return labels is None
            self._carry(n, labels[..., :1, :].expand(result.shape))
            return True
        if is_layer(n):
            return read == [arguments(n)[0]] and self._read(n)
        pads = n.target == aten.pad.default and arguments(n)[3:] in ((), (None,), (0,))
        if len(read) > 1 or not (n.target in _MOVING | _POOLING or pads):
            return False
        labels, squares = (self._moved(n, power) for power in (1, 2))
        if n.target in _POOLING and not torch.allclose(squares, labels.square(), rtol=1e-12):
            return False  # they are those of several channels
        self._carry(n, labels.round() if n.target in _POOLING else labels)
        return True

    def _moved(self, n: Node, power: int) -> Any:
        args: Any = map_arg(n.args, lambda node: self._raised(node, power))
        kwargs: Any = map_arg(n.kwargs, lambda node: self._raised(node, power))
        assert callable(n.target)
        return n.target(*args, **kwargs)

    def _raised(self, node: Node, power: int) -> Any:
        labels = self._labels.get(node)
        if labels is None:
            return self.env[node]
        return labels**power if isinstance(labels, Tensor) else labels

    def _read(self, layer: Node) -> bool:
        """Keep the labels of a layer's inputs; whether each input has one."""
        source, axis = arguments(layer)[0], -1 if LAYER_KINDS[layer.target] == "linear" else 1
        labels = self._labels[source].movedim(axis, 0).flatten(1)
        label_F = labels.amax(1)
        of_one = (labels == label_F[:, None]) | (labels == 0)
        if not (of_one.all() and (label_F > 0).all() and makes_up(self._network, layer, len(label_F))):
            return False
        self.read_F[layer] = label_F
        self.reach_F[layer] = self.env[source].movedim(axis, 0).flatten(1).abs().amax(1)
        return True


def _starts(node: Node, result: Any) -> bool:
    """Whether a node is a layer normalisation, or a linear layer that yields tokens, with parameters of its own."""
    if not owns_parameters(node) or not isinstance(result, Tensor):
        return False
    if node.target == aten.layer_norm.default:
        return len(arguments(node)[1]) == 1 and len(node.args) > 2 and isinstance(node.args[2], Node)
    return is_layer(node) and LAYER_KINDS[node.target] == "linear" and result.ndim > 2
