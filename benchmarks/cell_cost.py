"""What it costs to make an int8 artifact, stage by stage: ours beside the tools of the engines.

    python benchmarks/cell_cost.py --data FOLDER
    python benchmarks/cell_cost.py --data FOLDER --networks resnet18 --rounds 3

All quantize the same network on the same images (`contestants.py`, `peers.py`, `trained_networks.py`), each in a
process of its own with so many cores. Times are CPU-seconds of all threads, user and system: other work on the machine
hardly changes them. A stage has the time that no stage within it has. What is compared is what a tool does from the
float network in its own form: of ours from the file of the exported network, which all its cells share, to the
artifact, evaluation apart; of a peer, the call that quantizes. With "export" everybody has the export of the network in
PyTorch, too: to that file, or to ONNX.
"""

import argparse
import contextlib
import functools
import importlib
import json
import logging
import os
import pkgutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import Build, Ours, Task, built, in_a_process
from peers import PEERS
from trained_networks import SIZE, Folders, Subject, photographs, subject

from bitsweep.data.preprocessing import normalized_for_imagenet
from bitsweep.models.torchvision import TorchvisionModel
from bitsweep.runtime.environment import current_cpu, version_of

#: What a function does, by where it is called from.
Stages = dict[str, str]
NNCF, STATIC = "nncf", "quantize_static"
PEER_STAGES: dict[str, Stages] = {
    NNCF: {"peers:onnx_file": "export", "nncf:quantize": "quantize"},
    STATIC: {
        "peers:onnx_file": "export",
        "onnxruntime.quantization.shape_inference:quant_pre_process": "quantize",
        "onnxruntime.quantization:quantize_static": "quantize",
    },
}
OURS: Stages = {
    "contestants:program_file": "export",
    "bitsweep.graphs.program:load_program": "load",
    "bitsweep.graphs.folding:fold_hard_sigmoid": "fold",
    "bitsweep.data.preprocessing:preprocess": "preprocess images",
    "bitsweep.quantization.guard.search:Guard.protect": "guard",
    "bitsweep.quantization.weights:round_weights": "round weights",
    "bitsweep.quantization.rewrites.restoring:restore_outputs": "restore outputs",
    "bitsweep.quantization.placement:quantize_activations": "run calibration images",
    "bitsweep.quantization.placement:observe": "place observers",
    "bitsweep.quantization.placement:convert": "choose ranges, place pairs",
    "bitsweep.quantization.calibration.observers:histogram": "histograms",
    "bitsweep.quantization.storing:stored": "records",
    "bitsweep.quantization.storing:program_of": "program",
    "bitsweep.lowering.onnx.export:export_onnx": "lower",
    "bitsweep.methods.ptq:PostTrainingQuantization.compress": "others",
}
LOWERING: dict[str, Stages] = {
    "openvino": {"bitsweep.backends.openvino.backend:OpenVino.lower": "read"},
    "onnxruntime": {"bitsweep.backends.onnxruntime.backend:OnnxRuntime.lower": "others"},
}
CONTESTANTS: dict[str, tuple[Build, Stages]] = {
    **{f"bitsweep {engine}": (Ours(engine, "int8"), OURS | own) for engine, own in LOWERING.items()},
    NNCF: (PEERS["nncf int8"], PEER_STAGES[NNCF]),
    STATIC: (PEERS["quantize_static int8"], PEER_STAGES[STATIC]),
}


def resnet18(folders: Folders) -> Subject:
    """torchvision's, with random weights: costs do not depend on them."""
    torch.manual_seed(0)
    network = TorchvisionModel(name="resnet18", image_size=SIZE, builder="resnet18").build(2)
    splits = normalized_for_imagenet(photographs("cats_dogs", folders))
    return Subject(network=network.eval(), splits=splits, input_shape=(3, SIZE, SIZE), label_of_K=np.arange(2))


COSTED = ("efficientnet_lite0", "resnet18", "mobilenet_v3_small")


def main() -> None:
    """Time the contestants on each network in turn, and print a table for each."""
    arguments = parse_arguments()
    cpu, versions = current_cpu(), [f"{each} {version_of(each)}" for each in ("torch", "onnxruntime", "openvino", NNCF)]
    print(f"{cpu.model} ({cpu.isa}), {arguments.threads} cores; {', '.join(versions)}", flush=True)
    for network in arguments.networks:
        rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
        for turn in range(arguments.rounds):
            for name in arguments.only if turn % 2 == 0 else reversed(arguments.only):
                answer = in_a_process(run_lane, network, name, arguments)
                if isinstance(answer, str):
                    raise SystemExit(f"{name}: {answer}")
                rounds[name].append(answer)
        print_table(network, rounds, arguments)


def parse_arguments() -> argparse.Namespace:
    """Contestants, networks and images."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sample = os.environ.get("BITSWEEP_TEST_DATA")
    parser.add_argument("--data", type=Path, default=sample, required=not sample, help="see trained_networks.py")
    parser.add_argument("--networks", nargs="+", choices=COSTED, default=list(COSTED))
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--calibration", type=int, default=256, help="images to calibrate on, at most")
    parser.add_argument("--threads", type=int, default=1, help="cores of each process")
    parser.add_argument("--rounds", type=int, default=1, help="the figures are medians of them")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "cell_cost", help="for these data only"
    )
    parser.add_argument("--json", type=Path, help="file for the figures of the last network")
    return parser.parse_args()


# --------------------------------------------------------------------------- timing


@dataclass(kw_only=True)
class Clock:
    """CPU-seconds of each stage, without those of the stages within it."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    running: list[str] = field(default_factory=list)
    last: float = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens now to a stage."""
        self._turn()
        self.running.append(name)
        try:
            yield
        finally:
            self._turn()
            self.running.pop()

    def _turn(self) -> None:
        now = time.process_time()
        if self.running:
            self.seconds[self.running[-1]] += now - self.last
        self.last = now

    def watch(self, place: str, name: str) -> None:
        """Count all calls of a function, given as MODULE:NAME, to a stage."""
        owner, _, attribute = place.replace(":", ".").rpartition(".")
        function = pkgutil.resolve_name(place)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **named)

        setattr(pkgutil.resolve_name(owner), attribute, timed)


def run_lane(network: str, name: str, arguments: argparse.Namespace) -> dict[str, float] | str:
    """Build a contestant: CPU-seconds of each stage, or why it does not take part."""
    logging.disable(logging.WARNING)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    folders = Folders(data=arguments.data, cache=arguments.cache, calibration=arguments.calibration, test=1)
    given = resnet18(folders) if network == "resnet18" else subject(network, folders)
    build, stages = CONTESTANTS[name]
    clock = Clock()
    with clock.stage("imports"):
        importlib.import_module("bitsweep.runtime.preload")  # as before every stage of a sweep
        for place in stages:
            importlib.import_module(place.partition(":")[0])
    for place, stage in stages.items():
        clock.watch(place, stage)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            network=given.network, splits=given.splits, input_shape=given.input_shape, batch=1,
            threads=arguments.threads, folder=Path(folder),
        )  # fmt: skip
        answer = built(build, task)
    return answer if isinstance(answer, str) else dict(clock.seconds)


# --------------------------------------------------------------------------- table


def print_table(network: str, rounds: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    """What each contestant takes, its ratio to each peer, without and with exports, and where ours goes."""
    medians = {
        name: {stage: statistics.median(each.get(stage, 0.0) for each in found) for stage in found[0]}
        for name, found in rounds.items()
    }
    for seconds in medians.values():
        seconds.pop("imports")
    peers = [peer for peer in PEER_STAGES if peer in medians]
    print(f"\n{network}, {arguments.calibration} images, CPU-seconds; ratios")
    print(f"{'':26}" + "".join(f"{each:>20}" for each in ["", *(f"/ {peer}" for peer in peers)] * 2))
    for name in medians:
        shown = list[str]()
        for left_out, what in (("export", "CPU-s"), ("", "with export")):
            totals = {each: sum(medians[each].values()) - medians[each].get(left_out, 0) for each in (name, *peers)}
            ratios = [f"{totals[name] / totals[peer]:20.2f}" if name not in peers else " " * 20 for peer in peers]
            shown += [f"{f'{totals[name]:.2f} {what}':>20}", *ratios]
        print(f"{name:26}" + "".join(shown))
    for name, seconds in medians.items():
        parts = ", ".join(f"{stage} {value:.2f}" for stage, value in sorted(seconds.items(), key=lambda each: -each[1]))
        print(f"{name}: {parts}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"network": network, "cpu": current_cpu().model, "rounds": rounds}) + "\n")


if __name__ == "__main__":
    main()
