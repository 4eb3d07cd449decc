"""The network of a model: its head, the weights that it starts from, and which of its parts are trained.

The head is the layer whose outputs are the classes, or what took its place; the rest is the backbone.
"""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from bitsweep.config.model import Model
from bitsweep.errors import ConfigError
from bitsweep.text import say
from bitsweep.training.outputs import yield_logits
from bitsweep.training.weights import State, read_weights

#: Outputs of the hidden layers of an ``mlp`` head, and the share that is dropped after each in training.
_HIDDEN, _DROPOUT = (512, 128), 0.3


def build_network(model: Model, num_classes: int) -> tuple[nn.Module, str]:
    """The network of a model with the head that it asks for, freshly initialised, and the path of that head.

    Raises:
        ConfigError: the network does not take the model's images, or yields no logits for them; or ``model.head`` asks
            for another head than the network's own, and that is not a linear layer.
    """
    network = model.build(num_classes)
    path = yield_logits(network, model, num_classes)
    if model.head == "mlp":
        own = dict(network.named_modules()).get(path)
        if not isinstance(own, nn.Linear):
            raise ConfigError(f"model.head=mlp: the last layer of {model.name} is not linear; use model.head=linear")
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, _mlp(own.in_features, num_classes))
    return network, path


def start_from_weights(network: nn.Module, model: Model, *, num_classes: int, head: str = "") -> None:
    """Fill a fresh network with the weights that its model names, if any.

    Args:
        num_classes: of the network.
        head: path of the head, which stays as it is if that of the weights is another; empty: it must fit as well.

    Raises:
        ConfigError: the weights cannot be read or downloaded, or do not fit.
    """
    why = partial(_reasons, model, network.state_dict(), num_classes)
    if model.weights == "imagenet":
        _fill(network, model.imagenet_state(), origin="model.weights=imagenet", head=head, why=why)
    elif model.weights:
        load_weights(network, Path(model.weights).expanduser(), head=head, why=why)


def load_weights(
    network: nn.Module, file: Path, *, head: str = "", why: Callable[[State], str] = lambda other: ""
) -> None:
    """Fill a network with a state_dict, which must fit it exactly, apart from the head if that is given.

    What checkpoints hold beside it, and what wrappers of networks add to its names, is taken off, see
    `bitsweep.training.weights`.

    Args:
        why: what to add to the message, given the tensors of other shapes.

    Raises:
        ConfigError: the file holds no state_dict, or one of another network.
    """
    parameters = frozenset(name for name, _ in network.named_parameters())
    state = read_weights(file, network.state_dict(), parameters=parameters)
    _fill(network, state, origin=f"model.weights={file}", head=head, why=why)


def freeze(
    network: nn.Module, head: str, *, backbone: bool, statistics: bool, fixed: Collection[str] = frozenset()
) -> None:
    """Say what of a network in training mode stays as it is: its backbone, or only the statistics of its normalisation.

    A batch normalisation that keeps its running statistics normalises by them.

    Args:
        fixed: names of the parameters that stay as they are in any case.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in fixed and (not backbone or _within(name, head)))
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and (statistics or (backbone and not _within(name, head))):
            module.eval()


def split_parameters(network: nn.Module, head: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the head and those of the backbone."""
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for name, parameter in network.named_parameters():
        parts[0 if _within(name, head) else 1].append(parameter)
    return parts


def _mlp(features: int, num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for outputs in _HIDDEN:
        layers += [nn.Linear(features, outputs), nn.ReLU(), nn.Dropout(_DROPOUT)]
        features = outputs
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def _fill(network: nn.Module, state: State, *, origin: str, head: str, why: Callable[[State], str]) -> None:
    own = network.state_dict()
    theirs = dict(state)
    if head:
        of_head = {name for name in own.keys() | theirs.keys() if _within(name, head)}
        if any(name not in own or name not in theirs or own[name].shape != theirs[name].shape for name in of_head):
            say(f"{origin}: the head {head} is for other classes, or another one: a new one is trained")
            theirs = {name: value for name, value in theirs.items() if name not in of_head}
            theirs |= {name: own[name] for name in of_head & own.keys()}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in own if name not in theirs and name not in counters]
    wrong += [f"{name} is not in the network" for name in theirs if name not in own]
    shapes = {name: (theirs[name].shape, of.shape) for name, of in own.items() if name in theirs}
    unlike = [name for name, (their, of) in shapes.items() if their != of]
    wrong += [f"{name} has shape {list(shapes[name][0])} instead of {list(shapes[name][1])}" for name in unlike]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        cure = why({name: theirs[name] for name in unlike})
        raise ConfigError(f"{origin}: does not fit the network: {', '.join(wrong[:5])}{more}{cure}")
    network.load_state_dict(own | theirs)
    _require_statistics(network, origin)


def _reasons(model: Model, own: State, num_classes: int, other: State) -> str:
    """The knobs that decide where shapes differ: the network is built once more with another value of each."""
    if not other:
        return ""
    channels, height, width = model.input_shape
    different: dict[str, tuple[dict[str, Any], int]] = {
        f"model.image_size={height if height == width else [height, width]}": (
            {"image_size": (2 * height, 2 * width)},
            num_classes,
        ),
        f"model.channels={channels}": ({"channels": channels % 16 + 1, "mean": (), "std": ()}, num_classes),
        f"the number of classes, {num_classes}": ({}, num_classes + 1),
    }
    found = []
    for named, (knobs, classes) in different.items():
        with contextlib.suppress(Exception):  # a network may take no other value
            built = replace(model, **knobs).build(classes).state_dict()
            if any(_unlike(built[name], own[name]) & _unlike(of, own[name]) for name, of in other.items()):
                found.append(named)
    return f"; such shapes follow {' and '.join(found)}: give what the weights were made for" if found else ""


def _unlike(one: Tensor, other: Tensor) -> set[int]:
    """The dimensions in which two shapes differ."""
    return {place for place, sizes in enumerate(zip(one.shape, other.shape, strict=False)) if len({*sizes}) > 1}


def _require_statistics(network: nn.Module, origin: str) -> None:
    """Refuse statistics that nothing can be normalised by: a damaged file may hold them, and they yield NaN."""
    for name, module in network.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None or module.running_var is None:
            continue
        wrong = ~((module.running_var + module.eps > 0) & torch.isfinite(module.running_var))
        if wrong.any():
            worst = module.running_var[wrong][0]
            raise ConfigError(
                f"{origin}: {name}.running_var holds {worst:.3g}, which is no variance ({int(wrong.sum())} of "
                f"{len(wrong)} values): the file is damaged; take another checkpoint"
            )
        if not torch.isfinite(module.running_mean).all():
            raise ConfigError(f"{origin}: {name}.running_mean holds infinities: take another checkpoint")


def _within(name: str, path: str) -> bool:
    """Whether a module or parameter is the one of a path, or inside it; everything is inside the empty path."""
    return not path or name == path or name.startswith(f"{path}.")
