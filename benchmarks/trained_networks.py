"""Networks with weights that somebody trained, and photographs to calibrate and test them on.

The data lie in one folder: ``weights/`` (state_dicts), ``cifar10/cifar10.npz``, and a folder a class of photographs in
``cats_dogs``, ``cats_dogs_more``, ``hymenoptera`` and ``weather``. A network is named ``NETWORK``, or ``NETWORK@DATA``
when its last layer is trained anew on other photographs; ``+HARD`` behind a name stands for what ``hard_networks.py``
makes of it. ``FILE.onnx`` is anybody's network: it sees the photographs, and right is what it says in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hard_networks import HARD
from PIL import Image
from torch import Tensor, nn

from bitsweep.data.preprocessing import centred, normalized_for_imagenet, preprocess, preprocessed
from bitsweep.models.cifar_resnet import CifarResNet
from bitsweep.models.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLite0,
    EfficientNetLite1,
    EfficientNetLite2,
)
from bitsweep.models.onnx import OnnxModel
from bitsweep.models.torchvision import TorchvisionModel
from bitsweep.results import Array, Shape, Split, Splits
from bitsweep.training.network import load_weights

SIZE = 224
ONNX = ".onnx"
IMAGE_FILES = {".jpg", ".jpeg", ".png"}
#: Folders of training and test images; of ``weather`` every second image is for testing.
PHOTOGRAPHS = {
    "cats_dogs": ("cats_dogs/training_set", "cats_dogs_more/test_set"),
    "hymenoptera": ("hymenoptera/train", "hymenoptera/val"),
    "weather": ("weather", "weather"),
}
#: Which of ImageNet's classes are one of those of the photographs.
IMAGENET = {"cats_dogs": (range(281, 286), range(151, 269)), "hymenoptera": (range(310, 311), range(309, 310))}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained network with its images.

    Attributes:
        splits: images to calibrate on (``train``) and to test on (``test``).
        label_of_K: the label that an output stands for; -1 for none.
    """

    network: nn.Module
    splits: Splits
    input_shape: Shape
    label_of_K: Array


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where things are: the data, and a place to keep what is derived from them, and from no others.

    Attributes:
        calibration, test: images of each at most.
    """

    data: Path
    cache: Path
    calibration: int
    test: int


def subject(name: str, folders: Folders) -> Subject:
    """The network of that name."""
    if name.endswith(ONNX):
        return of_onnx_file(name, folders)
    plain, _, hard = name.partition("+")
    own, _, data = plain.partition("@")
    found = NETWORKS[own](folders)
    if data:
        found = retrained(found, photographs(data, folders), folders.cache / f"{plain}-{folders.calibration}.pt")
    return replace(found, network=HARD[hard](found.network)) if hard else found


def mobilenet_v3_small(folders: Folders) -> Subject:
    """torchvision's, for cats and dogs."""
    network = TorchvisionModel(name="mobilenetv3", image_size=SIZE, builder="mobilenet_v3_small").build(2)
    load_weights(network, folders.data / "weights" / "mobilenetv3_small_cats_dogs_fp16.pt")
    splits = normalized_for_imagenet(photographs("cats_dogs", folders))
    return Subject(network=network.eval(), splits=splits, input_shape=(3, SIZE, SIZE), label_of_K=np.arange(2))


def resnet20(folders: Folders) -> Subject:
    """The residual network for CIFAR-10."""
    network = CifarResNet(name="resnet20", image_size=32, depth=20).build(10)
    load_weights(network, folders.data / "weights" / "resnet20_cifar10.pt")
    with np.load(folders.data / "cifar10" / "cifar10.npz") as arrays:
        train = split(arrays["x_train"], arrays["y_train"], folders.calibration)
        test = split(arrays["x_test"], arrays["y_test"], folders.test)
    splits = normalized_for_imagenet(splits_of(train, test, classes=tuple("0123456789")))
    return Subject(network=network.eval(), splits=splits, input_shape=(3, 32, 32), label_of_K=np.arange(10))


def efficientnet_lite(cls: type[EfficientNetLite], image_size: int, folders: Folders) -> Subject:
    """For ImageNet's classes, of which photographs of cats, dogs, ants and bees show some."""
    model = cls(name="efficientnet_lite", image_size=image_size)
    network = model.build(1000)
    network.load_state_dict(model.imagenet_state(), strict=False)
    label_of_K, trains, tests = np.full(1000, -1), [], []
    for data, ranges in IMAGENET.items():
        shown = photographs(data, replace(folders, calibration=folders.calibration // 2, test=folders.test // 2))
        first = 2 * len(trains)
        for part, parts in ((shown.train, trains), (shown.test, tests)):
            parts.append(Split(images=part.images, labels=part.labels + first))
        for label, numbers in enumerate(ranges):
            label_of_K[list(numbers)] = first + label
    splits = centred(splits_of(joined(trains), joined(tests), classes=("cat", "dog", "ant", "bee")))
    return Subject(network=network.eval(), splits=splits, input_shape=model.input_shape, label_of_K=label_of_K)


NETWORKS: dict[str, Callable[[Folders], Subject]] = {
    "mobilenet_v3_small": mobilenet_v3_small,
    "resnet20": resnet20,
    "efficientnet_lite0": partial(efficientnet_lite, EfficientNetLite0, 224),
    "efficientnet_lite1": partial(efficientnet_lite, EfficientNetLite1, 240),
    "efficientnet_lite2": partial(efficientnet_lite, EfficientNetLite2, 260),
}


@torch.no_grad()
def of_onnx_file(file: str, folders: Folders) -> Subject:
    """A float network in a file, for pixels from -1 to 1; grey ones if it takes one channel."""
    _, *sizes = OnnxModel(name="onnx", file=file).written_shape()
    channels, height, width = (size or default for size, default in zip(sizes, (3, SIZE, SIZE), strict=True))
    model = OnnxModel(name="onnx", file=file, channels=channels, image_size=(height, width))
    network, shown = model.build(0).eval(), photographs("cats_dogs", folders)
    parts = [shown.train, shown.test]
    if channels == 1:
        parts = [replace(part, images=part.images.mean(3, keepdims=True).astype(np.uint8)) for part in parts]
    half = (0.5,) * channels
    splits = replace(splits_of(*parts, classes=shown.classes), mean_C=half, std_C=half)
    given = {"input_shape": model.input_shape, "batch": 1}
    if not isinstance(network(torch.zeros(1, *model.input_shape)), Tensor):
        raise SystemExit(f"{file}: yields several outputs; save it with one")
    logits_NK = torch.cat([network(part) for part in preprocessed(splits.test.images, splits, **given)])
    test = replace(splits.test, labels=logits_NK.argmax(1).numpy())
    label_of_K = np.arange(logits_NK.shape[1])
    return Subject(
        network=network, splits=replace(splits, test=test), input_shape=model.input_shape, label_of_K=label_of_K
    )


def retrained(old: Subject, splits: Splits, file: Path) -> Subject:
    """The same network with a last layer for other classes, fitted by logistic regression; kept in a file."""
    path, head = [(path, each) for path, each in old.network.named_modules() if isinstance(each, nn.Linear)][-1]
    splits = replace(splits, mean_C=old.splits.mean_C, std_C=old.splits.std_C)
    new = nn.Linear(head.in_features, len(splits.classes))
    if not file.exists():
        fit(new, features(old, head, splits), torch.from_numpy(splits.train.labels))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(new.state_dict(), file)
    new.load_state_dict(torch.load(file, weights_only=True))
    old.network.set_submodule(path, new)
    return replace(old, splits=splits, label_of_K=np.arange(len(splits.classes)))


@torch.no_grad()
def features(old: Subject, head: nn.Module, splits: Splits) -> Tensor:
    """What the last layer reads for the training images [N, F]."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for image in splits.train.images:
        shown = preprocess(image[None], input_shape=old.input_shape, mean_C=splits.mean_C, std_C=splits.std_C)
        old.network(shown)
    hook.remove()
    return torch.cat(seen)


def fit(layer: nn.Linear, features_NF: Tensor, labels_N: Tensor, *, decay: float = 1e-2) -> None:
    """Logistic regression with a penalty on the squared weights, which start at 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(layer(features_NF), labels_N) + decay * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


# --------------------------------------------------------------------------- images


def photographs(data: str, folders: Folders) -> Splits:
    """Photographs of a folder a class, both sides resized to 224 pixels; decoded once."""
    trained, tested = (folders.data / part for part in PHOTOGRAPHS[data])
    train, test = decoded(trained, folders.cache), decoded(tested, folders.cache)
    if trained == tested:
        train, test = (Split(images=train.images[i::2], labels=train.labels[i::2]) for i in (0, 1))
    return splits_of(
        split(train.images, train.labels, folders.calibration),
        split(test.images, test.labels, folders.test),
        classes=tuple(sorted(each.name for each in trained.iterdir())),
    )


def decoded(folder: Path, cache: Path) -> Split:
    """The images of a folder, in the order of their classes and names."""
    file = cache / f"{folder.parent.name}-{folder.name}.npz"
    if not file.exists():
        classes = sorted(each for each in folder.iterdir() if each.is_dir())
        files = [
            (path, label)
            for label, each in enumerate(classes)
            for path in sorted(each.iterdir())
            if path.suffix.lower() in IMAGE_FILES
        ]
        images = [np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path, _ in files]
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(cache / "partial.npz", images=np.stack(images), labels=np.array([label for _, label in files]))
        (cache / "partial.npz").rename(file)
    with np.load(file) as arrays:
        return Split(images=arrays["images"], labels=arrays["labels"])


def split(images: Array, labels: Array, most: int) -> Split:
    """So many of the images at most, evenly spread."""
    chosen = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)
    return Split(images=images[chosen], labels=labels[chosen].astype(np.int64))


def joined(parts: list[Split]) -> Split:
    """The images of several splits."""
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return Split(images=images, labels=labels)


def splits_of(train: Split, test: Split, *, classes: tuple[str, ...]) -> Splits:
    """Training and test images as methods take them; the normalisation is the network's own."""
    half = (0.5, 0.5, 0.5)
    return Splits(train=train, val=train, test=test, classes=classes, mean_C=half, std_C=half, fingerprint="")
