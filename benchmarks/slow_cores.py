"""What slow cores do to a latency: a network, timed again and again beside the state of the cores.

    python benchmarks/slow_cores.py --seconds 120

On a computer of one's own all is steady. On a virtual machine two states come and go: other machines use the arithmetic
units of the same cores, or the virtual CPUs are on physical cores far from each other.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torchvision.models import mobilenet_v3_small

import bitsweep as bs
from bitsweep.measuring.pace import Moment, Pace
from bitsweep.measuring.timing import block, pin
from bitsweep.runtime.environment import current_cpu, physical_cores

_RUNS = 40
_LIMIT = 1.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side of the image")
    arguments = parser.parse_args()
    threads = physical_cores()
    torch.manual_seed(0)
    network = mobilenet_v3_small(weights=None, num_classes=10).eval()
    images = torch.rand(64, 3, arguments.size, arguments.size)
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        lowered = {}
        for precision, method in (("fp32", "none"), ("int8", "ptq")):
            program = bs.compress(network, images, method=method, precision=precision)
            lowered[precision] = bs.lower(program, "onnxruntime", Path(scratch) / precision)
        pin(threads)
        image = images[:1].numpy()
        end = time.monotonic() + arguments.seconds
        with Pace() as pace:
            now = pace()
            while time.monotonic() < end:
                before, times = now, []
                for infer in lowered.values():
                    times.append(float(np.median(block(infer, image, _RUNS))))
                now = pace()
                if (state := _state(before)) == _state(now):
                    found[state].append(times)
    print(f"{current_cpu().model}, {threads} threads, medians in ms")
    print(f"{'state of the cores':<24}{'times':>6}{'fp32':>8}{'int8':>8}{'fp32 by int8':>14}")
    for state, rows in sorted(found.items(), key=lambda item: -len(item[1])):
        fp32, int8 = np.median(np.array(rows), axis=0)
        print(f"{state:<24}{len(rows):>6}{fp32:>8.3f}{int8:>8.3f}{fp32 / int8:>14.2f}")


def _state(moment: Moment) -> str:
    if moment.arithmetic > _LIMIT:
        return "arithmetic shared"
    return "far apart" if moment.distance > _LIMIT else "steady"


if __name__ == "__main__":
    main()
