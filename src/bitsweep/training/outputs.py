"""What a network yields: the logits among it, and the layer that makes them, its head."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitsweep.config.model import Model
from bitsweep.errors import ConfigError, first_line
from bitsweep.text import say

#: Between the path of a module and the names of what its weights are computed from.
_PARAMETRIZED = ".parametrizations."


def yield_logits(network: nn.Module, model: Model, num_classes: int | None) -> str:
    """Let a network yield its logits alone, in training, evaluation and export alike.

    Among several outputs these are the one that ``model.output`` names, else the one called ``logits``, else the first
    that has a number for each class.

    Args:
        num_classes: None where it is not known yet: then logits of any number of classes will do.

    Returns:
        The path of its head: of the module, or the parameter, whose weights are nearest to the logits; empty where
        there is none.

    Raises:
        ConfigError: the network does not take the images, or yields no such logits.
    """
    outputs = _outputs(network, model)
    named = dict(_tensors(outputs))
    path = _chosen(named, model, num_classes)
    logits = _flat(named[path])
    head = _head(network, logits)
    if named_head := model.head_named():
        if not any(f"{name}.".startswith(f"{named_head}.") for name, _ in network.named_parameters()):
            found = f"; leave it out for {head}" if head else ""
            raise ConfigError(f"model.head_path={named_head}: the network has no such part with weights{found}")
        head = named_head
    if num_classes is not None and (
        logits.ndim != 2
        or (logits.shape[1] != num_classes and not _renew(network, model, head, logits.shape[1], num_classes))
    ):
        of = f"its output {path}" if path else "what it yields"
        shape = ", ".join(map(str, ("N", *logits.shape[1:])))
        others = len(named) > 1
        cure = f"set model.output to one of {', '.join(named)}" if others else f"make it for {num_classes} classes"
        raise ConfigError(
            f"model={model.name}: {of} has shape [{shape}] instead of [N, {num_classes}], a logit for each class; "
            + cure
        )

    def alone(outputs: Any) -> Tensor:
        named = dict(_tensors(outputs))  # which are others in training where a network has auxiliary heads
        return _flat(named[path if path in named else _likely(list(named))])

    yields_probabilities = {False: _are_probabilities(logits), True: False}
    if yields_probabilities[False]:
        say(f"model={model.name} yields probabilities: their logarithms are taken for the logits")
        yields_probabilities[True] = _are_probabilities(alone(copy.deepcopy(network).train()(_black(model))))

    def as_logits(module: nn.Module, images: Any, outputs: Any) -> Tensor:
        given = alone(outputs)
        return given.clamp_min(torch.finfo(given.dtype).tiny).log() if yields_probabilities[module.training] else given

    network.register_forward_hook(as_logits)
    return head


def parts_without_logits(network: nn.Module, model: Model) -> list[str]:
    """Paths of the largest parts with parameters on which the logits do not depend in evaluation.

    Auxiliary heads are such parts, and heads for another task than this one. A part without gradients may be one that
    the network keeps as it is (`torch.no_grad`), so what has no part must change no logit as NaN either.

    Args:
        network: one that yields its logits alone.
    """
    logits = _outputs(network, model)
    used = {id(weight) for step in _steps(logits) if (weight := getattr(step, "variable", None)) is not None}
    parts = dict[str, list[nn.Parameter]]()
    for path, module in [*network.named_modules(), *network.named_parameters()]:
        parameters = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
        inside = any(path.startswith(f"{part}.") for part in parts)
        if path and parameters and not inside and used.isdisjoint(map(id, parameters)):
            parts[path] = parameters
    return [path for path, parameters in parts.items() if not _reaches_logits(network, model, parameters)]


def _reaches_logits(network: nn.Module, model: Model, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether logits are NaN where these parameters are."""
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.detach().fill_(torch.nan)
        return bool(_outputs(network, model).isnan().any())
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.detach().copy_(value)


def _flat(logits: Tensor) -> Tensor:
    """Logits [N, K], where a network yields them with further dimensions of 1, as [N, K, 1, 1]."""
    return logits.flatten(1) if logits.ndim > 2 and max(logits.shape[1:]) == logits.shape[1:].numel() else logits


def _are_probabilities(logits: Tensor) -> bool:
    """Whether these come from a softmax over the classes."""
    values = logits.detach()
    if values.ndim != 2 or values.shape[1] == 1:
        return False
    return bool((values >= 0).all()) and torch.allclose(values.sum(1), values.new_ones(len(values)), atol=1e-3)


def _renew(network: nn.Module, model: Model, head: str, outputs: int, num_classes: int) -> bool:
    """Whether a head with so many outputs is a layer that another for the classes can take the place of, as it does."""
    layer = dict(network.named_modules()).get(head)
    renewed: nn.Module
    if type(layer) is nn.Linear and layer.out_features == outputs:
        renewed = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
    elif type(layer) is nn.Conv2d and layer.out_channels == outputs and max(layer.kernel_size) == layer.groups == 1:
        renewed = nn.Conv2d(layer.in_channels, num_classes, 1, bias=layer.bias is not None)
    else:
        return False
    parent, _, name = head.rpartition(".")
    if not name:
        return False
    setattr(network.get_submodule(parent), name, renewed)
    try:
        _outputs(network, model)
    except ConfigError:  # another layer's outputs are joined with those of this one
        setattr(network.get_submodule(parent), name, layer)
        return False
    say(f"the head {head} has {outputs} outputs: a new one for {num_classes} classes takes its place")
    return True


def _outputs(network: nn.Module, model: Model) -> Any:
    """What a network yields for two black images, with what gradients need."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    training = network.training
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            return network.eval()(_black(model))
    except Exception as error:
        reason = first_line(error)
        raise ConfigError(
            f"model={model.name}: the network does not take images of {' x '.join(map(str, model.input_shape))} "
            f"(model.channels, model.image_size): {reason}"
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        network.train(training)


def _black(model: Model) -> Tensor:
    """Two black images."""
    return torch.zeros(2, *model.input_shape)


def _tensors(outputs: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among outputs, by their path: names and numbers with dots between."""
    if isinstance(outputs, Tensor):
        yield path, outputs
        return
    parts: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(outputs, Mapping):
        parts = iter(outputs.items())
    elif is_dataclass(outputs):
        parts = ((field.name, getattr(outputs, field.name)) for field in fields(outputs))
    elif isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        parts = zip(outputs._fields, outputs, strict=True)
    elif isinstance(outputs, tuple | list):
        parts = enumerate(outputs)  # type: ignore[assignment]
    for name, part in parts:
        yield from _tensors(part, f"{path}.{name}" if path else str(name))


def _chosen(named: Mapping[str, Tensor], model: Model, num_classes: int | None) -> str:
    """The path of the logits among all outputs."""
    paths = list(named)
    if not paths:
        raise ConfigError(f"model={model.name}: the network yields no tensor; let it return logits [N, classes]")
    wanted = str(model.output)
    if wanted:
        by_number = dict(zip(map(str, range(len(paths))), paths, strict=True))
        if wanted in named or wanted in by_number:
            return wanted if wanted in named else by_number[wanted]
        allowed = f"{', '.join(paths)}: choose one of them" if any(paths) else "its logits alone: leave it out"
        raise ConfigError(f"model.output={wanted}: the network yields {allowed}")
    fitting = [path for path in paths if num_classes is not None and _flat(named[path]).shape[1:] == (num_classes,)]
    chosen = _likely(fitting or paths)
    if len(fitting) > 1 and chosen.rpartition(".")[2] != "logits":
        say(
            f"model={model.name} yields {', '.join(paths)}: {chosen} is taken for the logits; set model.output for "
            "another",
        )
    return chosen


def _likely(paths: Sequence[str]) -> str:
    """The one called ``logits``, else the first."""
    return next((path for path in paths if path.rpartition(".")[2] == "logits"), paths[0])


def _head(network: nn.Module, logits: Tensor) -> str:
    """Path of the module, or else of the parameter, of the weights from which the way to the logits is shortest."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for step in _steps(logits):
        weight = getattr(step, "variable", None)
        if weight is not None and weight.ndim > 1 and id(weight) in names:
            name = names[id(weight)]
            path = name.partition(_PARAMETRIZED)[0] if _PARAMETRIZED in name else name.rpartition(".")[0]
            children = dict(network.get_submodule(path).named_children()).keys() - {"parametrizations"}
            return name if children else path
    return ""


def _steps(logits: Tensor) -> Iterator[Any]:
    """The steps that gradients of the logits take, the nearest first."""
    left, seen = deque([logits.grad_fn]), set[Any]()
    while left:
        step = left.popleft()
        if step is None or step in seen:
            continue
        seen.add(step)
        yield step
        left.extend(source for source, _ in step.next_functions)
