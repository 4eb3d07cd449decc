"""The fp32 baseline of a model on a data set: trained, and written.

Shape letters: N images, K classes.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bitsweep.config.model import Model
from bitsweep.config.recipe import Recipe
from bitsweep.errors import ConfigError, DataError
from bitsweep.results import Splits
from bitsweep.runtime.allocation import keep_freed_memory
from bitsweep.runtime.gpu import allow_tf32
from bitsweep.runtime.progress import Progress, silent
from bitsweep.text import say, some
from bitsweep.training.distributed import DistributedContext
from bitsweep.training.loop import choose_device, compute_logits, loader, memory_format, train
from bitsweep.training.network import build_network, freeze, start_from_weights
from bitsweep.training.outputs import parts_without_logits


def fit(
    model: Model,
    splits: Splits,
    *,
    recipe: Recipe,
    seed: int,
    folder: Path,
    rank: int = 0,
    unfinished: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Train a network, from scratch or from given weights, and write the baseline into a folder.

    Args:
        folder: gets ``checkpoint.pt`` (state_dict with the lowest validation loss, a finer measure than the accuracy
            on few images), ``history.json``, ``test_logits.npy`` (float32 [N, K]) and ``validation_right.npy`` (bool
            [N]: which of these images it classifies right), both computed in fp32.
        rank: number of this process among the ``recipe.devices`` that train together; that of number 0 writes.
        unfinished: file that training is kept in as far as it has come, and goes on from; None to keep nothing.
        progress: gets how far it is; a line an epoch goes to standard output in any case.

    Raises:
        CellFailed: the loss became infinite or not a number.
        DataError: there are no training images to train on.
        ConfigError: ``recipe.device`` is ``cuda`` and there is none, the weights do not fit the network, or it yields
            NaN for test images.
    """
    context = DistributedContext(rank=rank, size=recipe.devices, rendezvous=folder.absolute() / "rendezvous")
    keep_freed_memory()
    device = choose_device(recipe.device, rank=context.rank, devices=context.size)
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // context.size))
    else:
        allow_tf32(False)
    torch.manual_seed(seed)
    network, head = build_network(model, len(splits.classes))
    start_from_weights(network, model, num_classes=len(splits.classes), head=head if recipe.epochs else "")
    unused = parts_without_logits(network, model)
    notes = [_without_loss(model, unused, trains=bool(recipe.epochs))] if unused else []
    if not recipe.epochs and (unsaid := model.unsaid()):
        notes.append(unsaid)
    fixed = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if recipe.epochs and fixed:
        kept = "stay as they are" if fixed[1:] else "stays as it is"
        notes.append(f"model={model.name}: {some(fixed)} {kept}: requires_grad is False there")
    for note in notes if context.is_main else []:
        say(note)
    network.to(device)
    if recipe.epochs and not len(splits.train):
        raise DataError(f"train={recipe.name} trains, and there are no training images; use train=pretrained")
    if recipe.epochs and not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"model={model.name}: the network has no parameters to train; use train=pretrained")
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = recipe.bn_momentum
    with context.joined(device):
        best, history = (
            (-1, [])
            if not recipe.epochs
            else train(
                network,
                splits,
                recipe=recipe,
                input_shape=model.input_shape,
                seed=seed,
                title=model.name,
                head=head,
                before_epoch=lambda epoch, epochs: freeze(
                    network, head, backbone=epoch < recipe.frozen_epochs, statistics=not recipe.bn_momentum, fixed=fixed
                ),
                context=replace(context, has_unused=bool(unused)),
                unfinished=unfinished,
                progress=progress,
            )
        )
    if not context.is_main:
        return
    load = loader(splits, model.input_shape, memory_format(network, model.input_shape, device, learns=False))
    right_N = np.zeros(0, bool)
    if len(splits.val):
        right_N = compute_logits(network, splits.val, load, device).argmax(1).cpu().numpy() == splits.val.labels
    np.save(folder / "validation_right.npy", right_N)
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    torch.save(state, folder / "checkpoint.pt")
    about = {
        "device": device.type if context.size == 1 else f"{context.size} x {device.type}",
        "best_epoch": best,
        "val_top1": float(right_N.mean()) if len(right_N) else None,
        "epochs": [asdict(epoch) for epoch in history],
        "notes": notes,
    }
    (folder / "history.json").write_text(json.dumps(about))
    test_logits_NK = compute_logits(network, splits.test, load, device).cpu().numpy()
    if nan := int(np.isnan(test_logits_NK).any(1).sum()):
        raise ConfigError(
            f"model={model.name}: the fp32 network yields NaN for {nan} of {len(test_logits_NK)} test images; look at "
            "its weights (a negative variance, say), and at what it divides by"
        )
    np.save(folder / "test_logits.npy", test_logits_NK)


def _without_loss(model: Model, parts: list[str], *, trains: bool) -> str:
    """What is said of parts that the logits do not depend on."""
    one = len(parts) == 1
    loss = f"get{'s' * one} no loss in training and " if trains else ""
    return (
        f"model={model.name}: {some(parts)} {'has' if one else 'have'} no part in the logits (auxiliary heads, for "
        f"instance), {loss}{'is' if one else 'are'} not in the compressed network"
    )
