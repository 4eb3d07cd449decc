"""As many calibration images as fit in memory, where what layers read is kept for all images at once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.fx import GraphModule

from bitsweep.results import ROUNDED_ON_FEWER, Table

#: Memory for what is kept.
BYTES = 2 << 30


def fitting(graph: GraphModule, batches: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The batches if there is room for them, else as many as there is room for, evenly spread.

    Args:
        graph: a traced network, that is run with its float weights and with rounded ones.
        batches: images, float32 [N, C, H, W]; the last one may have fewer.
    """
    count = max(1, BYTES // (2 * bytes_kept(graph) * len(batches[0])))
    if count >= len(batches):
        return batches
    return [batches[index] for index in np.linspace(0, len(batches) - 1, count).astype(int).tolist()]


def told(asked: Sequence[torch.Tensor], used: Sequence[torch.Tensor]) -> tuple[Table, ...]:
    """That layers were rounded on fewer images than were asked for; nothing where they were not."""
    if len(used) == len(asked):
        return ()
    rows = (("watched", sum(map(len, asked))), ("rounded on", sum(map(len, used))))
    return (Table(name=ROUNDED_ON_FEWER, columns=("images", "number"), rows=rows),)


def bytes_kept(graph: GraphModule) -> int:
    """Of one image, the most that is kept at a time: what has been computed, and somebody will read."""
    last_reader = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    sizes, most = dict[str, int](), 0
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.op != "get_attr" and isinstance(value, torch.Tensor):
            sizes[node.name] = value[:1].numel() * value.dtype.itemsize
        most = max(most, sum(sizes.values()))
        for source in node.all_input_nodes:
            if last_reader[source] is node:
                sizes.pop(source.name, None)
    return most
