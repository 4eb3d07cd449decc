from pathlib import Path

import numpy as np
import pytest
import torch

from bitsweep.data.preprocessing import normalized
from bitsweep.errors import ConfigError
from bitsweep.models.timm import TimmModel
from bitsweep.results import Split, Splits

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


@pytest.mark.parametrize("architecture", ["", "self", "resnet10t.c3_in1kk", "resnet10"])
def test_a_plan_sees_that_there_is_no_such_architecture(architecture: str) -> None:
    model("resnet10t.c3_in1k").check()
    model("tf_efficientnet_b0_ns").check()
    with pytest.raises(ConfigError, match=r"^model\.architecture=.*: no such classifier in timm"):
        model(architecture).check()


def test_a_name_of_old_has_no_weights() -> None:
    with pytest.raises(ConfigError, match=r"=tf_efficientnet_b0_ns: timm knows no weights by this name"):
        _ = model("tf_efficientnet_b0_ns", weights="imagenet").framing


@pytest.mark.parametrize(
    "architecture", ["resnet10t", "tf_efficientnet_lite0", "vit_base_patch16_clip_224", "mobilenetv4_conv_small"]
)
def test_pictures_are_what_the_weights_were_evaluated_with(architecture: str) -> None:
    about = timm.models.get_pretrained_cfg(architecture)
    config = timm.data.resolve_data_config(pretrained_cfg=about.to_dict())
    size = config["input_size"][1]
    made = model(architecture, weights="imagenet", image_size=size)
    resize, crop, *_, normalise = timm.data.create_transform(**config).transforms
    assert made.framing
    assert (made.framing.resize, (made.framing.height, made.framing.width), made.framing.interpolation) == (
        (resize.size,), tuple(crop.size), resize.interpolation.value,
    )  # fmt: skip
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    split = Split(images=images, labels=np.zeros(1, np.int64))
    splits = Splits(train=split, val=split, test=split, classes=("a",), mean_C=(0,) * 3, std_C=(1,) * 3, fingerprint="")
    splits = normalized(splits, made)
    assert splits.mean_C == pytest.approx(normalise.mean.tolist())
    assert splits.std_C == pytest.approx(normalise.std.tolist())
    assert model(architecture).framing is None
    assert model(architecture).pixels == "dataset"


def test_weights_of_a_file_are_told_what_published_ones_see() -> None:
    said = model("mobilenetv4_conv_small", weights="mine.pt").unsaid()
    assert "model.image_size=224 model.resize=256 model.interpolation=bicubic model.normalization=imagenet;" in said
    assert (
        " model.mean=[0.5,0.5,0.5] model.std=[0.5,0.5,0.5];" in model("vit_tiny_patch16_224", weights="a.pt").unsaid()
    )
    assert "Give model.mean" in model("tf_efficientnet_b0_ns", weights="mine.pt").unsaid()
    assert not model("resnet10t", weights="mine.pt", normalization="dataset").unsaid()
    assert not model("resnet10t", weights="imagenet").unsaid()


@pytest.mark.parametrize("architecture", ["resnet10t", "vit_tiny_patch16_224"])
def test_any_channels_height_and_width(architecture: str) -> None:
    made = model(architecture, channels=2, image_size=(64, 96))
    assert made.build(7).eval()(torch.zeros(2, *made.input_shape)).shape == (2, 7)


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
