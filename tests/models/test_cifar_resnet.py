from pathlib import Path

import pydantic
import pytest
import torch

from bitsweep.errors import ConfigError
from bitsweep.models.cifar_resnet import CifarResNet
from bitsweep.training.network import load_weights


def model(depth: int = 8, **knobs: object) -> CifarResNet:
    return CifarResNet(name="small", depth=depth, image_size=32, **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_the_published_number_of_parameters(depth: int, parameters: int) -> None:
    """0.27 and 0.85 million, as in table 6 of the paper."""
    assert sum(value.numel() for value in model(depth).build(10).parameters()) == parameters


def test_shortcuts_without_parameters() -> None:
    network = model().build(10).eval()
    images = torch.randn(2, 3, 32, 32)
    assert network(images).shape == (2, 10)
    block = network.layer2[0]
    with torch.no_grad():
        for norm in (block.bn2,):
            norm.weight.zero_()
        x = torch.rand(2, 16, 8, 8)
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


@pytest.mark.parametrize("depth", [7, 18, 21])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(pydantic.ValidationError, match="6 n"):
        model(depth)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_weights_are_read_back(wrapper: str | None, tmp_path: Path) -> None:
    trained, fresh = model().build(10), model().build(10)
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "weights.pt")
    load_weights(fresh, tmp_path / "weights.pt")
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)


def test_weights_that_do_not_fit_are_one_readable_line(tmp_path: Path) -> None:
    state = model().build(7).state_dict()
    del state["conv1.weight"]
    torch.save(state | {"extra": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError) as caught:
        load_weights(model().build(10), tmp_path / "weights.pt")
    assert str(caught.value) == (
        f"model.weights={tmp_path}/weights.pt: does not fit the network: conv1.weight is missing, extra is not in the "
        "network, linear.weight has shape [7, 64] instead of [10, 64], linear.bias has shape [7] instead of [10]"
    )


@pytest.mark.parametrize("content", ["text", "list", "truncated"])
def test_files_that_hold_no_weights(content: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save([1, 2] if content == "list" else model().build(10).state_dict(), file)
    if content == "text":
        file.write_text("hello")
    elif content == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"^model\.weights="):
        load_weights(model().build(10), file)


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"model\.weights=nowhere: no such file"):
        model(weights="nowhere").source()
