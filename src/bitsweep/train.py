"""Trains a baseline, and reads it back.

Shape letters: N images, K classes, C channels, H height, W width.
"""

import contextlib
import ctypes
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep.artifacts import Epoch, Split, Splits, Trained
from bitsweep.axes import Model, Recipe
from bitsweep.errors import CellFailed, ConfigError
from bitsweep.progress import progress_bar
from bitsweep.resume import Unfinished
from bitsweep.splits import preprocess
from bitsweep.transfer import build_network, freeze, split_parameters, start_from_weights

#: Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def fit(
    model: Model,
    splits: Splits,
    *,
    recipe: Recipe,
    seed: int,
    folder: Path,
    unfinished: Path | None = None,
    progress: TextIO | None = None,
) -> None:
    """Train a network, from scratch or from given weights, and write the baseline into a folder.

    Args:
        folder: gets ``checkpoint.pt`` (state_dict with the lowest validation loss, a finer measure than the accuracy
            on few images), ``history.json`` and ``test_logits.npy`` (float32 [N, K], computed in fp32).
        unfinished: file that training is kept in as far as it has come, and goes on from; None to keep nothing.
        progress: terminal for a progress bar; a line an epoch goes to standard output in any case.

    Raises:
        CellFailed: the loss became infinite or not a number.
        ConfigError: ``recipe.device`` is ``cuda`` and there is none, or the weights do not fit the network.
    """
    device = choose_device(recipe.device)
    torch.manual_seed(seed)
    network, head = build_network(model, len(splits.classes))
    start_from_weights(network, model, head=head if recipe.epochs else "")
    network.to(device)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = recipe.bn_momentum
    best, history = descend(
        network,
        splits,
        recipe=recipe,
        image_size=model.image_size,
        seed=seed,
        title=model.name,
        head=head,
        before_epoch=lambda epoch, epochs: freeze(
            network, head, backbone=epoch < recipe.frozen_epochs, statistics=not recipe.bn_momentum
        ),
        unfinished=unfinished,
        progress=progress,
    )
    load = _loader(splits, model.image_size)
    val_top1 = history[best].val_top1 if history else _validate(network, splits.val, load, device)[1]
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    torch.save(state, folder / "checkpoint.pt")
    about = {
        "device": device.type,
        "best_epoch": best,
        "val_top1": val_top1,
        "epochs": [asdict(epoch) for epoch in history],
    }
    (folder / "history.json").write_text(json.dumps(about))
    np.save(folder / "test_logits.npy", _logits(network, splits.test, load, device).cpu().numpy())


def descend(
    network: nn.Module,
    splits: Splits,
    *,
    recipe: Recipe,
    image_size: int,
    seed: int,
    title: str,
    head: str = "",
    autocast: torch.dtype | None = None,
    before_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
    unfinished: Path | None = None,
    progress: TextIO | None = None,
) -> tuple[int, list[Epoch]]:
    """Train a network in place, and leave it in the state with the lowest validation loss.

    Args:
        network: on the device where it is to be trained.
        head: path of what learns at the full rate, the rest at ``recipe.backbone_lr_factor`` of it; empty for all.
        autocast: half-precision type of the arithmetic; gradients are scaled for float16.
        before_epoch: called in training mode, with the number of each epoch, from 0 on, and that of all.
        unfinished: file that the state after an epoch is kept in, and gone on from if there is one: what comes of it
            is the same.

    Returns:
        The best epoch, -1 if there was none, and the history.

    Raises:
        CellFailed: the loss became infinite or not a number.
    """
    device = next(network.parameters()).device
    _keep_freed_memory()
    torch.backends.cudnn.deterministic = True
    shuffle = torch.Generator().manual_seed(seed)
    load = _loader(splits, image_size)
    take = _taker(splits.train, device)
    labels = torch.from_numpy(np.array(splits.train.labels))

    steps_an_epoch = max(1, len(splits.train) // recipe.batch_size)
    steps = min(recipe.epochs * steps_an_epoch, recipe.max_steps)
    epochs = math.ceil(steps / steps_an_epoch)
    optimizer = build_optimizer(network, recipe, head=head, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    average = _state(network) if recipe.ema_decay else None

    best, best_state, history = -1, _state(network), list[Epoch]()
    keeper = Unfinished(unfinished, device)
    if kept := keeper.read():
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        scaler.load_state_dict(kept["scaler"])
        shuffle.set_state(kept["shuffle"])
        average, best, best_state = kept["average"], kept["best"], kept["best_state"]
        history = [Epoch(**epoch) for epoch in kept["history"]]
        print(f"going on after epoch {len(history) - 1}", flush=True)
    with progress_bar(progress, f"training {title} on {device.type}", steps) as advance:
        advance(len(history) * steps_an_epoch)
        for epoch in range(len(history), epochs):
            if epoch - 1 - best >= recipe.patience:
                break
            start = time.monotonic()
            network.train()
            before_epoch(epoch, epochs)
            losses, val_losses = [], [past.val_loss for past in history]
            order = torch.randperm(len(splits.train), generator=shuffle)
            first, last = epoch * steps_an_epoch, min(steps, (epoch + 1) * steps_an_epoch)
            for step in range(first, last):
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * lr_factor(step, steps, recipe, val_losses)
                chosen = order[(step - first) * recipe.batch_size : (step - first + 1) * recipe.batch_size]
                images = load(augment(take(chosen), recipe.augment, shuffle))
                with torch.autocast(device.type, autocast, enabled=autocast is not None):
                    target = labels[chosen].to(device)
                    loss = F.cross_entropy(network(images), target, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if recipe.clip_norm:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                if average:
                    blend(average, network.state_dict(), ema_share(step, recipe.ema_decay))
                losses.append(loss.detach())
                advance(1)

            train_loss = float(torch.stack(losses).mean())
            if average:
                learning = _state(network)
                network.load_state_dict(average)
            val_loss, val_top1 = _validate(network, splits.val, load, device)
            if not math.isfinite(train_loss + val_loss):
                raise CellFailed(
                    f"training diverged in epoch {epoch}: loss {train_loss}, validation loss {val_loss}; "
                    f"choose a lower learning rate than {recipe.lr}"
                )
            seconds = time.monotonic() - start
            val_losses.append(val_loss)
            history.append(
                Epoch(
                    epoch=epoch,
                    train_loss=train_loss,
                    val_loss=val_loss,
                    val_top1=val_top1,
                    lr=recipe.lr * lr_factor(last, steps, recipe, val_losses),
                    seconds=seconds,
                )
            )
            print(
                f"epoch {epoch}: loss {train_loss:.4f}, validation {val_loss:.4f} {val_top1:.4f}, {seconds:.1f} s",
                flush=True,
            )
            if best < 0 or val_loss < history[best].val_loss:
                best, best_state = epoch, _state(network)
            if average:
                network.load_state_dict(learning)
            keeper.write(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "shuffle": shuffle.get_state(),
                    "average": average,
                    "best": best,
                    "best_state": best_state,
                    "history": [asdict(past) for past in history],
                }
            )
    network.load_state_dict(best_state)
    return best, history


def load_trained(folder: Path) -> Trained:
    """Read a baseline back."""
    about = json.loads((folder / "history.json").read_text())
    history = tuple(Epoch(**epoch) for epoch in about["epochs"])
    return Trained(
        checkpoint=folder / "checkpoint.pt",
        history=history,
        best_epoch=about["best_epoch"],
        val_top1=about["val_top1"],
        device=about["device"],
        test_logits_NK=np.load(folder / "test_logits.npy"),
    )


def choose_device(wanted: str) -> torch.device:
    """The device to train on; ``auto`` takes a GPU when there is one.

    Raises:
        ConfigError: a GPU is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: PyTorch sees no CUDA device; use train.device=auto or cpu")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def build_optimizer(network: nn.Module, recipe: Recipe, *, fused: bool, head: str = "") -> torch.optim.Optimizer:
    """The recipe's optimiser; biases and normalisation weights (all vectors) are not decayed.

    Every group of parameters knows its ``peak_lr``, which is lower for what is not within the head, if one is given.
    """
    parts = zip(split_parameters(network, head), (recipe.lr, recipe.lr * recipe.backbone_lr_factor), strict=True)
    groups = [
        {
            "params": [each for each in part if (each.ndim > 1) == decayed],
            "peak_lr": lr,
            "lr": lr,
            "weight_decay": decay,
        }
        for part, lr in parts
        for decayed, decay in ((True, recipe.weight_decay), (False, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=fused)


def lr_factor(step: int, steps: int, recipe: Recipe, val_losses: Sequence[float] = ()) -> float:
    """Learning rate of a step relative to its peak.

    ``cosine``: linear from 0 over the warm-up, then (1 + cos(pi t)) / 2 for t from 0 to 1 (arXiv 1608.03983).
    ``onecycle``: cosine from 1/25 up over the warm-up, then cosine down to 1/250,000 (arXiv 1708.07120).
    ``plateau``: linear from 0 over the warm-up, then ``plateau_factor`` ** n after n times of waiting in vain.

    Args:
        val_losses: of the epochs before.
    """
    warmup = max(1, round(recipe.warmup_share * steps))
    rise = min(1.0, (step + 1) / warmup)
    if recipe.schedule == "plateau":
        return rise * recipe.plateau_factor ** waited_in_vain(val_losses, recipe.plateau_patience)
    fall = (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, steps - warmup)))) / 2
    if recipe.schedule == "cosine":
        return rise if step < warmup else fall
    floor, start = 1 / 250_000, 1 / 25
    if step < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * rise)) / 2
    return floor + (1 - floor) * fall


def waited_in_vain(losses: Sequence[float], patience: int) -> int:
    """How often so many epochs have passed without a lower loss than the lowest, each time counted anew."""
    times = waited = 0
    lowest = math.inf
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == patience:
            times, waited = times + 1, 0
    return times


@torch.no_grad()
def blend(average: dict[str, Tensor], state: Mapping[str, Tensor], share: float) -> None:
    """Move an average towards a state: a + share (s - a); counters are taken as they are."""
    for name, value in state.items():
        if value.is_floating_point():
            average[name].lerp_(value, share)
        else:
            average[name].copy_(value)


def ema_share(step: int, decay: float) -> float:
    """Share of the newest weights in their average: 1 - min(decay, (1 + t) / (10 + t)); the start is soon forgotten."""
    return 1 - min(decay, (1 + step) / (10 + step))


def augment(images_NHWC: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Move every image by up to an eighth of its size in each direction, edges repeated; perhaps mirror it."""
    if how == "none":
        return images_NHWC
    N, H, W, _ = images_NHWC.shape
    device = images_NHWC.device
    down = torch.randint(-(H // 8), H // 8 + 1, (N, 1), generator=generator).to(device)
    right = torch.randint(-(W // 8), W // 8 + 1, (N, 1), generator=generator).to(device)
    rows = (torch.arange(H, device=device) + down).clamp(0, H - 1)
    columns = (torch.arange(W, device=device) + right).clamp(0, W - 1)
    if how == "shift_flip":
        mirrored = (torch.rand((N, 1), generator=generator) < 0.5).to(device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    return images_NHWC[torch.arange(N, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a network holds."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _keep_freed_memory() -> None:
    """Let this process reuse what it frees: faulting gradients in anew costs AlexNet a quarter of a step on a CPU."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_M_MMAP_MAX, 0)
        glibc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _taker(split: Split, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From numbers of images, int64 [N], to the images, uint8 [N, H, W, C] on the device.

    A GPU keeps all of them where they fill less than half of what it has free. Otherwise they are read when needed.
    """
    if device.type == "cuda" and split.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        images = torch.from_numpy(np.array(split.images)).to(device)
        return lambda chosen: images[chosen.to(device)]
    return lambda chosen: torch.from_numpy(split.images[chosen.numpy()]).to(device)


def _loader(splits: Splits, image_size: int) -> Callable[[Tensor], Tensor]:
    """From uint8 [N, H, W, C] on a device to what the network takes."""

    return functools.partial(preprocess, image_size=image_size, mean_C=splits.mean_C, std_C=splits.std_C)


@torch.inference_mode()
def _logits(network: nn.Module, split: Split, load: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    network.eval()
    take = _taker(split, device)
    return torch.cat([network(load(take(batch))).float() for batch in torch.split(torch.arange(len(split)), 256)])


def _validate(
    network: nn.Module, split: Split, load: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[float, float]:
    logits_NK = _logits(network, split, load, device)
    labels_N = torch.from_numpy(np.array(split.labels)).to(device)
    top1 = (logits_NK.argmax(1) == labels_N).float().mean()
    return float(F.cross_entropy(logits_NK, labels_N)), float(top1)
