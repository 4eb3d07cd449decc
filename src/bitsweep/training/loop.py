"""Gradient descent over the training images of a data set.

Shape letters: N images, K classes, C channels, H height, W width.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep.config.recipe import Recipe
from bitsweep.data.preprocessing import preprocess
from bitsweep.errors import CellFailed, ConfigError
from bitsweep.results import Epoch, Shape, Split, Splits
from bitsweep.runtime.progress import Progress, silent
from bitsweep.text import say
from bitsweep.training.augmentation import Augmentation, pixels_at
from bitsweep.training.checkpoint import Unfinished
from bitsweep.training.distributed import DistributedContext
from bitsweep.training.schedule import LearningRate, averaged, build_optimizer

#: Images that are classified at a time, and values of theirs: large images go in smaller batches.
_BATCH, _VALUES = 256, 1 << 23
#: A process that trains by itself.
ALONE = DistributedContext()


def train(
    network: nn.Module,
    splits: Splits,
    *,
    recipe: Recipe,
    input_shape: Shape,
    seed: int,
    title: str,
    head: str = "",
    before_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
    context: DistributedContext = ALONE,
    unfinished: Path | None = None,
    progress: Progress = silent,
) -> tuple[int, list[Epoch]]:
    """Train a network in place, and leave it in the state with the lowest validation loss.

    Args:
        network: on the device where it is to be trained; the same in every process of a context.
        head: path of what learns at the full rate, the rest at ``recipe.backbone_lr_factor`` of it; empty for all.
        before_epoch: called in training mode, with the number of each epoch, from 0 on, and that of all.
        unfinished: file that the state after an epoch is kept in, and gone on from if there is one: what comes of it
            is the same.

    Returns:
        The best epoch, -1 if there was none, and the history.

    Raises:
        CellFailed: the loss became infinite or not a number.
        ConfigError: there are fewer training images than processes, or the logits carry no gradients.
    """
    device = next(network.parameters()).device
    torch.backends.cudnn.deterministic = True
    shuffle = torch.Generator().manual_seed(seed)
    layout = memory_format(network, input_shape, device, learns=True)
    load = loader(splits, input_shape, layout)
    take = _taker(splits.train, device)
    labels = torch.from_numpy(np.array(splits.train.labels)).to(device)

    augmentation = Augmentation(
        recipe.augment,
        image_size=splits.train.images.shape[1:3],
        num_classes=len(splits.classes),
        key="augment",
        network_size=input_shape[1:],
    )
    batch_size = min(recipe.batch_size, len(splits.train)) // context.size * context.size
    if not batch_size:
        raise ConfigError(f"train.devices={context.size}: there are {len(splits.train)} training images; use fewer")
    steps_an_epoch = len(splits.train) // batch_size
    steps = min(recipe.epochs * steps_an_epoch, recipe.max_steps)
    epochs = math.ceil(steps / steps_an_epoch)

    context.normalize_together(network)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(network, recipe, head=head, fused=True)
    rate = LearningRate(optimizer, recipe, steps=steps)
    half = autocast_type(recipe.autocast, device)
    scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
    average = averaged(network, recipe.ema_decay) if recipe.ema_decay else None

    best, best_state, history = -1, _state(network), list[Epoch]()
    keeper = Unfinished(unfinished, device)
    if kept := keeper.read():
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        rate.load_state_dict(kept["rate"])
        scaler.load_state_dict(kept["scaler"])
        shuffle.set_state(kept["shuffle"])
        if average is not None:
            average.load_state_dict(kept["average"])
        best, best_state = kept["best"], kept["best_state"]
        history = [Epoch(**epoch) for epoch in kept["history"]]
        say(f"going on after epoch {len(history) - 1}")

    learning: list[nn.Parameter] = []
    forward: Callable[[Tensor], Tensor] | None = None
    with progress(f"training {title} on {context.size} x {device.type}", steps) as advance:
        advance(len(history) * steps_an_epoch)
        for epoch in range(len(history), epochs):
            if epoch - 1 - best >= recipe.patience:
                break
            start = time.monotonic()
            network.train()
            before_epoch(epoch, epochs)
            if context.rank:
                torch.manual_seed(hash((seed, epoch, context.rank)))
            learns = [parameter for parameter in network.parameters() if parameter.requires_grad]
            if forward is None or len(learns) != len(learning):
                forward, learning = None, learns  # gradients of the last connection would be awaited in vain
                forward = context.connect(network)
                if recipe.compile == "always" or (recipe.compile == "auto" and device.type == "cuda"):
                    forward = torch.compile(forward, dynamic=False)
            losses = []
            order = torch.randperm(len(splits.train), generator=shuffle)
            first, last = epoch * steps_an_epoch, min(steps, (epoch + 1) * steps_an_epoch)
            for step in range(first, last):
                chosen = order[(step - first) * batch_size : (step - first + 1) * batch_size]
                drawn = context.share(augmentation.draw(batch_size, shuffle))
                mine = context.share(chosen)
                changed = load(augmentation.change(take(mine), drawn))
                images, targets = augmentation.mix(changed, labels[mine.to(device)], drawn)
                with torch.autocast(device.type, half, enabled=half is not None):
                    loss = F.cross_entropy(forward(images), targets, label_smoothing=recipe.label_smoothing)
                if not loss.requires_grad:
                    raise ConfigError(
                        f"{title}: the logits carry no gradients, so that nothing can be learned: take torch.no_grad, "
                        "torch.inference_mode and detach() out of the network's forward, or use train=pretrained"
                    )
                optimizer.zero_grad()
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if recipe.clip_norm:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                rate.after_step()
                if average is not None:
                    average.update_parameters(network)
                losses.append(loss.detach())
                advance(1)

            train_loss = float(context.mean(torch.stack(losses).mean()))
            if average is not None:
                latest = _state(network)
                network.load_state_dict(average.module.state_dict())
            val_loss, val_top1 = validate(network, splits.val, load, device, context)
            if not math.isfinite(train_loss + val_loss):
                raise CellFailed(
                    f"training diverged in epoch {epoch}: loss {train_loss}, validation loss {val_loss}; "
                    f"choose a lower learning rate than {recipe.lr}"
                )
            seconds = time.monotonic() - start
            rate.after_epoch(val_loss)
            history.append(
                Epoch(
                    epoch=epoch,
                    train_loss=train_loss,
                    val_loss=val_loss,
                    val_top1=val_top1,
                    lr=rate.value,
                    seconds=seconds,
                )
            )
            if context.is_main:
                say(
                    f"epoch {epoch}: loss {train_loss:.4f}, validation {val_loss:.4f} {val_top1:.4f}, {seconds:.1f} s",
                )
            if best < 0 or val_loss < history[best].val_loss:
                best, best_state = epoch, _state(network)
            if average is not None:
                network.load_state_dict(latest)
            if context.is_main:
                keeper.write(
                    {
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "rate": rate.state_dict(),
                        "scaler": scaler.state_dict(),
                        "shuffle": shuffle.get_state(),
                        "average": average and average.state_dict(),
                        "best": best,
                        "best_state": best_state,
                        "history": [asdict(past) for past in history],
                    }
                )
    network.load_state_dict(best_state)
    return best, history


def choose_device(wanted: str, *, rank: int = 0, devices: int = 1) -> torch.device:
    """The device to train on; ``auto`` takes a GPU when there is one.

    Args:
        rank, devices: number of a process among so many, each of which needs a GPU of its own.

    Raises:
        ConfigError: a GPU is wanted and there is none, or there are fewer than processes.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: PyTorch sees no CUDA device; use train.device=auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if devices > torch.cuda.device_count():
        raise ConfigError(f"train.devices={devices}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use fewer")
    return torch.device("cuda", rank)


def autocast_type(wanted: str, device: torch.device) -> torch.dtype | None:
    """The half-precision type of a recipe's arithmetic on a device, None for float32.

    ``auto`` is bfloat16 on a GPU that computes it: on a CPU without the instructions it would be emulated, at a crawl.
    """
    match wanted:
        case "float16":
            return torch.float16
        case "bfloat16":
            return torch.bfloat16
        case "auto" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
    return None


def memory_format(network: nn.Module, input_shape: Shape, device: torch.device, *, learns: bool) -> torch.memory_format:
    """The layout of images in which a network runs fastest on a device, of those that it takes.

    With channels last, convolutions are faster but for training on a CPU. A network may ask for a ``view`` of features
    that exists only where they are not.
    """
    if learns and device.type == "cpu":
        return torch.contiguous_format
    images = torch.empty(2, *input_shape, device=device, memory_format=torch.channels_last).zero_()
    try:
        with torch.inference_mode():
            network.eval()(images)
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def loader(
    splits: Splits, input_shape: Shape, layout: torch.memory_format = torch.contiguous_format
) -> Callable[[Tensor], Tensor]:
    """From stored images [N, H, W, C] on any device to what the network takes."""
    return functools.partial(
        preprocess, input_shape=input_shape, mean_C=splits.mean_C, std_C=splits.std_C, bgr=splits.bgr,
        memory_format=layout,
    )  # fmt: skip


@torch.no_grad()  # a network may compute gradients itself
def compute_logits(
    network: nn.Module,
    split: Split,
    load: Callable[[Tensor], Tensor],
    device: torch.device,
    context: DistributedContext = ALONE,
) -> Tensor:
    """Logits, float32 [N, K], of this process's share of the images of a split, computed without autocast."""
    network.eval()
    take = _taker(split, device)
    mine = context.share(torch.arange(len(split)))
    at_a_time = max(1, min(_BATCH, _VALUES // math.prod(split.images.shape[1:])))
    return torch.cat([network(load(take(batch))).float() for batch in torch.split(mine, at_a_time)])


def validate(
    network: nn.Module,
    split: Split,
    load: Callable[[Tensor], Tensor],
    device: torch.device,
    context: DistributedContext = ALONE,
) -> tuple[float, float]:
    """Mean cross entropy and accuracy of a network on a split, every process computing its share."""
    logits_NK = compute_logits(network, split, load, device, context)
    labels_N = context.share(torch.from_numpy(np.array(split.labels))).to(device)
    hits = (logits_NK.argmax(1) == labels_N).sum()
    sums = torch.stack([F.cross_entropy(logits_NK, labels_N, reduction="sum"), hits])
    loss, top1 = (context.size * context.mean(sums) / len(split)).tolist()
    return loss, top1


def _state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a network holds."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _taker(split: Split, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From numbers of images, int64 [N], to the images, uint8 [N, H, W, C] on the device.

    A GPU keeps all of them where they fill less than half of what it has free. Otherwise they are read when needed.
    """
    if device.type == "cuda" and split.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        images = torch.from_numpy(np.array(split.images)).to(device)
        return lambda chosen: pixels_at(images, chosen.to(device))
    return lambda chosen: torch.from_numpy(split.images[chosen.numpy()]).to(device)
