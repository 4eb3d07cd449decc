from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model
from bitsweep.errors import ConfigError
from bitsweep.graphs import tracing
from bitsweep.training.network import build_network
from bitsweep.training.outputs import parts_without_logits

SIZE, CLASSES = 8, 5
Named = namedtuple("Named", "features logits")


@dataclass
class Outputs:
    """What transformers return, in small."""

    logits: Tensor
    features: Tensor


class Network(nn.Module):
    """A head that is registered before the body, whose logits are among other outputs."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any] = lambda logits, features: logits) -> None:
        super().__init__()
        self.head = nn.Linear(8, CLASSES)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        features = self.body(images).mean((2, 3))
        return self.wrap(self.head(features), features)


def _model(network: nn.Module, **knobs: Any) -> Model:
    @configurable
    class Own(Model):
        name: str = "own"
        image_size: int = SIZE

        def build(self, num_classes: int) -> nn.Module:
            return network

    return Own(**knobs)


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda logits, features: (logits, features), ""),
        (lambda logits, features: [features, logits], ""),
        (lambda logits, features: [features, logits], 1),
        (lambda logits, features: {"features": features, "logits": logits}, ""),
        (lambda logits, features: {"out": (features, logits)}, "out.1"),
        (lambda logits, features: Named(features, logits), ""),
        (lambda logits, features: Outputs(logits, features), "logits"),
    ],
    ids=["tuple", "list", "number", "dict", "nested", "named tuple", "dataclass"],
)
def test_the_logits_are_found_in_training_evaluation_and_export(
    wrap: Callable[[Tensor, Tensor], Any], output: str | int
) -> None:
    network = Network(wrap)
    plain, images = Network(), torch.randn(3, 3, SIZE, SIZE)
    plain.load_state_dict(network.state_dict())
    built, head = build_network(_model(network, output=output), CLASSES)
    assert built.training and head == "head"
    torch.testing.assert_close(built(images), plain(images))
    torch.testing.assert_close(tracing.trace(built, input_shape=(3, SIZE, SIZE))(images), plain(images))


def test_which_of_several_outputs_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    build_network(_model(Network(lambda logits, features: (logits, logits * 2))), CLASSES)
    assert "0 is taken for the logits; set model.output" in capsys.readouterr().out
    build_network(_model(Network(lambda logits, features: (features, logits))), CLASSES)
    assert not capsys.readouterr().out


def test_outputs_that_do_not_fit_are_named() -> None:
    several = Network(lambda logits, features: (logits, features))
    with pytest.raises(ConfigError, match=r"model.output=2: the network yields 0, 1: choose one"):
        build_network(_model(several, output=2), CLASSES)
    with pytest.raises(ConfigError, match=r"output 1 has shape \[N, 8\] instead of \[N, 5\]"):
        build_network(_model(several, output="1"), CLASSES)
    with pytest.raises(ConfigError, match=r"has shape \[N, 10\] instead of \[N, 7\]"):
        build_network(_model(Network(lambda logits, features: torch.cat([logits, logits], 1))), 7)
    with pytest.raises(ConfigError, match=r"does not take images of 3 x 8 x 8 \(model.channels, model.image_size\)"):
        build_network(_model(nn.Sequential(nn.Flatten(), nn.Linear(7, CLASSES))), CLASSES)


HEADS: dict[str, tuple[nn.Module, str]] = {
    "registered first": (Network(), "head"),
    "parametrized": (
        nn.Sequential(
            nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, CLASSES))
        ),
        "3",
    ),
    "convolution": (
        nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, CLASSES, 1), nn.AvgPool2d(6), nn.Flatten()),
        "2",
    ),
    "something behind it": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES), nn.BatchNorm1d(CLASSES), nn.LogSoftmax(1)),
        "1",
    ),
}


def test_a_head_for_another_number_of_classes_is_made_anew(capsys: pytest.CaptureFixture[str]) -> None:
    network, head = build_network(_model(Network()), 7)
    assert network(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 7)
    assert head == "head"
    assert "the head head has 5 outputs: a new one for 7 classes" in capsys.readouterr().out


class JoinedHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(192, CLASSES), nn.Linear(192, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = images.flatten(1)
        return self.one(features) + self.other(features)  # type: ignore[no-any-return]


def test_a_head_whose_outputs_are_joined_with_others_is_not_replaced() -> None:
    network = JoinedHeads()
    with pytest.raises(ConfigError, match=r"shape \[N, 5\] instead of \[N, 7\].*; make it for 7 classes"):
        build_network(_model(network), 7)
    assert network.one.out_features == network.other.out_features == CLASSES


@pytest.mark.parametrize(("network", "head"), HEADS.values(), ids=HEADS)
def test_the_head_is_the_layer_whose_outputs_reach_the_logits(network: nn.Module, head: str) -> None:
    assert build_network(_model(network), CLASSES)[1] == head


def test_the_head_may_be_a_bare_parameter() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(CLASSES, 6))
            self.body = nn.Conv2d(3, 6, 3)

        def forward(self, images: Tensor) -> Tensor:
            features = nn.functional.normalize(self.body(images).mean((2, 3)), dim=1)
            return nn.functional.linear(features, nn.functional.normalize(self.weight, dim=1))

    assert build_network(_model(Cosine()), CLASSES)[1] == "weight"
    with pytest.raises(ConfigError, match=r"model.head=mlp: the last layer of own is not linear"):
        build_network(_model(Cosine(), head="mlp"), CLASSES)


class TwoHeads(Network):
    """A network with a second head, a scale that nothing reads, and a body that takes no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Any:
        with torch.no_grad():
            features = self.body(images).mean((2, 3))
        return self.head(features), self.other(features)


@pytest.mark.parametrize(
    ("make", "size", "parts"),
    [
        (lambda: torchvision.models.googlenet(num_classes=CLASSES, init_weights=False), 32, ["aux1", "aux2"]),
        (lambda: torchvision.models.inception_v3(num_classes=CLASSES, init_weights=False), 75, ["AuxLogits"]),
        (TwoHeads, SIZE, ["other", "scale"]),
        (Network, SIZE, []),
    ],
    ids=["googlenet", "inception", "two heads", "one head"],
)
def test_parts_without_a_loss_are_named(make: Callable[[], nn.Module], size: int, parts: list[str]) -> None:
    model = _model(make(), image_size=size)
    network, _ = build_network(model, CLASSES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert parts_without_logits(network, model) == parts
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


@pytest.mark.parametrize("only_in_evaluation", [False, True])
def test_of_probabilities_the_logarithms_are_the_logits(
    only_in_evaluation: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As networks yield them that came from Keras; some others normalise in evaluation only."""

    class Probabilities(Network):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = super().forward(images)
            return logits if only_in_evaluation and self.training else logits.softmax(1)

    torch.manual_seed(0)
    network, images = Probabilities(), torch.randn(3, 3, SIZE, SIZE)
    meant = Network.forward(network, images).detach()
    built, _ = build_network(_model(network), CLASSES)
    assert "yields probabilities: their logarithms are taken" in capsys.readouterr().out
    for mode in (False, True):
        expected = meant if mode and only_in_evaluation else meant.log_softmax(1)
        torch.testing.assert_close(built.train(mode)(images).detach(), expected)
    graph = tracing.trace(built.eval(), input_shape=(3, SIZE, SIZE))
    torch.testing.assert_close(graph(images).detach(), meant.log_softmax(1))


@pytest.mark.parametrize("shape", [(CLASSES, 1, 1), (1, 1, CLASSES), (CLASSES, 1)])
def test_further_dimensions_of_1_are_left_out(shape: tuple[int, ...]) -> None:
    """As networks yield them whose last layer is a convolution."""
    torch.manual_seed(0)
    network, images = Network(lambda logits, features: logits.reshape(-1, *shape)), torch.randn(3, 3, SIZE, SIZE)
    meant = network(images).flatten(1)
    built, _ = build_network(_model(network), CLASSES)
    torch.testing.assert_close(built(images), meant)
    torch.testing.assert_close(tracing.trace(built.eval(), input_shape=(3, SIZE, SIZE))(images), meant)
