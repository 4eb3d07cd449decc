"""How far a measured speed-up differs from process to process, and how many of its intervals hold the middle one.

    python benchmarks/repeated_measurements.py --repeats 12 --pause 5

Blocks of one process run beside each other, and resemble each other. From process to process, files lie elsewhere in
memory, and other programs leave more or less of the last cache, which all cores share.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision import models

import bitsweep as bs
from bitsweep.measuring.latency import figures_of
from bitsweep.measuring.passes import Subject
from bitsweep.measuring.timing import time_artifacts
from bitsweep.runtime.environment import current_cpu, physical_cores

#: Network of torchvision, and pixels of a side of its images.
_CASES = (("mobilenet_v3_small", 64), ("resnet18", 32), ("resnet18", 128), ("alexnet", 64))
#: Ratio, and the ends of its interval.
_Ends = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two measurements")
    arguments = parser.parse_args()
    print(f"{current_cpu().model}, {physical_cores()} threads, ONNX Runtime")
    print(f"{'network':<20}{'pixels':>7}{'precision':>10}{'MB':>7}{'fp32 MB':>9}{'ratio':>7}{'sd %':>6}{'hold it':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {case: _lowered(*case, Path(scratch)) for case in _CASES}
        found: dict[tuple[str, int, str], list[_Ends]] = defaultdict(list)
        for _ in range(arguments.repeats):
            for (name, size), precision in ((case, each) for case in _CASES for each in ("int8", "fp16")):
                time.sleep(arguments.pause)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found[name, size, precision].append(
                        pool.apply(_measured, (Path(scratch) / f"{name}-{size}", precision, size))
                    )
    for (name, size, precision), measured in found.items():
        ratios, lows, highs = np.array(measured).T
        middle, spread = np.median(ratios), 100 * np.log(ratios).std(ddof=1)
        own, fp32 = sizes[name, size][precision], sizes[name, size]["fp32"]
        hold = f"{np.sum((lows <= middle) & (middle <= highs))}/{len(ratios)}"
        print(f"{name:<20}{size:>7}{precision:>10}{own:>7.1f}{fp32:>9.1f}{middle:>7.2f}{spread:>6.1f}{hold:>9}")


def _lowered(name: str, size: int, folder: Path) -> dict[str, float]:
    """Write the files of a network; precision -> its size in 10^6 bytes."""
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None, num_classes=10).eval()
    images = torch.rand(16, 3, size, size)
    sizes = {}
    for precision, method in (("fp32", "none"), ("fp16", "ptq"), ("int8", "ptq")):
        program = bs.compress(network, images, method=method, precision=precision)
        sizes[precision] = bs.lower(program, "onnxruntime", folder / f"{name}-{size}" / precision).size_mb
    return sizes


def _measured(files: Path, precision: str, size: int) -> _Ends:
    """The speed-up of a file against the fp32 one, as a cell has it."""
    (cell,) = bs.grid(f"precision={precision} backend=onnxruntime")
    subject = Subject(
        artifact=files / precision, twin=files / "fp32", backend=cell.backend, protocol=cell.protocol,
        scheme=cell.scheme, target=cell.target,
    )  # fmt: skip
    threads = subject.threads
    loads = [partial(cell.backend.load, each, threads=threads) for each in (subject.artifact, subject.twin)]
    examples = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        timed = time_artifacts(loads, examples, cell.protocol, threads=threads, folder=Path(folder))
        metrics, _, _ = figures_of(timed, Path(folder), subject)
    return metrics["speedup"], metrics["speedup_low"], metrics["speedup_high"]


if __name__ == "__main__":
    main()
