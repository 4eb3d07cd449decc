"""How a network is trained."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from bitsweep.config.augmentation import Augment
from bitsweep.config.configurable import Choice, Count, Share, configurable


@configurable
class Recipe(Choice):
    """How a baseline is trained (config group ``train``).

    Attributes:
        epochs: passes over the training images, at most; 0 takes ``model.weights`` as they are.
        max_steps: optimiser steps, at most; bounds the time on large data sets.
        batch_size: images a step.
        optimizer: ``adamw`` (decoupled weight decay) or ``sgd`` (Nesterov momentum 0.9).
        lr: peak learning rate.
        weight_decay: decoupled for AdamW; not applied to biases and normalisation.
        backbone_lr_factor: learning rate of all but the head, relative to the head's.
        frozen_epochs: first epochs in which only the head is trained; as many as ``epochs`` for throughout.
        schedule: after a linear warm-up ``cosine``, or ``plateau``, which is lowered whenever the validation loss has
            stopped falling; ``onecycle``, whose warm-up is a cosine too.
        warmup_share: part of the steps spent warming up.
        plateau_patience: epochs without a lower validation loss before the learning rate is lowered.
        plateau_factor: by which it is multiplied then.
        label_smoothing: of the cross entropy.
        augment: random changes of training images, one or a list of them: ``none``; ``shift`` (translation by up to an
            eighth); ``shift_flip`` (and mirroring); any transform of torchvision.transforms.v2 by its name, with its
            arguments: ``{RandomRotation: {degrees: 10}}``. MixUp and CutMix come last.
        clip_norm: largest norm of the gradient; 0 turns clipping off.
        bn_momentum: share of a batch in BatchNorm's running statistics; networks that were made for long trainings
            bring one so small that the statistics are still near their start after a short one. 0 keeps those of given
            weights, and normalises by them in training too: few images make worse ones.
        ema_decay: of an exponential average of the weights, which takes their place in validation and in the end; 0
            turns averaging off.
        patience: epochs without a lower validation loss before stopping early.
        device: where to train; ``auto`` takes a GPU when there is one.
        devices: GPUs, or processes on the CPU, that share every batch; what is learned is the same but for rounding
            and dropout.
        autocast: half-precision type of the arithmetic; ``auto`` is bfloat16 on a GPU that computes it, else none.
        compile: whether PyTorch compiles the network, which takes a minute and helps on a GPU; ``auto`` does it there.
    """

    epochs: Annotated[int, Field(ge=0, le=1_000_000)]
    max_steps: Count
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    backbone_lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "onecycle", "plateau"] = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    plateau_patience: Count = 2
    plateau_factor: Share = 0.2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Augment = dataclasses.field(default=({"shift": {}},), hash=False)
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    bn_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Count = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Count = 1
    autocast: Literal["auto", "none", "float16", "bfloat16"] = "none"
    compile: Literal["auto", "always", "never"] = "never"

    def __post_init__(self) -> None:
        if self.batch_size % self.devices:
            raise ValueError(f"devices={self.devices}: must divide batch_size={self.batch_size}")
