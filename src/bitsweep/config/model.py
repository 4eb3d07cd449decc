"""The base class of models: a network before it is trained."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from bitsweep.config.configurable import Choice, Place, Several, configurable
from bitsweep.config.weights_file import require_weights
from bitsweep.data.pixels import Framing
from bitsweep.errors import ConfigError, MissingPackage
from bitsweep.runtime.environment import version_of
from bitsweep.runtime.integrity import digest_of

if TYPE_CHECKING:
    import torch


#: Pixels of a side of an image: what a picture may have at most in most formats.
LARGEST = 65_535


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def size_of(value: Any) -> int | tuple[int, int]:
    """One number for both sides, or height and width."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(side, int) and side > LARGEST for side in sides):
        raise ValueError(f"should be {LARGEST:,} pixels at most")
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        sides = []
    if len(sides) not in (1, 2):
        raise ValueError("should be one number of pixels, or [height,width]")
    return int(sides[0]) if len(sides) == 1 else (sides[0], sides[1])


def _margins(value: Any) -> int | tuple[int, ...]:
    """As torchvision's ``Pad`` takes them."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(sides) not in (1, 2, 4) or not all(type(side) is int and side >= 0 for side in sides):
        raise ValueError(
            "should be one number of pixels, or [left and right,top and bottom], or [left,top,right,bottom]"
        )
    return int(sides[0]) if len(sides) == 1 else tuple(sides)


Margins = Annotated[int | tuple[int, ...], PlainValidator(_margins)]
Size = Annotated[int | tuple[int, int], PlainValidator(size_of)]
Normalization = Literal["dataset", "imagenet", "centred", "published", "given"]


@configurable
class Model(Choice, ABC):
    """A network architecture.

    Attributes:
        channels: of the images that it takes. Grey images fill as many as there are; otherwise there must be as many.
        image_size: of its input, in pixels: one number for squares, or height and width.
        weights: what to start from: ``imagenet``, the published weights of this network; the path of a state_dict file;
            empty for random weights. A head for other classes than those of the data set is replaced.
        resize: what a picture is resized to first, in pixels: its shorter side, or height and width. None of resize,
            crop and pad: as the data set or the published weights say.
        crop: what of its middle is kept at last: as much as the network takes.
        pad: black pixels around it before that: on all sides; left and right, top and bottom; or left, top, right and
            bottom.
        interpolation, antialias: how it is resized, see `bitsweep.data.pixels.Framing`.
        normalization: of the pixels: by mean and std of the training images (``dataset``) or of ImageNet's
            (``imagenet``); to about -1 to 1 (``centred``: (x - 127) / 128 for x from 0 to 255); or ``auto``, what
            ``weights=imagenet`` was trained with, otherwise ``dataset``.
        mean, std: to normalise by instead, in units of `pixel_range`: one number, or one for each channel in the order
            in which the network takes them. None: pixels stay as they are where `pixel_range` is given.
        pixel_range: what black and white are before mean and std apply; 0 and 1 where it is not given.
        channel_order: whether the network takes red first (``rgb``) or blue (``bgr``, as OpenCV reads pictures).
        head: ``linear``, the network's own last layer; ``mlp``, linear layers of 512 and 128 outputs with ReLU and
            dropout in front of one for the classes.
        output: which of several outputs the logits are, by its name or number (``out.0`` where they are nested); empty
            for the one called ``logits``, else the first.
        has_outputs: whether it may yield others than logits.
        package, extra: distribution that the network comes in, and the extra of this project that installs it.
        weights_package, weights_extra: the same for the weights named ``imagenet``; empty where there are none.
    """

    channels: Annotated[int, Field(ge=1, le=16)] = 3
    image_size: Size
    weights: Place = ""
    normalization: Literal["auto", "dataset", "imagenet", "centred"] = "auto"
    resize: Size | None = None
    crop: Size | None = None
    pad: Margins = 0
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    antialias: bool = True
    mean: Several[float] = ()
    std: Several[Annotated[float, Field(gt=0)]] = ()
    pixel_range: tuple[float, float] | None = None
    channel_order: Literal["rgb", "bgr"] = "rgb"
    head: Literal["linear", "mlp"] = "linear"
    output: str | int = ""
    has_outputs: ClassVar[bool] = False
    package: ClassVar[str] = "torch"
    extra: ClassVar[str] = ""
    weights_package: ClassVar[str] = ""
    weights_extra: ClassVar[str] = ""

    @abstractmethod
    def build(self, num_classes: int) -> "torch.nn.Module":
        """A freshly initialised network that maps float images [N, C, H, W] to logits [N, num_classes]."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        """Knobs of the pixels that contradict each other are refused."""
        if bool(self.mean) != bool(self.std):
            raise ValueError("mean, std: give both or none")
        if self.channels and (reason := self.against_channels(self.channels)):
            raise ValueError(reason)
        if self.pixel_range and self.pixel_range[0] >= self.pixel_range[1]:
            raise ValueError(f"pixel_range={list(self.pixel_range)}: black must be less than white, as in [0,255]")
        if self.normalization != "auto" and (self.mean or self.pixel_range):
            raise ValueError(
                f"normalization={self.normalization}: does not go with mean, std or pixel_range; leave it out"
            )
        if self.crop is not None and self.image_size and _pair(self.crop) != _pair(self.image_size):
            raise ValueError(f"crop={self.crop}: is what the network takes; set model.image_size={self.crop} as well")
        if not self.antialias and self.resize is None:
            raise ValueError("antialias=false: says how to resize; give model.resize")
        return self

    def against_channels(self, channels: int) -> str | None:
        """What a knob of the pixels says that does not go with so many channels; None where all do."""
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                return f"{key}={list(values)}: give one number, or one for each of {channels} channels"
        if self.channel_order == "bgr" and channels != 3:
            return f"channel_order=bgr: is for three channels, not {channels}"
        return None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what it takes."""
        return (self.channels, *_pair(self.image_size))

    @property
    def framing(self) -> Framing | None:
        """What becomes of pictures before they are stored; None where the data set says."""
        channels, height, width = self.input_shape
        kept: dict[str, Any] = {"height": height, "width": width, "channels": channels}
        if self.resize is not None or self.crop is not None or self.pad:
            match self.pad:
                case int(margin):
                    pad: tuple[int, ...] = (margin,) * 4
                case (across, down):
                    pad = (across, down, across, down)
                case each:
                    pad = each
            size = self.resize
            resize = () if size is None else (size,) if isinstance(size, int) else size
            return Framing(**kept, resize=resize, pad=pad, interpolation=self.interpolation, antialias=self.antialias)
        if self.framed_by_weights:
            return self.published_framing()
        plain = channels == 3 and height == width and self.interpolation == "bilinear"
        return None if plain else Framing(**kept, interpolation=self.interpolation)

    @property
    def framed_by_weights(self) -> bool:
        """Whether that is what the published accuracy of its weights was measured with: where its size is theirs."""
        says = self.resize is not None or self.crop is not None or self.pad or self.interpolation != "bilinear"
        if self.weights != "imagenet" or says or self.input_shape[0] != 3:
            return False
        published = self.published_framing()
        return published is not None and (published.height, published.width) == self.input_shape[1:]

    def check(self) -> None:
        """See what can be seen without building: planning calls this, so that it imports nothing heavy.

        Raises:
            ConfigError: there is no such network.
        """

    def head_named(self) -> str:
        """Path of the head, where a knob names it; empty where it is to be found."""
        return ""

    def imagenet_state(self) -> "dict[str, torch.Tensor]":
        """The state_dict that ``weights=imagenet`` means, with a head for ImageNet's 1,000 classes.

        Raises:
            ConfigError: they cannot be downloaded.
        """
        raise AssertionError(f"{type(self).__name__} has no ImageNet weights, see source")

    def imagenet_pixels(self) -> Literal["imagenet", "centred", "published"]:
        """The normalisation that ``weights=imagenet`` was trained with; ``published`` for one of their own."""
        return "imagenet"

    def published_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of that, in units of [0, 1]."""
        raise AssertionError(f"{type(self).__name__} has no normalisation of its own, see imagenet_pixels")

    def published_framing(self) -> Framing | None:
        """How pictures were resized and cropped for the accuracy published of ``weights=imagenet``; None: not known."""
        return None

    def source(self) -> str:
        """A fingerprint of the weights, the same before and after a download; empty for random ones.

        Raises:
            ConfigError: there is no such file, it holds no weights, or there are no weights of that name.
            MissingPackage: what they come in is not installed.
        """
        if not self.weights:
            return ""
        if self.weights == "imagenet":
            if not self.weights_package:
                raise ConfigError(
                    f"model.weights=imagenet: there are none for {self.name}; give the path of a state_dict, or train "
                    "from scratch with model.weights=''"
                )
            if (version := version_of(self.weights_package)) == "absent":
                raise MissingPackage(self.weights_package, self.weights_extra)
            return f"imagenet of {self.weights_package} {version}"
        digest = digest_of_file("model.weights", self.weights, "a state_dict, or model.weights=imagenet")
        try:
            require_weights(Path(self.weights).expanduser())
        except ConfigError as error:
            raise ConfigError(f"model.weights={self.weights}: {error}") from error
        return digest

    @property
    def from_file(self) -> bool:
        """Whether its weights come from a file, which says nothing of pixels."""
        return self.weights not in ("", "imagenet")

    def unsaid(self) -> str:
        """What is to be told where neither a knob nor the weights say how pixels are normalised; empty otherwise."""
        if not self.from_file or self.normalization != "auto" or self.pixels != "dataset":
            return ""
        return (
            f"model={self.name}: its file does not say how it wants its pixels: mean and std are those of the data "
            f"set's images. {self._usual_pixels()}; model.normalization=dataset is this, without the message"
        )

    def _usual_pixels(self) -> str:
        """The knobs that say what the published weights of this network see."""
        try:
            if not self.weights_package:
                raise ConfigError("there are none")
            known, framing = self.imagenet_pixels(), self.published_framing()
            moments = self.published_moments() if known == "published" else ()
        except ConfigError:
            return "Give model.mean and model.std of its training, or model.normalization=imagenet"
        knobs = []
        if framing and framing.resize:
            knobs = [f"model.image_size={framing.height}", f"model.resize={framing.resize[0]}"]
        if framing and framing.interpolation != "bilinear":
            knobs.append(f"model.interpolation={framing.interpolation}")
        if moments:
            knobs += [
                f"model.{key}=[{','.join(f'{value:g}' for value in of)}]"
                for key, of in zip(("mean", "std"), moments, strict=True)
            ]
        else:
            knobs.append(f"model.normalization={known}")
        return f"If it was trained as the published weights of {self.name} were, give {' '.join(knobs)}"

    @property
    def pixels(self) -> Normalization:
        """The normalisation of the pixels, decided."""
        if self.mean or self.pixel_range:
            return "given"
        if self.normalization == "auto":
            return self.imagenet_pixels() if self.weights == "imagenet" else "dataset"
        return self.normalization


def digest_of_file(key: str, place: str, wanted: str) -> str:
    """What tells the content of a file that a knob names from others.

    Args:
        wanted: what to give the path of.

    Raises:
        ConfigError: there is no such file, or nothing in it.
    """
    file = Path(place).expanduser()
    if not file.is_file():
        raise ConfigError(f"{key}={place}: no such file; give the path of {wanted}")
    if not file.stat().st_size:
        raise ConfigError(f"{key}={place}: is empty; get it again")
    return digest_of(file)
