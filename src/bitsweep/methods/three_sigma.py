"""Integer quantization by standard deviations, as introductions to the subject teach it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

from bitsweep import stats
from bitsweep.config.configurable import Count, configurable
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.quantization.calibrated import CalibratedMethod
from bitsweep.quantization.quantizing import ActivationRange, WeightRange
from bitsweep.results import Array, Compression, Shape, Splits, Table

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.weights import Codes


@final
@configurable
class ThreeSigma(CalibratedMethod):
    """Multiplies weights by 127 / (3 std(W)), activations by min(127 / (4 std), 127 / max|a|), rounds and clamps.

    Codes go from -127 to 127: the grid is symmetric, so that -128 is not used. The test images are run after every
    step, and last on integers alone: what each costs is kept as a table.

    Attributes:
        stage_images: test images on which each step is evaluated, at most.
    """

    weight_range: WeightRange = "std"
    activation_range: ActivationRange = "peak_or_std"
    guard: bool = False
    stage_images: Count = 1000

    def unsupported(self, precision: Precision) -> str | None:
        """Everything is a byte times one number a tensor."""
        for grid in (precision.weights, precision.activations):
            if not isinstance(grid, Grid) or not grid.symmetric or grid.per_channel or grid.bits > 8:
                return (
                    f"method={self.name} multiplies each tensor by one number and rounds to at most 8 bits, "
                    f"which is not {grid}: choose precision=int8_symmetric"
                )
        return None

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round every weight to the nearest code."""
        from bitsweep.quantization.weights import nearest_codes, round_weights

        return round_weights(graph, partial(nearest_codes, grid=grid, choose_range=self.choose_weight_range()))

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Quantize, and evaluate every step on the test images, where there are some."""
        import torch

        from bitsweep.data.preprocessing import preprocessed
        from bitsweep.quantization.biases import with_biases_of
        from bitsweep.quantization.integers import IntegerInterpreter

        about: dict[str, Any] = {"splits": splits, "input_shape": input_shape, "seed": seed}
        result = super().compress(copy.deepcopy(model), scheme=scheme, **about)
        if not len(splits.test):
            return result
        weights = super().compress(copy.deepcopy(model), scheme=replace(scheme, activations="float32"), **about)
        integers = IntegerInterpreter(result.program)
        steps: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "before": model,
            "weights": weights.program.module(check_guards=False),
            "activations": with_biases_of(result.program, weights.program),
            "biases": result.program.module(check_guards=False),
            "integers only": integers.run,
        }
        images, labels = splits.test.images[: self.stage_images], splits.test.labels[: self.stage_images]
        batches = list(preprocessed(images, splits, input_shape=input_shape, batch=self.calibration_batch))
        with torch.no_grad():
            logits = {name: torch.cat([step(batch) for batch in batches]).numpy() for name, step in steps.items()}
        return replace(result, tables=tuple(_tables(logits, labels, integers.float_operations)))


def _tables(logits: Mapping[str, Array], labels_N: Array, float_operations: Mapping[str, str]) -> Iterator[Table]:
    """What each step costs, and what was not computed on integers."""
    before, *_ = logits.values()
    correct = {stage: float((each.argmax(1) == labels_N).mean()) for stage, each in logits.items()}
    yield Table(
        name="stages",
        columns=("stage", "top1", "drop_pp", "agreement"),
        rows=tuple(
            (stage, top1, 100 * (correct["before"] - top1), stats.agreement(before, logits[stage]))
            for stage, top1 in correct.items()
        ),
    )
    if float_operations:
        yield Table(
            name="float_operations", columns=("operation", "kind"), rows=tuple(sorted(float_operations.items()))
        )
