"""Quantization-aware training: the baseline is trained on with what its codes will compute."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from bitsweep.config.augmentation import Augment
from bitsweep.config.configurable import Count, Share, configurable
from bitsweep.config.dataset import Part
from bitsweep.config.precision import Grid, Scheme
from bitsweep.config.recipe import Recipe
from bitsweep.quantization.quantizing import QuantizingMethod
from bitsweep.results import Compression, Shape, Splits

if TYPE_CHECKING:
    import torch


@final
@configurable
class QuantizationAwareTraining(QuantizingMethod):
    """Trains with rounded weights and activations; float16 and bfloat16 in their arithmetic where the engine has it.

    Ranges are chosen anew on the calibration images before each epoch, or learned. In the last part of the epochs they
    stay as they are, and batch normalisation uses its running statistics.

    Attributes:
        learned_scales: learn the scales with the weights (LSQ, arXiv 1902.08153), from the chosen ranges on.
        epochs, max_steps, batch_size, lr, weight_decay: of AdamW, with a cosine after a short warm-up.
        augment: as in a recipe of ``train``.
        frozen_share: part of the epochs, at the end, with fixed ranges and statistics.
    """

    supports_half: ClassVar[bool] = True

    learned_scales: bool = False
    epochs: Count = 4
    max_steps: Count = 800
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    augment: Augment = dataclasses.field(default=(), hash=False)
    frozen_share: Share = 0.3

    def learns_from(self) -> Part:
        """Training images."""
        return "training"

    def takes_exported(self, scheme: Scheme) -> bool:
        """In half precision the network itself is trained."""
        return isinstance(scheme.weights, Grid)

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Train, and store what was learned."""
        import torch

        from bitsweep.quantization.learned.fake_quantization import stored_as
        from bitsweep.quantization.learned.training import train
        from bitsweep.quantization.storing import in_half_precision
        from bitsweep.training.loop import choose_device

        recipe = Recipe(
            name=self.name, epochs=self.epochs, max_steps=self.max_steps, batch_size=self.batch_size, lr=self.lr,
            weight_decay=self.weight_decay, schedule="cosine", warmup_share=0.05, augment=self.augment,
            autocast=scheme.arithmetic if scheme.arithmetic in ("float16", "bfloat16") else "none",
        )  # fmt: skip
        if isinstance(scheme.weights, Grid):
            prepared = self.prepared(model, splits, input_shape=input_shape, scheme=scheme, seed=seed)
            return self.trained(
                prepared, splits, recipe=recipe, scheme=scheme, input_shape=input_shape, seed=seed,
                frozen_share=self.frozen_share, learned_scales=self.learned_scales,
            )  # fmt: skip
        with stored_as(model, getattr(torch, scheme.weights)):
            curves = train(
                model.to(choose_device(recipe.device)), splits, recipe=recipe, input_shape=input_shape, seed=seed,
                frozen_share=self.frozen_share,
            )  # fmt: skip
        return in_half_precision(model.cpu().eval(), scheme, input_shape=input_shape, curves=curves)
