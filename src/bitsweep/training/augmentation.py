"""Random changes of training images: moves of whole batches, and transforms of torchvision.transforms.v2 by name.

torchvision's transforms change all images of a batch alike, so they get one image after the other. The two moves, which
are the most common, do a batch at once.

Shape letters: N images, C channels, H height, W width, K classes.
"""

import difflib
import inspect
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from bitsweep.config.augmentation import MOVES, Step
from bitsweep.errors import ConfigError, first_line

#: Transforms that mix the images of a batch, and their classes.
_MIXERS = ("MixUp", "CutMix")
#: What is drawn for an image: pixels down, pixels right, whether to mirror it, its seed, and that of its batch.
_DRAWN = 5


class Augmentation:
    """What is done to the images of each batch.

    All that is random comes from what was drawn for each image, so one process does the same as several that share a
    batch; only MixUp and CutMix mix those images alone that a process has.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        image_size: tuple[int, ...],
        num_classes: int,
        key: str,
        network_size: tuple[int, ...] | None = None,
    ) -> None:
        """Make the transforms.

        Args:
            steps: names and arguments, see `bitsweep.config.augmentation`.
            image_size: height and width of the images; the ``size`` of transforms that need one and are given none.
            key: of the setting, for messages.
            network_size: height and width that the network takes, which images may have afterwards, too; None for any.

        Raises:
            ConfigError: there is no such transform, or it does not take such arguments.
        """
        self._key, self._network_size = key, network_size
        self._offered: dict[str, Any] = {"size": image_size, "num_classes": num_classes}
        self._moves = next((name for step in steps for name in step if name in MOVES), "")
        rest = [step for step in steps if self._moves not in step]
        mixing = [_mixes(step) for step in rest]
        if mixing != sorted(mixing):
            raise ConfigError(f"{key}: {' and '.join(_MIXERS)} mix whole batches: put them last")
        self._alone = [self._made(step) for step in rest if not _mixes(step)]
        self._together = [self._made(step) for step in rest if _mixes(step)]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """What is to be done to each image of a batch: int64 [N, 5]."""
        drawn = torch.zeros(count, _DRAWN, dtype=torch.int64)
        if self._moves:
            height, width = self._offered["size"]
            drawn[:, 0] = torch.randint(-(height // 8), height // 8 + 1, (count,), generator=generator)
            drawn[:, 1] = torch.randint(-(width // 8), width // 8 + 1, (count,), generator=generator)
        if self._moves == "shift_flip":
            drawn[:, 2] = torch.rand(count, generator=generator) < 0.5
        if self._alone or self._together:
            drawn[:, 3:] = torch.randint(2**62, (count, 2), generator=generator)
            drawn[:, 4] = drawn[0, 4]
        return drawn

    def change(self, images_NHWC: Tensor, drawn: Tensor) -> Tensor:
        """Stored images, changed one by one, on their device; they may become as large as the network takes them.

        Raises:
            ConfigError: a transform does not take them, or makes something else of them.
        """
        if self._moves:
            images_NHWC = _moved(images_NHWC, drawn)
        if not self._alone:
            return images_NHWC
        pixels = images_NHWC.dtype
        planes_NCHW = images_NHWC.permute(0, 3, 1, 2)
        if pixels == torch.uint16:  # which torchvision computes nothing with
            planes_NCHW = planes_NCHW.float() / 65535
        changed = []
        with _kept_random_numbers(images_NHWC.device):
            for image_CHW, seed in zip(planes_NCHW, drawn[:, 3].tolist(), strict=True):
                torch.manual_seed(seed)
                for transform in self._alone:
                    image_CHW = self._called(transform, image_CHW)
                changed.append(image_CHW)
        self._require_like(changed, planes_NCHW)
        result_NCHW = torch.stack(changed)
        if pixels == torch.uint16:
            result_NCHW = (result_NCHW.clamp(0, 1) * 65535).round().int().to(pixels)
        return result_NCHW.permute(0, 2, 3, 1).contiguous()

    def mix(self, images_NCHW: Tensor, labels_N: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and their labels, or what was mixed of both: then the labels are shares, float [N, K]."""
        if not self._together:
            return images_NCHW, labels_N
        with _kept_random_numbers(images_NCHW.device):
            torch.manual_seed(int(drawn[0, 4]))
            for transform in self._together:
                images_NCHW, labels_N = self._called(transform, images_NCHW, labels_N)
        return images_NCHW, labels_N

    def _made(self, step: Step) -> Any:
        from torchvision.transforms import v2

        ((name, given),) = step.items()
        known = [each for each, kind in vars(v2).items() if inspect.isclass(kind) and issubclass(kind, v2.Transform)]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see torchvision's list of them"
            raise ConfigError(f"{self._key}={name}: torchvision.transforms.v2 has no such transform; {hint}")
        takes = inspect.signature(getattr(v2, name)).parameters
        for unknown in given.keys() - takes.keys():
            close = difflib.get_close_matches(unknown, takes, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(takes) or 'none'}"
            raise ConfigError(f"{self._key}.{name}.{unknown}: no such argument; {hint}")
        offered = {each: value for each, value in self._offered.items() if each in takes and _lacks(takes[each])}
        try:
            return getattr(v2, name)(**offered | {each: self._value(takes[each], given[each]) for each in given})
        except ConfigError:
            raise
        except Exception as error:  # whatever a transform raises for arguments that it does not take
            raise ConfigError(f"{self._key}.{name}: {first_line(error)}") from error

    def _value(self, parameter: inspect.Parameter, value: Any) -> Any:
        """An argument as a transform takes it: names of other transforms become these, and words become members."""
        if parameter.name == "transforms":
            return [self._made(step) for step in value]
        if isinstance(parameter.default, Enum) and isinstance(value, str):
            return type(parameter.default)(value)
        return value

    def _called(self, transform: Any, *inputs: Tensor) -> Any:
        try:
            return transform(*inputs)
        except Exception as error:  # whatever a transform raises for images that it does not take
            shape = list(inputs[0].shape[-3:])
            name = type(transform).__name__
            raise ConfigError(f"{self._key}.{name}: fails on images {shape}: {first_line(error)}") from error

    def _require_like(self, changed: Sequence[Any], planes_NCHW: Tensor) -> None:
        names = ", ".join(type(each).__name__ for each in self._alone)
        for each in changed:
            if not isinstance(each, Tensor) or each.dtype != planes_NCHW.dtype or each.ndim != 3:
                raise ConfigError(f"{self._key}: {names} makes no images of whole-numbered pixels; leave it out")
            if len(each) != planes_NCHW.shape[1]:
                raise ConfigError(f"{self._key}: {names} makes images of {len(each)} channels; leave it out")
            if each.shape != changed[0].shape:
                raise ConfigError(f"{self._key}: {names} makes images of unlike sizes; put RandomResizedCrop behind it")
        before, after = tuple(planes_NCHW.shape[2:]), tuple(changed[0].shape[1:])
        if self._network_size and after not in (before, self._network_size):
            raise ConfigError(
                f"{self._key}: {names} makes images of {_by(after)} from {_by(before)}, and the network takes "
                f"{_by(self._network_size)}: give the size of either, or put {{Resize: {{size: "
                f"{list(self._network_size)}}}}} behind it"
            )


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def check(steps: Sequence[Step], *, channels: int, image_size: tuple[int, ...], key: str) -> None:
    """Try transforms on random images.

    Raises:
        ConfigError: they are not to be had, or do not take such images.
    """
    generator = torch.Generator().manual_seed(0)
    images_NHWC = torch.randint(256, (8, *image_size, channels), dtype=torch.uint8, generator=generator)
    augmentation = Augmentation(steps, image_size=image_size, num_classes=2, key=key)
    drawn = augmentation.draw(len(images_NHWC), generator)
    images_NCHW = augmentation.change(images_NHWC, drawn).permute(0, 3, 1, 2).float()
    augmentation.mix(images_NCHW, torch.arange(len(images_NHWC)) % 2, drawn)


def _mixes(step: Step) -> bool:
    """Whether a step, or one of those that it is made of, needs a whole batch."""
    ((name, arguments),) = step.items()
    return name in _MIXERS or any(_mixes(within) for within in arguments.get("transforms", ()))


def _lacks(parameter: inspect.Parameter) -> bool:
    """Whether a transform cannot do without an argument; MixUp and CutMix only seem to."""
    return parameter.name == "num_classes" or parameter.default is inspect.Parameter.empty


def _kept_random_numbers(device: torch.device) -> Any:
    """A context that leaves the generators of PyTorch as they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _moved(images_NHWC: Tensor, drawn: Tensor) -> Tensor:
    """Images moved and mirrored; edges are repeated."""
    N, H, W, _ = images_NHWC.shape
    device = images_NHWC.device
    down, right, mirrored = drawn[:, :3].to(device).T[:, :, None]
    rows = (torch.arange(H, device=device) + down).clamp(0, H - 1)
    columns = (torch.arange(W, device=device) + right).clamp(0, W - 1)
    columns = torch.where(mirrored == 1, columns.flip(1), columns)
    return pixels_at(images_NHWC, torch.arange(N, device=device)[:, None, None], rows[:, :, None], columns[:, None, :])


def pixels_at(images_NHWC: Tensor, *index: Tensor) -> Tensor:
    """``images_NHWC[index]``, also of 16 bits, for which PyTorch has no such kernel on a GPU."""
    if images_NHWC.dtype == torch.uint16:
        return images_NHWC.view(torch.int16)[index].view(torch.uint16)
    return images_NHWC[index]
