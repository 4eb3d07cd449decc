"""Trains a baseline, and reads it back.

Shape letters: N images, K classes, C channels, H height, W width.
"""

import contextlib
import copy
import ctypes
import functools
import json
import math
import time
from collections.abc import Callable
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
from bitsweep.splits import preprocess

#: Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def fit(
    model: Model, splits: Splits, *, recipe: Recipe, seed: int, folder: Path, progress: TextIO | None = None
) -> None:
    """Train a network, from scratch or from given weights, and write the baseline into a folder.

    Args:
        folder: gets ``checkpoint.pt`` (state_dict with the lowest validation loss, a finer measure than the accuracy
            on few images), ``history.json`` and ``test_logits.npy`` (float32 [N, K], computed in fp32).
        progress: terminal for a progress bar; a line an epoch goes to standard output in any case.

    Raises:
        CellFailed: the loss became infinite or not a number.
        ConfigError: ``recipe.device`` is ``cuda`` and there is none, or the weights do not fit the network.
    """
    device = choose_device(recipe.device)
    torch.manual_seed(seed)
    network = model.build(len(splits.classes))
    if file := model.weights_file():
        load_weights(network, file)
    network.to(device)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = recipe.bn_momentum
    best, history = descend(
        network, splits, recipe=recipe, image_size=model.image_size, seed=seed, title=model.name, progress=progress
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
    autocast: torch.dtype | None = None,
    before_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
    progress: TextIO | None = None,
) -> tuple[int, list[Epoch]]:
    """Train a network in place, and leave it in the state with the lowest validation loss.

    Args:
        network: on the device where it is to be trained.
        autocast: half-precision type of the arithmetic; gradients are scaled for float16.
        before_epoch: called in training mode, with the number of each epoch, from 0 on, and that of all.

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
    optimizer = build_optimizer(network, recipe, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, recipe))
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)

    best, best_state, history = -1, copy.deepcopy(network.state_dict()), list[Epoch]()
    with progress_bar(progress, f"training {title} on {device.type}", steps) as advance:
        for epoch in range(epochs):
            start = time.monotonic()
            network.train()
            before_epoch(epoch, epochs)
            losses = []
            order = torch.randperm(len(splits.train), generator=shuffle)
            for step in range(min(steps_an_epoch, steps - epoch * steps_an_epoch)):
                chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
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
                scheduler.step()
                losses.append(loss.detach())
                advance(1)

            train_loss = float(torch.stack(losses).mean())
            val_loss, val_top1 = _validate(network, splits.val, load, device)
            if not math.isfinite(train_loss + val_loss):
                raise CellFailed(
                    f"training diverged in epoch {epoch}: loss {train_loss}, validation loss {val_loss}; "
                    f"choose a lower learning rate than {recipe.lr}"
                )
            seconds = time.monotonic() - start
            history.append(
                Epoch(
                    epoch=epoch,
                    train_loss=train_loss,
                    val_loss=val_loss,
                    val_top1=val_top1,
                    lr=float(scheduler.get_last_lr()[0]),
                    seconds=seconds,
                )
            )
            print(
                f"epoch {epoch}: loss {train_loss:.4f}, validation {val_loss:.4f} {val_top1:.4f}, {seconds:.1f} s",
                flush=True,
            )
            if best < 0 or val_loss < history[best].val_loss:
                best, best_state = epoch, copy.deepcopy(network.state_dict())
            elif epoch - best >= recipe.patience:
                break
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


def load_weights(network: nn.Module, file: Path) -> None:
    """Fill a network with a state_dict, which must fit it exactly.

    A dictionary around it under ``state_dict`` or ``model``, and the prefix ``module.`` of parallel training, are
    taken off.

    Raises:
        ConfigError: the file holds no state_dict, or one of another network.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling something else can raise anything
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model.weights={file}: not a file of torch.save with tensors only ({reason})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise ConfigError(f"model.weights={file}: holds no state_dict; save network.state_dict()")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    own = network.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in own if name not in state and name not in counters]
    wrong += [f"{name} is not in the network" for name in state if name not in own]
    wrong += [
        f"{name} has shape {list(state[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(f"model.weights={file}: does not fit the network: {', '.join(wrong[:5])}{more}")
    network.load_state_dict(own | state)


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


def build_optimizer(network: nn.Module, recipe: Recipe, *, fused: bool) -> torch.optim.Optimizer:
    """The recipe's optimiser; biases and normalisation weights (all vectors) are not decayed."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=fused)


def lr_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate of a step relative to its peak.

    ``cosine``: linear from 0 over the warm-up, then (1 + cos(pi t)) / 2 for t from 0 to 1 (arXiv 1608.03983).
    ``onecycle``: cosine from 1/25 up over the warm-up, then cosine down to 1/250,000 (arXiv 1708.07120).
    """
    warmup = max(1, round(recipe.warmup_share * steps))
    rise = min(1.0, (step + 1) / warmup)
    fall = (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, steps - warmup)))) / 2
    if recipe.schedule == "cosine":
        return rise if step < warmup else fall
    floor, start = 1 / 250_000, 1 / 25
    if step < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * rise)) / 2
    return floor + (1 - floor) * fall


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
