from pathlib import Path

import pytest
import torch

from bitsweep.errors import ConfigError
from bitsweep.models.timm import TimmModel

timm = pytest.importorskip("timm")


def model(architecture: str, **knobs: object) -> TimmModel:
    return TimmModel(**{"name": "a", "architecture": architecture, "image_size": 64, **knobs})  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["resnet10t", "mobilenetv4_conv_small", "resnet10t.c3_in1k"])
def test_the_head_fits_the_classes(architecture: str) -> None:
    network = model(architecture).build(7)
    assert network.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture=resnet19: no such classifier in timm; .* resnet10t,"):
        model("resnet19").build(7)


@pytest.mark.parametrize(("architecture", "pixels"), [("resnet10t", "imagenet"), ("tf_efficientnet_lite0", "centred")])
def test_pixels_are_what_the_weights_were_trained_with(architecture: str, pixels: str) -> None:
    assert model(architecture, weights="imagenet").pixels == pixels
    assert model(architecture).pixels == "dataset"


def test_pixels_that_there_are_no_words_for() -> None:
    with pytest.raises(ConfigError, match=r"weights expect pixels with mean \(0\.48.*set model\.normalization"):
        _ = model("vit_base_patch16_clip_224", weights="imagenet").pixels


def test_weights_are_read_from_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("test_resnet.r160_in1k", weights="imagenet")
    trained = timm.create_model("test_resnet")
    config = timm.models.get_pretrained_cfg("test_resnet.r160_in1k")
    folder = tmp_path / f"models--{config.hf_hub_id.replace('/', '--')}"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    torch.save(trained.state_dict(), folder / "snapshots" / "0" / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    state = made.imagenet_state()
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"^model\.weights=imagenet: the download of resnet10t failed .*connect"):
        model("resnet10t", weights="imagenet").imagenet_state()
