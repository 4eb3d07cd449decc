"""torchvision's own networks."""

import ast
import difflib
import functools
import importlib.util
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeGuard

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model
from bitsweep.data.pixels import Framing
from bitsweep.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from bitsweep.errors import ConfigError, one_line

if TYPE_CHECKING:
    import torch


@configurable
class TorchvisionModel(Model):
    """A classifier of torchvision.

    Attributes:
        builder: name of the function in ``torchvision.models``, e.g. ``resnet18``.
    """

    weights_package: ClassVar[str] = "torchvision"

    builder: str

    def check(self) -> None:
        """Whether torchvision has such a classifier."""
        if self.builder not in (names := _classifiers()):
            close = difflib.get_close_matches(self.builder, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"model.builder={self.builder}: no such classifier; {hint}choose from {', '.join(names)}")

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network with ``num_classes`` outputs and random weights.

        Raises:
            ConfigError: torchvision has no such classifier.
        """
        import torchvision

        self.check()
        network: torch.nn.Module = torchvision.models.get_model(self.builder, weights=None, num_classes=num_classes)
        return take_channels(network, self.channels)

    def imagenet_state(self) -> "dict[str, torch.Tensor]":
        """torchvision's default weights, downloaded into the cache of ``torch.hub`` if they are not there.

        Raises:
            ConfigError: they can be neither downloaded nor read.
        """
        import torch
        import torchvision

        try:
            network: torch.nn.Module = torchvision.models.get_model(self.builder, weights="DEFAULT", progress=False)
        except (OSError, RuntimeError) as error:
            url = torchvision.models.get_model_weights(self.builder).DEFAULT.url
            raise ConfigError(
                f"model.weights=imagenet: {url} could not be downloaded and read ({one_line(error)}); connect to the "
                f"internet, or put it into {torch.hub.get_dir()}/checkpoints"
            ) from error
        return network.state_dict()

    def published_framing(self) -> Framing | None:
        """What ``weights.transforms()`` does."""
        if (of := preset(self.builder)) is None:
            return None
        size = of.crop_size
        return Framing(height=size, width=size, resize=(of.resize_size,), interpolation=of.interpolation)

    def imagenet_pixels(self) -> Literal["imagenet", "published"]:
        """What ``weights.transforms()`` does."""
        of = preset(self.builder)
        return "imagenet" if of is None or (of.mean, of.std) == (IMAGENET_MEAN, IMAGENET_STD) else "published"

    def published_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What ``weights.transforms()`` does."""
        of = preset(self.builder)
        assert of is not None
        return of.mean, of.std


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What torchvision's ``ImageClassification`` does, with what it does where nothing is said."""

    crop_size: int
    resize_size: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    antialias: bool = True


@functools.cache
def preset(builder: str) -> Preset | None:
    """The transforms of a classifier's default weights, read in torchvision's source; None where they are others.

    So planning knows it without importing torchvision.
    """
    function = _definitions().get(builder)
    if not isinstance(function, ast.FunctionDef):
        return None
    hints = [ast.unparse(each.annotation) for each in function.args.kwonlyargs if each.annotation]
    names = [match[0] for hint in hints if (match := re.search(r"\w+_Weights", hint))]
    weights = _definitions().get(names[0]) if names else None
    return _preset_of(weights) if isinstance(weights, ast.ClassDef) else None


def _preset_of(weights: ast.ClassDef) -> Preset | None:
    values = {each.targets[0].id: each.value for each in weights.body if _names_one(each)}
    default = values.get("DEFAULT")
    while isinstance(default, ast.Name):
        default = values.get(default.id)
    if not isinstance(default, ast.Call):
        return None
    transforms = {keyword.arg: keyword.value for keyword in default.keywords}.get("transforms")
    if not isinstance(transforms, ast.Call) or ast.unparse(transforms.args[0]) != "ImageClassification":
        return None
    given: dict[str, Any] = {
        str(each.arg): each.value.attr.lower()
        if isinstance(each.value, ast.Attribute)
        else ast.literal_eval(each.value)
        for each in transforms.keywords
    }
    return None if given.keys() - {field.name for field in fields(Preset)} else Preset(**given)


def _names_one(statement: ast.stmt) -> TypeGuard[Any]:
    return isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)


def take_channels(network: "torch.nn.Module", channels: int) -> "torch.nn.Module":
    """Let a network take images of so many channels: its first convolution gets other random weights, if need be."""
    import torch

    stem = next(each for each in network.modules() if isinstance(each, torch.nn.Conv2d))
    if channels != stem.in_channels:
        stem.in_channels = channels
        stem.weight = torch.nn.Parameter(torch.empty(stem.out_channels, channels, *stem.kernel_size))
        torch.nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return network


@functools.cache
def _classifiers() -> list[str]:
    """Names of torchvision's builders, from its source: importing it takes a second, planning must not."""
    found = (
        re.findall(r"@register_model\(\)\n(?:@.*?\n)*def (\w+)\(", file.read_text(), re.DOTALL) for file in _files()
    )
    return sorted(name for names in found for name in names)


@functools.cache
def _definitions() -> dict[str, ast.stmt]:
    """Functions and classes by name."""
    trees = (ast.parse(file.read_text()) for file in _files())
    return {each.name: each for tree in trees for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)}


def _files() -> list[Path]:
    """Of torchvision's networks for images."""
    package = importlib.util.find_spec("torchvision")
    assert package is not None and package.submodule_search_locations
    return sorted(Path(package.submodule_search_locations[0], "models").glob("*.py"))
