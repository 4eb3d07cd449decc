"""Quantization-aware training: the baseline is trained on with what its codes will compute."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from bitsweep.artifacts import Compression, Curve, Splits
from bitsweep.axes import Count, Grid, Recipe, Scheme, Share, axis
from bitsweep.quantization.calibrated import QuantizingMethod, stored

if TYPE_CHECKING:
    import torch


@final
@axis
class QuantizationAwareTraining(QuantizingMethod):
    """Trains with rounded weights and activations; for float16 and bfloat16, with arithmetic of that format.

    Ranges are chosen anew on the calibration images before each epoch, or learned. In the last part of the epochs they
    stay as they are, and batch normalisation uses its running statistics.

    Attributes:
        learned_scales: learn the scales with the weights (LSQ, arXiv 1902.08153), from the chosen ranges on.
        epochs, max_steps, batch_size, lr, weight_decay: of AdamW, with a cosine after a short warm-up.
        augment: as in a recipe of ``train``.
        frozen_share: part of the epochs, at the end, with fixed ranges and statistics.
    """

    takes_halves: ClassVar[bool] = True

    learned_scales: bool = False
    epochs: Count = 4
    max_steps: Count = 800
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    augment: Literal["none", "shift", "shift_flip"] = "none"
    frozen_share: Share = 0.3

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, image_size: int, scheme: Scheme, seed: int
    ) -> Compression:
        """Train, and store what was learned."""
        import torch

        from bitsweep.quantization import graphs
        from bitsweep.quantization.quantizer import convert, observe
        from bitsweep.quantization.training import TrainedNetwork
        from bitsweep.train import choose_device

        device = choose_device("auto")
        if not isinstance(scheme.weights, Grid):
            half = getattr(torch, scheme.weights)
            curves = self._train(model.to(device), splits, image_size=image_size, seed=seed, autocast=half)
            return self.cast(model.cpu().eval(), scheme, image_size=image_size, curves=curves)
        prepared = self.prepared(model, splits, image_size=image_size, seed=seed)
        graph, clipped = prepared.graph, dict[str, float]()
        originals = graphs.layers(graph)
        if isinstance(scheme.activations, Grid):
            graph = observe(graph, scheme.activations, self.choose_activation_range())
        network = TrainedNetwork(
            graph, scheme.weights, self.choose_weight_range(), prepared.batches,
            normalized=prepared.normalized, learned_scales=self.learned_scales,
        )  # fmt: skip
        curves = self._train(network.move(device), splits, image_size=image_size, seed=seed)
        codes = network.finish()
        if isinstance(scheme.activations, Grid):
            graph, clipped = convert(graph)
        return stored(graph, codes, originals=originals, clipped=clipped, image_size=image_size, curves=curves)

    def _train(
        self,
        network: "torch.nn.Module",
        splits: Splits,
        *,
        image_size: int,
        seed: int,
        autocast: "torch.dtype | None" = None,
    ) -> tuple[Curve, ...]:
        """Train in place; returns how it went."""
        from bitsweep.quantization.training import TrainedNetwork, freeze_normalization
        from bitsweep.train import descend

        def before_epoch(epoch: int, epochs: int) -> None:
            if epoch >= epochs - math.ceil(self.frozen_share * epochs):
                freeze_normalization(network)
            elif epoch and isinstance(network, TrainedNetwork) and not self.learned_scales:
                network.choose_ranges()

        recipe = Recipe(
            name=self.name, epochs=self.epochs, max_steps=self.max_steps, batch_size=self.batch_size, lr=self.lr,
            weight_decay=self.weight_decay, schedule="cosine", warmup_share=0.05, augment=self.augment,
        )  # fmt: skip
        _, history = descend(
            network, splits, recipe=recipe, image_size=image_size, seed=seed, title=self.name, autocast=autocast,
            before_epoch=before_epoch,
        )  # fmt: skip
        return tuple(
            Curve(name=name, values=tuple(getattr(epoch, name) for epoch in history), step="epoch")
            for name in ("train_loss", "val_loss", "val_top1", "lr")
        )
