"""Images and labels in one NumPy archive, with the keys that Keras and MedMNIST use."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, final

import numpy as np

from bitsweep.config.configurable import NOT_IN_KEYS, Place, configurable
from bitsweep.config.dataset import Dataset, Part
from bitsweep.data.archives import check_parts, read_npz
from bitsweep.data.class_names import read_classes
from bitsweep.data.listing import too_few
from bitsweep.data.sampling import tell_held_out
from bitsweep.data.unlabelled import read_unlabelled
from bitsweep.errors import DataError
from bitsweep.results import RawData
from bitsweep.runtime.fingerprint import digest


@final
@configurable
class Npz(Dataset):
    """Images uint8 or uint16 [N, H, W] or [N, H, W, C] with C from 1 to 16, and labels [N], [N, 1] or one-hot [N, K].

    Labels are whole numbers, or names.

    Attributes:
        root: the archive.
        classes: names of the classes by their numbers, or a file with them, see
            `bitsweep.data.class_names.read_classes`; empty to name them by their labels.
        calibration: an ``.npy`` or ``.npz`` file of images without labels, to choose ranges on; empty for training
            images.
        leaks: whether to refuse or to keep test images that are training or calibration images too.
    """

    root: Place = ""
    classes: Annotated[str | tuple[str, ...], NOT_IN_KEYS] = ()
    calibration: Place = ""
    leaks: Literal["refuse", "keep"] = "refuse"

    def source(self) -> str:
        """SHA-256 of the files, which are looked through, and the names of the classes."""
        data = self.decode()
        files = [self._file(), *([Path(self.calibration).expanduser()] if self.calibration else [])]
        return digest(data.classes, [hashlib.sha256(file.read_bytes()).hexdigest() for file in files])

    def lacks(self) -> Mapping[Part, str]:
        """Training images where there are none, or too few; validation images where nothing is left for them."""
        data = self.decode()
        labels_N = np.concatenate([data.train.labels, data.test.labels])
        reason = too_few(labels_N, np.arange(len(labels_N)) >= len(data.train), data.classes)
        lacking: dict[Part, str] = {"training": f"dataset.root={self.root}: {reason}"} if reason else {}
        left = len(data.train) or data.calibration is None
        return lacking if left else lacking | {"validation": lacking["training"]}

    def decode(self) -> RawData:
        """Read the arrays."""
        key = f"dataset.root={self.root}"
        data = read_npz(self._file(), key=key, classes=read_classes(self.classes))
        if self.calibration:
            data = replace(data, calibration=read_unlabelled(self.calibration, like=data.test.images))
        elif not len(data.train):
            tell_held_out(key, len(data.test), self.val_share)
        check_parts(data, key=key, leaks=self.leaks)
        return data

    def _file(self) -> Path:
        file = Path(self.root).expanduser()
        if not self.root or not file.is_file():
            raise DataError(f"dataset.root={self.root}: no such file; set dataset.root to an .npz archive")
        return file
