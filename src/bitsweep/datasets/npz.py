"""Images and labels in one NumPy archive, with the keys that Keras and MedMNIST use."""

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import final

import numpy as np

from bitsweep.artifacts import Array, RawData, Split
from bitsweep.axes import Dataset, axis
from bitsweep.errors import DataError

#: Keys of images and labels, for training and testing.
_CONVENTIONS = (
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
)


@final
@axis
class Npz(Dataset):
    """Images uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3, and labels [N], [N, 1] or one-hot [N, K].

    Attributes:
        root: the archive.
        classes: names of the classes; empty to number them.
    """

    root: str = ""
    classes: tuple[str, ...] = ()

    def source(self) -> str:
        """SHA-256 of the archive."""
        return hashlib.sha256(self._file().read_bytes()).hexdigest()

    def decode(self) -> RawData:
        """Read the four arrays."""
        try:
            with self._file().open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                pairs = next((pairs for pairs in _CONVENTIONS if {*pairs[0], *pairs[1]} <= set(archive)), None)
                if pairs is None:
                    wanted = " or ".join(", ".join([*train, *test]) for train, test in _CONVENTIONS)
                    raise DataError(f"dataset.root={self.root}: has the keys {', '.join(archive)}; expected {wanted}")
                train, test = (self._split(archive[images], archive[labels]) for images, labels in pairs)
        except DataError:
            raise
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"dataset.root={self.root}: cannot be read as an .npz archive ({error})") from error
        count = 1 + max(int(split.labels.max(initial=0)) for split in (train, test))
        return RawData(train=train, test=test, classes=self.classes or tuple(str(label) for label in range(count)))

    def _file(self) -> Path:
        file = Path(self.root).expanduser()
        if not self.root or not file.is_file():
            raise DataError(f"dataset.root={self.root}: no such file; set dataset.root to an .npz archive")
        return file

    def _split(self, images: Array, labels: Array) -> Split:
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"dataset.root={self.root}: labels are {labels.dtype}; they must be whole numbers")
        if labels.ndim == 2:
            labels = labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0]
        return Split(images=images[..., None] if images.ndim == 3 else images, labels=labels.astype(np.int64))
