"""What it costs to decode a folder of photographs into the store: seconds and memory, for numbers of files.

    python benchmarks/image_folder_cost.py FOLDER

FOLDER holds photographs in train/CLASS/*. Each number of files is decoded in a process of its own. Files are copies
with a few bytes appended, so that no two are equal. Memory is what the process itself holds, without the system's cache
of files, at its peak.
"""

import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bitsweep.data.splits import make_splits
from bitsweep.datasets.image_folder import ImageFolder

COUNTS = (1000, 4000)


def main(source: Path) -> None:
    """Print a line for each number of files."""
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder, "images"), sorted((source / "train").glob("*/*")), count)
            process = multiprocessing.get_context("spawn").Process(target=_measure, args=(Path(folder), count))
            process.start()
            process.join()


def fill(folder: Path, photographs: Sequence[Path], count: int) -> None:
    """Write so many files into a folder a class: copies of photographs, of which no two are equal."""
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        copy = folder / photograph.parent.name / f"{number}{photograph.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(photograph.read_bytes() + str(number).encode())


def _measure(folder: Path, count: int) -> None:
    peak_mb, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak_mb[0] = max(peak_mb[0], int(status["RssAnon"].split()[0]) * 1024 / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    data = ImageFolder(name="photographs", root=str(folder / "images"))
    data.source()
    hashed = time.monotonic()
    make_splits(data.decode(), val_share=data.val_share, seed=data.split_seed, folder=folder)
    end = time.monotonic()
    done.set()
    watcher.join()
    stored_mb = sum(file.stat().st_size for file in folder.glob("*.npy")) / 1e6
    print(
        f"{count} files: hashed in {hashed - start:.1f} s, decoded and summed up in {end - hashed:.1f} s, "
        f"{stored_mb:.0f} MB stored, {peak_mb[0]:.0f} MB held",
        flush=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
