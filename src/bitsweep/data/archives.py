"""Images and labels in archives of NumPy, with the keys that Keras and MedMNIST use."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from bitsweep.errors import DataError
from bitsweep.results import Array, RawData, Split

#: Keys of images and labels, for training and testing.
_CONVENTIONS = (
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
)


def read_npz(file: Path, *, key: str, classes: tuple[str, ...]) -> RawData:
    """Images uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3, and labels [N], [N, 1] or one-hot [N, K].

    Args:
        key: of the setting that names the archive, with its value, for errors.
        classes: names of the classes; none to number them.

    Raises:
        DataError: the archive is damaged, or lacks arrays.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            pairs = next((pairs for pairs in _CONVENTIONS if {*pairs[0], *pairs[1]} <= set(archive)), None)
            if pairs is None:
                wanted = " or ".join(", ".join([*train, *test]) for train, test in _CONVENTIONS)
                raise DataError(f"{key}: has the keys {', '.join(archive)}; expected {wanted}")
            train, test = (_split(archive[images], archive[labels], key) for images, labels in pairs)
    except DataError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{key}: cannot be read as an .npz archive ({error})") from error
    count = 1 + max(int(split.labels.max(initial=0)) for split in (train, test))
    return RawData(train=train, test=test, classes=classes or tuple(str(label) for label in range(count)))


def _split(images: Array, labels: Array, key: str) -> Split:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{key}: labels are {labels.dtype}; they must be whole numbers")
    if labels.ndim == 2:
        labels = labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0]
    return Split(images=images[..., None] if images.ndim == 3 else images, labels=labels.astype(np.int64))
