"""Names of parts of a network that settings give, looked for in the network itself before anything is trained."""

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.cell import Cell
from bitsweep.config.model import Model
from bitsweep.errors import BitsweepError, UsageError
from bitsweep.runtime import child
from bitsweep.runtime.progress import Progress

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: Classes of a network of which only the names of its parts are asked.
_CLASSES = 10


#: What cells ask of a network: a model, and names of layers.
Asked = tuple[Model, tuple[str, ...]]


def wrong_names(cells: Iterable[Cell], known: dict[Asked, str]) -> dict[Cell, str]:
    """Why cells name outputs, heads or layers that their networks do not have.

    Most cells name none, and cost nothing. For the others the network is built, once for each setting, in a process of
    its own. What fails for another reason is left to the cell, which says it better.

    Args:
        known: what was found before, by what was asked; what is found now is added.
    """
    wrong = {}
    for cell in cells:
        asked = cell.model, cell.method.layers_named
        output = cell.model.output if cell.model.has_outputs else ""
        if not (cell.method.layers_named or output or cell.model.head_named()):
            continue
        if asked not in known:
            known[asked] = _wrong(*asked)
        if known[asked]:
            wrong[cell] = known[asked]
    return wrong


def _wrong(model: Model, layers: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            child.call(
                look_for, {"model": model, "layers": layers}, folder=Path(scratch), log=Path(scratch) / "log.txt"
            )
        except UsageError as error:
            return str(error)
        except BitsweepError:
            pass
    return ""


def look_for(*, model: Model, layers: tuple[str, ...], folder: Path, progress: Progress) -> None:
    """Build the network of a model, and find the output and the layers that were named.

    Raises:
        ConfigError: it has no such output, or no such layer.
    """
    from bitsweep.quantization.lowrank.chains import layer_nodes
    from bitsweep.training.outputs import yield_logits

    network = None
    with contextlib.suppress(Exception):  # whatever code of somebody else's raises
        network = model.build(_CLASSES)
    if network is None:
        return
    yield_logits(network, model, None)
    graph: GraphModule | None = None
    if layers:
        with contextlib.suppress(Exception):
            from bitsweep.graphs.tracing import trace

            graph = trace(network, input_shape=model.input_shape)
    if graph is not None:
        layer_nodes(graph, keep=layers)
