from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model, Size
from bitsweep.config.recipe import Recipe
from bitsweep.errors import ConfigError
from bitsweep.models.torchvision import TorchvisionModel
from bitsweep.results import Splits
from bitsweep.training.baseline import fit
from bitsweep.training.loop import train
from bitsweep.training.network import build_network, freeze, start_from_weights
from bitsweep.training.trained import load_trained

State = dict[str, Tensor]


@configurable
class Normalised(Model):
    """A convolution with normalisation, and a head."""

    name: str = "normalised"
    image_size: int = 8

    def build(self, num_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes)
        )


@configurable
class Placed(Model):
    """A network with a weight for each place of its images."""

    name: str = "placed"
    image_size: Size = 8

    def build(self, num_classes: int) -> nn.Module:
        channels, height, width = self.input_shape
        return nn.Sequential(nn.Conv2d(channels, 2, 1), nn.Flatten(), nn.Linear(2 * height * width, num_classes))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Weights with a head for seven classes."""
    state = Normalised().build(7).state_dict()
    torch.save(state | {"1.running_var": torch.full((8,), 0.3)}, tmp_path / "given.pt")
    return tmp_path / "given.pt"


@pytest.fixture
def trained(digits: Splits, given: Path, tmp_path: Path) -> Callable[..., tuple[State, State]]:
    """What a recipe makes of the given weights: before and after."""

    def run(head: str = "linear", **knobs: object) -> tuple[State, State]:
        recipe = Recipe(**{"name": "a", "epochs": 2, "max_steps": 6, "device": "cpu", "lr": 0.01, **knobs})  # type: ignore[arg-type]
        model = Normalised(weights=str(given), head=head)  # type: ignore[arg-type]
        fit(model, digits, recipe=recipe, seed=0, folder=tmp_path)
        return torch.load(given, weights_only=True), torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    return run


def _kept(before: State, after: State) -> set[str]:
    return {name for name in before if torch.equal(before[name], after[name])}


def test_a_head_for_other_classes_is_replaced_and_said(
    trained: Callable[..., tuple[State, State]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, after = trained(lr=1e-9, bn_momentum=0)
    assert after["4.weight"].shape == (10, 512)
    assert "given.pt: the head 4 is for other classes, or another one: a new one is trained" in capsys.readouterr().out


def test_a_frozen_backbone_stays_as_it_is(trained: Callable[..., tuple[State, State]]) -> None:
    before, after = trained(frozen_epochs=2)
    backbone = {name for name in before if not name.startswith("4.")}
    assert {name for name in backbone if torch.equal(before[name], after[name])} == backbone


@configurable
class PartlyFixed(Normalised):
    """The same, whose author has fixed its first layer."""

    def build(self, num_classes: int) -> nn.Module:
        network = super().build(num_classes)
        network[0].requires_grad_(False)
        return network


def test_what_its_author_has_fixed_stays_as_it_is(digits: Splits, tmp_path: Path) -> None:
    recipe = Recipe(name="a", epochs=2, max_steps=6, device="cpu")
    fit(PartlyFixed(), digits, recipe=recipe, seed=0, folder=tmp_path)
    torch.manual_seed(0)
    before, _ = build_network(PartlyFixed(), 10)
    after = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    kept = {name for name, parameter in before.named_parameters() if torch.equal(parameter, after[name])}
    assert kept == {"0.weight", "0.bias"}
    assert load_trained(tmp_path).notes == (
        "model=normalised: 0.weight, 0.bias stay as they are: requires_grad is False there",
    )


def test_a_backbone_is_frozen_in_the_first_epochs_only(digits: Splits, given: Path, tmp_path: Path) -> None:
    network, head = build_network(Normalised(), 10)
    recipe = Recipe(name="a", epochs=2, max_steps=1000, frozen_epochs=1, device="cpu")
    learns: list[list[bool]] = []

    def before_epoch(epoch: int, epochs: int) -> None:
        freeze(network, head, backbone=epoch < recipe.frozen_epochs, statistics=False)
        learns.append([parameter.requires_grad for parameter in network.parameters()])

    first = network[0].weight.clone()
    train(
        network, digits, recipe=recipe, input_shape=(3, 8, 8), seed=0, title="a", head=head, before_epoch=before_epoch
    )
    assert learns == [[False] * 4 + [True] * 2, [True] * 6]
    assert not torch.equal(network[0].weight, first)


def test_statistics_stay_with_a_momentum_of_nothing(trained: Callable[..., tuple[State, State]]) -> None:
    before, after = trained(bn_momentum=0)
    kept = {name for name in before if torch.equal(before[name], after[name]) if not name.startswith("4.")}
    assert kept == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_the_backbone_learns_at_a_lower_rate(trained: Callable[..., tuple[State, State]]) -> None:
    """A step of SGD is the gradient times the rate: with a hundredth of it the backbone moves by a hundredth."""
    moved = []
    for factor in (1.0, 0.01):
        before, after = trained(
            optimizer="sgd", epochs=1, max_steps=1, backbone_lr_factor=factor, weight_decay=0, warmup_share=0
        )
        moved.append((after["0.weight"] - before["0.weight"], after["4.weight"]))
    (full, head), (slow, same_head) = moved
    torch.testing.assert_close(slow, 0.01 * full, rtol=1e-3, atol=1e-7)
    assert torch.equal(head, same_head)


def test_a_head_of_several_layers(trained: Callable[..., tuple[State, State]]) -> None:
    _, after = trained(head="mlp")
    shapes = {name: tuple(value.shape) for name, value in after.items() if name.startswith("4.") and value.ndim == 2}
    assert shapes == {"4.0.weight": (512, 512), "4.3.weight": (128, 512), "4.6.weight": (10, 128)}


def test_its_weights_are_read_back(digits: Splits, tmp_path: Path) -> None:
    first, _ = build_network(Normalised(head="mlp"), 10)
    torch.save(first.state_dict(), tmp_path / "mlp.pt")
    model = Normalised(head="mlp", weights=str(tmp_path / "mlp.pt"))
    second, head = build_network(model, 10)
    start_from_weights(second, model, num_classes=10, head=head)
    assert len(_kept(first.state_dict(), second.state_dict())) == len(first.state_dict())


def test_a_head_of_several_layers_needs_a_linear_one() -> None:
    model = TorchvisionModel(name="squeezenet", builder="squeezenet1_1", image_size=64, head="mlp")
    with pytest.raises(ConfigError, match=r"model\.head=mlp: the last layer of squeezenet is not linear; use"):
        build_network(model, 10)


def test_nothing_but_the_head_may_differ(given: Path) -> None:
    torch.save({name: value for name, value in torch.load(given).items() if name != "1.bias"}, given)
    model = Normalised(weights=str(given))
    network, head = build_network(model, 10)
    with pytest.raises(ConfigError, match=r"given\.pt: does not fit the network: 1\.bias is missing$"):
        start_from_weights(network, model, num_classes=10, head=head)


def test_what_is_not_trained_needs_a_head_that_fits(trained: Callable[..., tuple[State, State]]) -> None:
    with pytest.raises(ConfigError, match=r"4\.weight has shape \[7, 512\] instead of \[10, 512\]"):
        trained(epochs=0)


def test_weights_without_a_name() -> None:
    with pytest.raises(ConfigError, match=r"model\.weights=imagenet: there are none for normalised; give the path"):
        Normalised(weights="imagenet").source()


@pytest.mark.parametrize(
    ("knobs", "classes", "reason"),
    [
        ({"image_size": 16}, 10, r"follow model\.image_size=8: give"),
        ({"channels": 1}, 10, r"follow model\.channels=3: give"),
        ({}, 7, r"follow the number of classes, 10: give"),
        (
            {"image_size": (8, 16), "channels": 1},
            7,
            r"model\.image_size=8 and model\.channels=3 and the number of classes",
        ),
    ],
)
def test_weights_of_other_shapes_name_the_knobs_that_decide(
    tmp_path: Path, knobs: dict[str, object], classes: int, reason: str
) -> None:
    torch.save(Placed(**knobs).build(classes).state_dict(), tmp_path / "other.pt")  # type: ignore[arg-type]
    model = Placed(weights=str(tmp_path / "other.pt"))
    network, _ = build_network(model, 10)
    with pytest.raises(ConfigError, match=reason):
        start_from_weights(network, model, num_classes=10)
