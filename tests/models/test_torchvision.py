from pathlib import Path

import pytest
import torch
import torchvision

from bitsweep.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from bitsweep.errors import ConfigError
from bitsweep.models.torchvision import TorchvisionModel


@pytest.mark.parametrize(
    ("builder", "image_size", "parameters"),
    # Parameters of the published networks, less those of 1,000 classes, plus those of 7.
    [("resnet18", 32, 11_689_512 - 513 * 993), ("mobilenet_v3_small", 64, 2_542_856 - 1025 * 993)],
)
def test_the_head_fits_the_classes(builder: str, image_size: int, parameters: int) -> None:
    network = TorchvisionModel(name="a", builder=builder, image_size=image_size).build(7)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.eval()(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("builder", ["resnet19", "raft_large", "__file__"])
def test_an_unknown_builder_is_named(builder: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.builder={builder}: no such classifier; (did .*\? )?choose from alexnet"
    ):
        TorchvisionModel(name="a", builder=builder, image_size=32).check()


def test_planning_knows_the_classifiers_of_torchvision() -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    for builder in known:
        TorchvisionModel(name="a", builder=builder, image_size=32).check()


def test_imagenet_weights_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    published = torchvision.models.get_model("squeezenet1_1")
    (tmp_path / "checkpoints").mkdir()
    torch.save(published.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    made = TorchvisionModel(name="a", builder="squeezenet1_1", image_size=64, weights="imagenet")
    assert made.source().startswith("imagenet of torchvision 0.")
    assert made.pixels == "imagenet"
    state = made.imagenet_state()
    assert all(torch.equal(value, state[name]) for name, value in published.state_dict().items())


@pytest.mark.parametrize("content", [None, b"truncated"])
def test_imagenet_weights_that_cannot_be_had(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    file = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    if content:
        file.write_bytes(content)
    monkeypatch.setattr(weights.value, "url", file.as_uri(), raising=False)
    with pytest.raises(ConfigError, match=r"^model\.weights=imagenet: file://.*could not be downloaded.*checkpoints$"):
        TorchvisionModel(name="a", builder="squeezenet1_1", image_size=64).imagenet_state()


def test_published_weights_bring_their_preprocessing() -> None:
    """What is read in the source is what torchvision's own transforms say."""
    for builder in torchvision.models.list_models(module=torchvision.models):
        transforms = torchvision.models.get_model_weights(builder).DEFAULT.transforms()
        size = transforms.crop_size[0]
        made = TorchvisionModel(name="a", builder=builder, image_size=size, weights="imagenet")
        assert made.framing, builder
        assert (made.framing.resize, made.framing.height, made.framing.width, made.framing.interpolation) == (
            tuple(transforms.resize_size), size, size, transforms.interpolation.value,
        ), builder  # fmt: skip
        found = made.published_moments() if made.pixels == "published" else (IMAGENET_MEAN, IMAGENET_STD)
        assert (tuple(transforms.mean), tuple(transforms.std)) == found


@pytest.mark.parametrize("knobs", [{"weights": ""}, {"image_size": 64}, {"resize": 224}, {"channels": 1}])
def test_preprocessing_is_the_weights_where_nothing_else_is_asked_for(knobs: dict[str, object]) -> None:
    named = {"name": "a", "builder": "resnet18", "image_size": 224, "weights": "imagenet", **knobs}
    made = TorchvisionModel(**named)  # type: ignore[arg-type]
    assert not made.framed_by_weights


@pytest.mark.parametrize("builder", ["resnet18", "squeezenet1_1", "vit_b_16"])
def test_networks_take_other_channels(builder: str) -> None:
    network = TorchvisionModel(name="a", builder=builder, image_size=224, channels=5).build(3)
    stem = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    assert stem.weight.shape[1] == stem.in_channels == 5
