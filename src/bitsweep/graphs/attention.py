"""Attention in the one form that all engines take."""

from typing import Any

from torch.fx import Node

from bitsweep.graphs.editing import Editor
from bitsweep.graphs.ops import aten


def with_one_dimension_of_heads(
    edit: Editor, node: Node, q: Node, k: Node, v: Node, mask: Node | None, *options: Any
) -> Node | None:
    """Attention of [N, heads, tokens, channels], where there is one head, or windows have a dimension of their own."""
    dropout, causal, scale, grouped = options
    if (dims := q.meta["val"].ndim) == 3:
        q, k, v = (edit.call(aten.unsqueeze.default, each, 1) for each in (q, k, v))
        if mask is not None and mask.meta["val"].ndim == 3:  # one [queries, keys] is the same for all images and heads
            mask = edit.call(aten.unsqueeze.default, mask, 1)
    elif dims > 4 and not grouped and (mask is None or mask.meta["val"].ndim < 3):
        heads, *others = ([str(size) for size in each.meta["val"].shape[:-2]] for each in (q, k, v))
        if any(each != heads for each in others):
            return None
        q, k, v = (edit.call(aten.flatten.using_ints, each, 1, -3) for each in (q, k, v))
    else:
        return None
    sizes = list(node.meta["val"].shape[1:-2])
    result = edit.call(node.target, q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped)
    return edit.call(aten.squeeze.dim, result, 1) if dims == 3 else edit.call(aten.unflatten.int, result, 1, sizes)
