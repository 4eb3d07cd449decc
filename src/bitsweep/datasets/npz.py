"""Images and labels in one NumPy archive, with the keys that Keras and MedMNIST use."""

import hashlib
from pathlib import Path
from typing import final

from bitsweep.config.configurable import Place, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.data.archives import read_npz
from bitsweep.errors import DataError
from bitsweep.results import RawData


@final
@configurable
class Npz(Dataset):
    """Images uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3, and labels [N], [N, 1] or one-hot [N, K].

    Attributes:
        root: the archive.
        classes: names of the classes; empty to number them.
    """

    root: Place = ""
    classes: tuple[str, ...] = ()

    def source(self) -> str:
        """SHA-256 of the archive."""
        return hashlib.sha256(self._file().read_bytes()).hexdigest()

    def decode(self) -> RawData:
        """Read the four arrays."""
        return read_npz(self._file(), key=f"dataset.root={self.root}", classes=self.classes)

    def _file(self) -> Path:
        file = Path(self.root).expanduser()
        if not self.root or not file.is_file():
            raise DataError(f"dataset.root={self.root}: no such file; set dataset.root to an .npz archive")
        return file
