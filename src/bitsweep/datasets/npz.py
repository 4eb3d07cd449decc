"""Images and labels in one NumPy archive, with the keys that Keras and MedMNIST use."""

import hashlib
from pathlib import Path
from typing import Literal, final

from bitsweep.config.configurable import Place, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.data.archives import check_parts, read_npz
from bitsweep.errors import DataError
from bitsweep.results import RawData


@final
@configurable
class Npz(Dataset):
    """Images uint8 or uint16 [N, H, W] or [N, H, W, C] with C from 1 to 16, and labels [N], [N, 1] or one-hot [N, K].

    Attributes:
        root: the archive.
        classes: names of the classes; empty to name them by their labels.
        leaks: whether to refuse or to keep test images that are training images too.
    """

    root: Place = ""
    classes: tuple[str, ...] = ()
    leaks: Literal["refuse", "keep"] = "refuse"

    def source(self) -> str:
        """SHA-256 of the archive, which is looked through."""
        self.decode()
        return hashlib.sha256(self._file().read_bytes()).hexdigest()

    def decode(self) -> RawData:
        """Read the four arrays."""
        key = f"dataset.root={self.root}"
        data = read_npz(self._file(), key=key, classes=self.classes)
        check_parts(data, key=key, leaks=self.leaks)
        return data

    def _file(self) -> Path:
        file = Path(self.root).expanduser()
        if not self.root or not file.is_file():
            raise DataError(f"dataset.root={self.root}: no such file; set dataset.root to an .npz archive")
        return file
