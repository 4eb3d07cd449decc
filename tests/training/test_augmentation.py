from typing import Any

import pytest
import torch
from torch import Tensor

from bitsweep.config.recipe import Recipe
from bitsweep.errors import ConfigError
from bitsweep.training.augmentation import Augmentation, check
from tests.devices import each_device


def _augmentation(augment: Any, *, size: int = 16, num_classes: int = 4) -> Augmentation:
    steps = Recipe(name="a", epochs=1, max_steps=1, augment=augment).augment
    return Augmentation(steps, image_size=(size, size), num_classes=num_classes, key="train.augment")


def _pixels(count: int, *, size: int = 16, channels: int = 3, white: int = 256) -> Tensor:
    return torch.randint(white, (count, size, size, channels), generator=torch.Generator().manual_seed(1))


def test_augmentation_moves_whole_images() -> None:
    images = torch.arange(16 * 16, dtype=torch.int16).reshape(1, 16, 16, 1).repeat(200, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    shift = _augmentation("shift")
    moved = shift.change(images, shift.draw(200, generator))
    inner = moved[:, 2:-2, 2:-2, 0]
    offsets = inner[:, 0, 0] - images[0, 2, 2, 0]
    down = torch.div(offsets + 8, 16, rounding_mode="floor")
    right = offsets - 16 * down
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
    assert (inner - offsets[:, None, None] == images[0, 2:-2, 2:-2, 0]).all()
    flip = _augmentation("shift_flip")
    mirrored = flip.change(images, flip.draw(200, generator))
    decreasing = (mirrored[:, 8, 8, 0] < mirrored[:, 8, 7, 0]).double().mean()
    assert 0.35 < decreasing < 0.65
    assert _augmentation("none").change(images, shift.draw(200, generator)) is images


ALONE = [
    "RandomHorizontalFlip",
    "RandAugment",
    {"RandomResizedCrop": {"scale": [0.5, 1.0], "interpolation": "bicubic"}},
    {"RandomRotation": {"degrees": 20, "fill": 128}},
    {"ColorJitter": {"brightness": 0.4, "hue": 0.1}},
    {"RandomApply": {"transforms": [{"GaussianBlur": {"kernel_size": 3}}], "p": 0.5}},
    {"AutoAugment": {"policy": "cifar10"}},
]


@pytest.mark.parametrize("step", ALONE, ids=str)
def test_every_image_has_random_numbers_of_its_own_which_do_not_depend_on_the_others(step: Any) -> None:
    augmentation = _augmentation(["shift_flip", step])
    images = _pixels(1).byte().repeat(12, 1, 1, 1)
    drawn = augmentation.draw(12, torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    changed = augmentation.change(images, drawn)
    assert torch.equal(torch.get_rng_state(), before), "dropout draws what it drew before"
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    assert len({image.numpy().tobytes() for image in changed}) > 2
    for rank in range(2):  # what each of two processes makes of its share
        assert torch.equal(augmentation.change(images[rank::2], drawn[rank::2]), changed[rank::2])


@each_device
def test_sixteen_bits_are_kept(device: str) -> None:
    images = _pixels(6, channels=1, white=65536).to(torch.uint16).to(device)
    flip = _augmentation([{"RandomHorizontalFlip": {"p": 1}}])
    changed = flip.change(images, flip.draw(6, torch.Generator().manual_seed(0)))
    assert changed.dtype == torch.uint16
    assert torch.equal(changed.int(), images.int().flip(2))
    moves = _augmentation("shift_flip")
    drawn = moves.draw(6, torch.Generator().manual_seed(0))
    moved = moves.change(images, drawn)
    assert moved.dtype == torch.uint16
    assert torch.equal(moved.int(), moves.change(images.int(), drawn))


@pytest.mark.parametrize("mixer", ["MixUp", "CutMix", {"RandomChoice": {"transforms": ["MixUp", "CutMix"]}}], ids=str)
def test_mixed_images_have_the_shares_of_their_classes(mixer: Any) -> None:
    augmentation = _augmentation([mixer])
    labels = torch.arange(8) % 4
    images = torch.nn.functional.one_hot(labels, 4).float()[:, :, None, None].expand(-1, -1, 16, 16)
    mixed, shares = augmentation.mix(images, labels, augmentation.draw(8, torch.Generator().manual_seed(0)))
    assert torch.allclose(mixed.mean((2, 3)), shares, atol=1e-6)
    assert ((shares > 0.01) & (shares < 0.99)).any()


WRONG = {
    "RandomRotate": "train.augment=RandomRotate: torchvision.transforms.v2 has no such transform; "
    "did you mean RandomRotation?",
    "RandomRotation": "train.augment.RandomRotation: .* missing 1 required positional argument: 'degrees'",
    ("RandomRotation", "degree", 3): "train.augment.RandomRotation.degree: no such argument; did you mean degrees?",
    ("ColorJitter", "hue", 7): "train.augment.ColorJitter: hue values should be between",
    ("Grayscale", "num_output_channels", 1): "train.augment: Grayscale makes images of 1 channels; leave it out",
    ("RandomRotation", "degrees", 45, "expand", True): "train.augment: RandomRotation makes images of unlike sizes",
    "FiveCrop": "train.augment: FiveCrop makes no images of whole-numbered pixels",
    "RandomIoUCrop": "train.augment.RandomIoUCrop: fails on images",
}


@pytest.mark.parametrize(("step", "message"), WRONG.items(), ids=str)
def test_what_torchvision_does_not_have_or_take_is_one_line(step: Any, message: str) -> None:
    name, *arguments = (step,) if isinstance(step, str) else step
    steps = ({name: dict(zip(arguments[::2], arguments[1::2], strict=True))},)
    with pytest.raises(ConfigError, match=message) as error:
        check(steps, channels=3, image_size=(16, 24), key="train.augment")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "augment", ["shfit", 3, ["RandAugment", "shift"], {"RandomChoice": {"transforms": 3}}, {"RandAugment": 3}]
)
def test_what_is_no_list_of_transforms_is_refused(augment: Any) -> None:
    with pytest.raises(ValueError, match=r"should be none, shift, shift_flip, a transform of|must be the first"):
        Recipe(name="a", epochs=1, max_steps=1, augment=augment)


def test_the_step_that_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="step 2 should be none, shift"):
        Recipe(name="a", epochs=1, max_steps=1, augment=["RandAugment", {"RandomRotation": 15}, "MixUp"])


@pytest.mark.parametrize(("size", "allowed"), [(16, True), (24, True), (20, False), (12, False)])
def test_images_that_training_would_stretch_to_the_network_are_refused(size: int, allowed: bool) -> None:
    """Stored images have 16 pixels here, and the network takes 24."""
    steps = Recipe(name="a", epochs=1, max_steps=1, augment=[{"RandomCrop": {"size": size, "padding": 4}}]).augment
    augmentation = Augmentation(steps, image_size=(16, 16), num_classes=4, key="augment", network_size=(24, 24))
    images = _pixels(2).byte()
    drawn = augmentation.draw(2, torch.Generator().manual_seed(0))
    if allowed:
        assert augmentation.change(images, drawn).shape == (2, size, size, 3)
    else:
        with pytest.raises(
            ConfigError, match=rf"makes images of {size} x {size} from 16 x 16, and the .* takes 24 x 24"
        ):
            augmentation.change(images, drawn)


def test_batches_are_mixed_last() -> None:
    with pytest.raises(ConfigError, match="put them last"):
        _augmentation(["MixUp", "RandAugment"])
