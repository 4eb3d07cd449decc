"""What int8 costs in accuracy on trained networks: our default beside the defaults of the engines' own tools.

    python benchmarks/int8_accuracy.py --data FOLDER
    python benchmarks/int8_accuracy.py --data FOLDER --networks mobilenet_v3_small resnet20+rescaled --engines openvino
    python benchmarks/int8_accuracy.py --data FOLDER --networks net.onnx

Every contestant quantizes the same network on the same calibration images, and runs the same test images, in a process
of its own (`contestants.py`, `peers.py`, `trained_networks.py`). Top-1 has its Wilson interval. Differences are in
points, paired by image: to the network in float32, and to the peer that does best on these images; the more an interval
lies below 0, the worse. SQNR is that of the logits. Who cannot take part is listed with the reason; NNCF takes `pip
install nncf`.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from contestants import Build, Ours, Task, built, in_a_process
from hard_networks import HARD
from peers import PEERS, REFERENCE, nncf, quantize_static
from trained_networks import NETWORKS, ONNX, PHOTOGRAPHS, Folders, Subject, subject

from bitsweep import stats
from bitsweep.data.preprocessing import preprocessed
from bitsweep.results import Array
from bitsweep.runtime.environment import current_cpu, version_of

CONFIDENCE = 0.95
ENGINES = ("reference", "onnxruntime", "openvino", "fbgemm", "onednn")
PEERS_INT8: dict[str, Build] = {
    "nncf": PEERS["nncf int8"],
    "nncf mixed": nncf("MIXED"),
    "quantize_static minmax": PEERS["quantize_static int8"],
    "quantize_static entropy": quantize_static("Entropy"),
    "torch fx fbgemm": PEERS["torch fx fbgemm int8"],
    "torch fx onednn": PEERS["torch fx onednn int8"],
    "torchao inductor": PEERS["torchao inductor int8"],
}
#: Test images that are run at a time.
BATCH = 25


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a contestant did. Differences are shares of the images, with the ends of their intervals."""

    network: str
    contestant: str
    images: int
    seconds: float
    top1: tuple[float, float, float]
    to_fp32: tuple[float, float, float]
    to_best_peer: tuple[float, float, float]
    agreement: float
    sqnr_db: float


def main() -> None:
    """Compare the contestants on each network, print a table for each, and write them all."""
    arguments = parse_arguments()
    cpu, packages = current_cpu(), ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{cpu.model} ({cpu.isa}); {packages}")
    rows: list[Row] = []
    missing: list[dict[str, str]] = []
    for name in arguments.networks:
        found, reasons = race(name, arguments)
        rows += found
        missing += [{"network": name, "contestant": each, "reason": reason} for each, reason in reasons.items()]
        print_table(name, found, reasons, arguments)
        if arguments.json:
            about = {"cpu": cpu.model, "isa": cpu.isa, "versions": versions()}
            about |= {"calibration": arguments.calibration, "precision": arguments.precision}
            written = about | {"rows": [as_json(row) for row in rows], "left_out": missing}
            arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    print_summary(rows)


def parse_arguments() -> argparse.Namespace:
    """Contestants, networks and images."""
    names = [*NETWORKS, *(f"{network}@{data}" for network in NETWORKS for data in PHOTOGRAPHS)]
    names += [f"{name}+{hard}" for name in names for hard in HARD]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sample = os.environ.get("BITSWEEP_TEST_DATA")
    parser.add_argument("--data", type=Path, default=sample, required=not sample, help="see trained_networks.py")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NETWORK[@DATA][+HARD] | FILE.onnx")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=ENGINES, help="ours")
    parser.add_argument("--peers", nargs="*", choices=PEERS_INT8, default=list(PEERS_INT8))
    parser.add_argument("--precision", default="int8", help="of ours")
    parser.add_argument("--images", type=int, default=400, help="to test on, at most")
    parser.add_argument("--calibration", type=int, default=240, help="images to calibrate on, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "int8_accuracy", help="for these data only"
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    for name in arguments.networks:
        if name not in names and not (name.endswith(ONNX) and Path(name).is_file()):
            parser.error(f"--networks {name}: choose from {', '.join(NETWORKS)}, or give an ONNX file that is there")
    return arguments


def contestants(arguments: argparse.Namespace) -> dict[str, Build]:
    """Name -> how it is built."""
    ours = {f"bitsweep {engine}": Ours(engine, arguments.precision) for engine in arguments.engines}
    return {REFERENCE: PEERS[REFERENCE]} | {name: PEERS_INT8[name] for name in arguments.peers} | ours


def race(name: str, arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """The rows of a network, and why others have none."""
    given = subject_of(name, arguments)
    logits_NK, seconds, missing = {}, {}, {}
    for contestant in contestants(arguments):
        start = time.monotonic()
        answer = in_a_process(run_lane, name, contestant, arguments)
        seconds[contestant] = time.monotonic() - start
        print(f"{name}: {contestant} took {seconds[contestant]:.0f} s", file=sys.stderr, flush=True)
        if isinstance(answer, str):
            missing[contestant] = answer
        else:
            logits_NK[contestant] = answer
    correct_N = {each: correct(logits, given) for each, logits in logits_NK.items()}
    peers = [each for each in correct_N if each in PEERS_INT8]
    best = max(peers, key=lambda each: correct_N[each].sum(), default=REFERENCE)
    rows = [
        Row(
            network=name, contestant=each, images=len(logits), seconds=seconds[each], top1=share(correct_N[each]),
            to_fp32=difference(correct_N[each], correct_N[REFERENCE]),
            to_best_peer=difference(correct_N[each], correct_N[best]),
            agreement=stats.agreement(logits_NK[REFERENCE], logits),
            sqnr_db=stats.sqnr_db(logits_NK[REFERENCE], logits),
        )
        for each, logits in logits_NK.items()
    ]  # fmt: skip
    return rows, missing


def run_lane(name: str, contestant: str, arguments: argparse.Namespace) -> Array | str:
    """Build a contestant: its logits for the test images [N, K], or why there are none."""
    given = subject_of(name, arguments)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            network=given.network, splits=given.splits, input_shape=given.input_shape, batch=1,
            threads=arguments.threads, folder=Path(folder),
        )  # fmt: skip
        infer = built(contestants(arguments)[contestant], task)
        if isinstance(infer, str):
            return infer
        parts = preprocessed(given.splits.test.images, given.splits, input_shape=given.input_shape, batch=BATCH)
        return np.concatenate([infer(part.numpy()) for part in parts])


def subject_of(name: str, arguments: argparse.Namespace) -> Subject:
    """A network with its images."""
    where = {"data": arguments.data, "cache": arguments.cache}
    return subject(name, Folders(**where, calibration=arguments.calibration, test=arguments.images))


# --------------------------------------------------------------------------- figures


def correct(logits_NK: Array, given: Subject) -> Array:
    """Which images get their label."""
    result: Array = given.label_of_K[logits_NK.argmax(1)] == given.splits.test.labels
    return result


def share(correct_N: Array) -> tuple[float, float, float]:
    """Top-1 with its interval."""
    return float(correct_N.mean()), *stats.wilson_interval(int(correct_N.sum()), len(correct_N), CONFIDENCE)


def difference(correct_N: Array, others_N: Array) -> tuple[float, float, float]:
    """By how much top-1 is above that of another, with its interval."""
    gained, lost = stats.paired_counts(correct_N, others_N)
    n = len(correct_N)
    return (gained - lost) / n, *stats.paired_difference_interval(gained, lost, n, CONFIDENCE)


def versions() -> dict[str, str]:
    """Of what the contestants come in."""
    return {name: version_of(name) for name in ("torch", "torchao", "onnxruntime", "openvino", "nncf")}


def print_table(name: str, rows: list[Row], missing: dict[str, str], arguments: argparse.Namespace) -> None:
    """One line for each contestant, the best first."""
    print(
        f"\n{name}: ours in {arguments.precision}, {rows[0].images} test and at most {arguments.calibration} "
        "calibration images"
    )
    print(f"{'':26}{'top-1 %':>24}{'to fp32, points':>26}{'to the best peer':>26}{'agrees':>8}{'SQNR dB':>9}{'s':>6}")
    for row in sorted(rows, key=lambda row: -row.top1[0]):
        print(
            f"{row.contestant:26}{with_interval(row.top1):>24}{with_interval(row.to_fp32, '+'):>26}"
            f"{with_interval(row.to_best_peer, '+'):>26}{row.agreement:8.1%}{row.sqnr_db:9.1f}{row.seconds:6.0f}"
        )
    for each, reason in missing.items():
        print(f"left out: {each}: {reason}")


def as_json(row: Row) -> dict[str, object]:
    """The fields of a row; no SQNR where nothing differs."""
    return asdict(row) | ({} if math.isfinite(row.sqnr_db) else {"sqnr_db": None})


def with_interval(shares: tuple[float, float, float], sign: str = "") -> str:
    """In points."""
    value, low, high = (format(100 * each, f"{sign}.2f") for each in shares)
    return f"{value} [{low}, {high}]"


def print_summary(rows: list[Row]) -> None:
    """Of each contestant: means over the networks, and on how many it is below the best peer beyond the interval."""
    networks = len({row.network for row in rows})
    print(f"\n{networks} networks{'':16}{'to fp32':>10}{'to the best peer':>18}{'below it beyond the interval':>30}")
    for contestant in dict.fromkeys(row.contestant for row in rows):
        own = [row for row in rows if row.contestant == contestant]
        below = sum(row.to_best_peer[2] < 0 for row in own)
        means = [100 * float(np.mean([figures[0] for figures in each])) for each in (
            [row.to_fp32 for row in own], [row.to_best_peer for row in own]
        )]  # fmt: skip
        print(f"{contestant:26}{means[0]:+10.2f}{means[1]:+18.2f}{f'{below} of {len(own)}':>30}")


if __name__ == "__main__":
    main()
