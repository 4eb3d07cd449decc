"""Our int8 artifact against ONNX Runtime's own static quantization, both on ONNX Runtime, beside its fp32.

    python benchmarks/onnxruntime_int8.py --model resnet18
    python benchmarks/onnxruntime_int8.py --model alexnet --weights state_dict.pt --rounds 30

All contestants come from one network and one set of calibration images. `quantize_static` starts from PyTorch's own
ONNX export, or from the fp32 file that we write, and gets its preprocessing, the QDQ format, u8 activations and s8
weights per channel. Each contestant is timed in a process of its own; in every round each has one block of runs, in
turn, while the others sleep. Ratios are paired by round: median, with a bootstrap interval.
"""

import argparse
import copy
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bitsweep import stats
from bitsweep.artifacts import Array, Split, Splits
from bitsweep.axes import Grid, Precision
from bitsweep.backends.onnxruntime import MODEL, OnnxRuntime
from bitsweep.environment import current_cpu, version_of

MODELS = ("alexnet", "resnet18", "mobilenet_v3_small")
BACKEND = OnnxRuntime(name="onnxruntime")
INT8 = Precision(
    name="int8",
    weights=Grid(bits=8, signed=True, symmetric=True, per_channel=True),
    activations=Grid(bits=8, signed=False, symmetric=False),
)
OURS, FP32 = "bitsweep int8", "fp32"
#: Images to calibrate on.
IMAGES = 32


def main() -> None:
    """Build the contestants, let them race, and print a table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folders = build(arguments, Path(scratch))
        blocks, logits_NK = race(folders, arguments)
        print_table(folders, blocks, logits_NK, arguments)


def parse_arguments() -> argparse.Namespace:
    """What to race, and for how long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--weights", type=Path, help="state_dict of the network; random weights without it")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block-s", type=float, default=0.3, help="seconds of a block")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# --------------------------------------------------------------------------- the contestants


def build(arguments: argparse.Namespace, scratch: Path) -> dict[str, Path]:
    """Write the ONNX file of every contestant; name -> folder."""
    import torch

    from bitsweep.methods.none import NoCompression
    from bitsweep.methods.ptq import PostTrainingQuantization
    from bitsweep.models.torchvision import TorchvisionModel
    from bitsweep.splits import preprocess

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    model = TorchvisionModel(name=arguments.model, builder=arguments.model, image_size=arguments.image_size)
    network = model.build(arguments.classes).eval()
    if arguments.weights:
        network.load_state_dict(torch.load(arguments.weights, map_location="cpu", weights_only=True))
    splits = synthetic_splits(arguments.image_size, seed=arguments.seed)
    half = (0.5, 0.5, 0.5)
    images = preprocess(splits.train.images, image_size=arguments.image_size, mean_C=half, std_C=half).numpy()
    np.save(scratch / "images.npy", images)

    folders = {}
    methods = {FP32: NoCompression(name="none"), OURS: PostTrainingQuantization(name="ptq", calibration_images=IMAGES)}
    for name, method in methods.items():
        precision = INT8 if name == OURS else Precision(name="fp32", weights="float32", activations="float32")
        compression = method.compress(
            copy.deepcopy(network),
            splits,
            image_size=arguments.image_size,
            scheme=BACKEND.scheme(precision, current_cpu()),
            seed=arguments.seed,
        )
        folders[name] = new_folder(scratch, name)
        BACKEND.lower(compression.program, folders[name])
    plain = scratch / "plain.onnx"
    torch.onnx.export(
        network, (torch.from_numpy(images[:1]),), plain, dynamo=True, external_data=False, input_names=["images"],
        output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    peers = {
        "quantize_static": (plain, False),
        "quantize_static, 7-bit weights": (plain, True),
        "quantize_static of our fp32": (folders[FP32] / MODEL, False),
    }
    for name, (source, reduce_range) in peers.items():
        folders[name] = new_folder(scratch, name)
        quantize_static(source, folders[name] / MODEL, images, reduce_range=reduce_range)
    return folders


def synthetic_splits(image_size: int, *, seed: int) -> Splits:
    """Images of random coloured tiles; speed does not depend on what they show."""
    tiles = np.random.default_rng(seed).integers(0, 256, (IMAGES, image_size // 8, image_size // 8, 3), dtype=np.uint8)
    images = np.kron(tiles, np.ones((1, 8, 8, 1), np.uint8))
    split = Split(images=images, labels=np.zeros(len(images), np.int64))
    half = (0.5, 0.5, 0.5)
    return Splits(train=split, val=split, test=split, classes=("any",), mean_C=half, std_C=half, fingerprint="")


def quantize_static(source: Path, target: Path, images: Array, *, reduce_range: bool) -> None:
    """ONNX Runtime's own static quantization, as its documentation recommends it for x86."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Array]] = iter([{"images": image[None]} for image in images])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(source, prepared)
    quantization.quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )
    prepared.unlink()


def new_folder(scratch: Path, name: str) -> Path:
    """An empty folder for the file of a contestant."""
    folder = scratch / name.replace(" ", "-")
    folder.mkdir()
    return folder


# --------------------------------------------------------------------------- the race


def race(folders: dict[str, Path], arguments: argparse.Namespace) -> tuple[dict[str, list[Array]], dict[str, Array]]:
    """Run every contestant in a process of its own, block by block in turn.

    Returns:
        name -> latencies in ms of each block; name -> logits [N, K] of the calibration images.
    """
    context = multiprocessing.get_context("spawn")
    lanes, processes = {}, []
    for name, folder in folders.items():
        lanes[name], theirs = context.Pipe()
        processes.append(context.Process(target=run_lane, args=(theirs, folder, arguments.threads), daemon=True))
        processes[-1].start()
    logits_NK = {name: lane.recv() for name, lane in lanes.items()}
    blocks: dict[str, list[Array]] = {name: [] for name in folders}
    for turn in range(arguments.rounds):
        for name in list(folders) if turn % 2 == 0 else reversed(list(folders)):
            lanes[name].send(arguments.block_s)
            blocks[name].append(lanes[name].recv())
    for process in processes:
        process.kill()
    return blocks, logits_NK


def run_lane(lane: Connection, folder: Path, threads: int) -> None:
    """Load one artifact, send its logits, then answer every number of seconds with latencies in ms at batch 1."""
    images = np.load(folder.parent / "images.npy")
    runner = BACKEND.load(folder, threads=threads)
    lane.send(runner(images))
    while True:
        seconds = lane.recv()
        samples: list[float] = []
        for _ in range(3):
            runner(images[:1])
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter_ns()
            runner(images[:1])
            samples.append((time.perf_counter_ns() - start) / 1e6)
        lane.send(np.array(samples))


def print_table(
    folders: dict[str, Path],
    blocks: dict[str, list[Array]],
    logits_NK: dict[str, Array],
    arguments: argparse.Namespace,
) -> None:
    """One line for each contestant."""
    cpu = current_cpu()
    print(
        f"{arguments.model}, batch 1, {arguments.image_size} px, {arguments.threads} threads, "
        f"{arguments.rounds} rounds, onnxruntime {version_of('onnxruntime')}, {cpu.model} ({cpu.isa})"
    )
    print(f"{'':32}{'p50 ms':>8}{'fp32 / it':>22}{'it / ours':>22}{'MB':>8}{'int8 MACs':>11}{'SQNR dB':>9}{'top-1':>8}")
    images = np.load(next(iter(folders.values())).parent / "images.npy")
    for name, folder in folders.items():
        kernels = BACKEND.kernels(folder, images[:1], threads=arguments.threads)
        integer = sum(kernel.macs for kernel in kernels if kernel.integer) / sum(kernel.macs for kernel in kernels)
        sqnr = stats.sqnr_db(logits_NK[FP32], logits_NK[name]) if name != FP32 else float("inf")
        print(
            f"{name:32}{np.median(np.concatenate(blocks[name])):8.2f}"
            f"{ratio(blocks[FP32], blocks[name]):>22}{ratio(blocks[name], blocks[OURS]):>22}"
            f"{(folder / MODEL).stat().st_size / 1e6:8.2f}{integer:11.1%}{sqnr:9.1f}"
            f"{stats.agreement(logits_NK[FP32], logits_NK[name]):8.1%}"
        )


def ratio(numerator: list[Array], denominator: list[Array]) -> str:
    """Median of paired ratios with its 95 % interval."""
    found = stats.paired_speedup(numerator, denominator, confidence=0.95, seed=0)
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    main()
