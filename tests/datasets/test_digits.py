import numpy as np
from sklearn.datasets import load_digits

from bitsweep.datasets.digits import Digits


def test_every_image_is_in_one_split_and_unchanged() -> None:
    raw = Digits(name="digits").decode()
    assert (len(raw.train), len(raw.test)) == (1348, 449)
    images = np.concatenate([raw.train.images, raw.test.images])
    assert images.dtype == np.uint8
    assert images.max() == 255
    key = lambda stack: sorted(image.tobytes() for image in stack)  # noqa: E731
    assert key(np.rint(images[..., 0] / 255 * 16).astype(np.uint8)) == key(load_digits().images.astype(np.uint8))


def test_every_class_is_tested_alike() -> None:
    counts = np.bincount(Digits(name="digits", test_share=0.2).decode().test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 37
