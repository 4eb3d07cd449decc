"""Our int8 artifact on PyTorch's own kernels against the network that PyTorch's FX quantization makes for them.

    python benchmarks/quantized_kernels.py --model resnet18 --engine fbgemm
    python benchmarks/quantized_kernels.py --model mobilenet_v3_small --engine onednn --threads 1 --rounds 30

All contestants come from one network and one set of calibration images: FX quantization with the engine's own default
configuration, run as it is and as frozen TorchScript; ours; and the network in fp32, ours and in eager mode with
channels last. Each is built and timed in a process of its own; in every round each has one block of runs, in turn,
while the others sleep. Ratios are paired by round: median, with a bootstrap interval.
"""

import argparse
import multiprocessing
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep import stats
from bitsweep.artifacts import Array, Split, Splits
from bitsweep.axes import Backend, Grid, Precision, Runner
from bitsweep.environment import current_cpu, version_of

MODELS = ("alexnet", "resnet18", "mobilenet_v3_small")
FP32 = Precision(name="fp32", weights="float32", activations="float32")
INT8 = Precision(
    name="int8",
    weights=Grid(bits=8, signed=True, symmetric=True, per_channel=True),
    activations=Grid(bits=8, signed=False, symmetric=False),
)
OURS, OURS_FP32, EAGER = "bitsweep int8", "bitsweep fp32", "eager fp32"
FX, FX_SCRIPT, ONNX = "FX int8", "FX int8, TorchScript", "bitsweep int8, onnxruntime"
CONTESTANTS = (EAGER, OURS_FP32, FX, FX_SCRIPT, OURS, ONNX)
#: Images to calibrate on.
IMAGES = 32


def main() -> None:
    """Let the contestants race, and print a table."""
    arguments = parse_arguments()
    blocks, logits_NK = race(arguments)
    print_table(blocks, logits_NK, arguments)


def parse_arguments() -> argparse.Namespace:
    """What to race, and for how long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--engine", choices=("fbgemm", "onednn", "qnnpack"), default="fbgemm")
    parser.add_argument("--weights", type=Path, help="state_dict of the network; random weights without it")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block-s", type=float, default=0.3, help="seconds of a block")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# --------------------------------------------------------------------------- the contestants


def network_of(arguments: argparse.Namespace) -> Any:
    """The fp32 network in evaluation mode."""
    import torch

    from bitsweep.models.torchvision import TorchvisionModel

    torch.manual_seed(arguments.seed)
    model = TorchvisionModel(name=arguments.model, builder=arguments.model, image_size=arguments.image_size)
    network = model.build(arguments.classes).eval()
    if arguments.weights:
        network.load_state_dict(torch.load(arguments.weights, map_location="cpu", weights_only=True))
    return network


def splits_of(arguments: argparse.Namespace) -> Splits:
    """Images of random coloured tiles; speed does not depend on what they show."""
    side = arguments.image_size // 8
    tiles = np.random.default_rng(arguments.seed).integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
    images = np.kron(tiles, np.ones((1, 8, 8, 1), np.uint8))
    split = Split(images=images, labels=np.zeros(len(images), np.int64))
    half = (0.5, 0.5, 0.5)
    return Splits(train=split, val=split, test=split, classes=("any",), mean_C=half, std_C=half, fingerprint="")


def images_of(arguments: argparse.Namespace) -> Array:
    """The calibration images as networks read them, float32 [N, 3, H, W]."""
    from bitsweep.splits import preprocess

    half, images = (0.5, 0.5, 0.5), splits_of(arguments).train.images
    return np.asarray(preprocess(images, image_size=arguments.image_size, mean_C=half, std_C=half))


def build(name: str, arguments: argparse.Namespace) -> Runner:
    """A contestant, in the process where it is to run."""
    import torch

    torch.set_num_threads(arguments.threads)
    if name in (OURS, OURS_FP32, ONNX):
        return ours(name, arguments)
    torch.backends.quantized.engine = arguments.engine
    network = network_of(arguments).to(memory_format=torch.channels_last)
    if name != EAGER:
        network = fx_quantized(network, images_of(arguments), engine=arguments.engine)
    if name == FX_SCRIPT:
        network = torch.jit.freeze(torch.jit.script(network))

    def run(images: Array) -> Array:
        with torch.inference_mode():
            logits: Array = network(torch.from_numpy(images).contiguous(memory_format=torch.channels_last)).numpy()
        return logits

    return run


def ours(name: str, arguments: argparse.Namespace) -> Runner:
    """What a cell of bitsweep runs."""
    from bitsweep.backends.onnxruntime import OnnxRuntime
    from bitsweep.backends.quantized import QuantizedKernels
    from bitsweep.methods.none import NoCompression
    from bitsweep.methods.ptq import PostTrainingQuantization

    backend: Backend = QuantizedKernels(name=arguments.engine, engine=arguments.engine)
    if name == ONNX:
        backend = OnnxRuntime(name="onnxruntime")
    method = (
        NoCompression(name="none")
        if name == OURS_FP32
        else PostTrainingQuantization(name="ptq", calibration_images=IMAGES)
    )
    compression = method.compress(
        network_of(arguments),
        splits_of(arguments),
        image_size=arguments.image_size,
        scheme=backend.scheme(FP32 if name == OURS_FP32 else INT8, current_cpu()),
        seed=arguments.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        backend.lower(compression.program, Path(folder))
        runner = backend.load(Path(folder), threads=arguments.threads)
        if name == OURS:
            kernels = backend.kernels(Path(folder), images_of(arguments)[:1], threads=arguments.threads)
            integer = sum(kernel.macs for kernel in kernels if kernel.integer) / sum(kernel.macs for kernel in kernels)
            size_mb = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
            print(f"{OURS}: {integer:.1%} of multiply-accumulates on integers, {size_mb:.2f} MB")
    return runner


def fx_quantized(network: Any, images: Array, *, engine: str) -> Any:
    """The network as PyTorch's FX graph mode quantizes it with the engine's default configuration."""
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(network, get_default_qconfig_mapping(engine), (torch.from_numpy(images[:1]),))
    with torch.no_grad():
        prepared(torch.from_numpy(images))
    return convert_fx(prepared)


# --------------------------------------------------------------------------- the race


def race(arguments: argparse.Namespace) -> tuple[dict[str, list[Array]], dict[str, Array]]:
    """Run every contestant in a process of its own, block by block in turn.

    Returns:
        name -> latencies in ms of each block; name -> logits [N, K] of the calibration images.
    """
    context = multiprocessing.get_context("spawn")
    lanes, processes, logits_NK = {}, [], {}
    for name in CONTESTANTS:
        lanes[name], theirs = context.Pipe()
        processes.append(context.Process(target=run_lane, args=(theirs, name, arguments), daemon=True))
        processes[-1].start()
        logits_NK[name] = lanes[name].recv()
    blocks: dict[str, list[Array]] = {name: [] for name in CONTESTANTS}
    for turn in range(arguments.rounds):
        for name in CONTESTANTS if turn % 2 == 0 else reversed(CONTESTANTS):
            lanes[name].send(arguments.block_s)
            blocks[name].append(lanes[name].recv())
    for process in processes:
        process.kill()
    return blocks, logits_NK


def run_lane(lane: Connection, name: str, arguments: argparse.Namespace) -> None:
    """Build one contestant, send its logits, then answer every number of seconds with latencies in ms at batch 1."""
    warnings.simplefilter("ignore")
    images = images_of(arguments)
    runner = build(name, arguments)
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


def print_table(blocks: dict[str, list[Array]], logits_NK: dict[str, Array], arguments: argparse.Namespace) -> None:
    """One line for each contestant."""
    cpu = current_cpu()
    print(
        f"{arguments.model}, {arguments.engine}, batch 1, {arguments.image_size} px, {arguments.threads} threads, "
        f"{arguments.rounds} rounds, torch {version_of('torch')}, {cpu.model} ({cpu.isa})"
    )
    print(f"{'':28}{'p50 ms':>8}{'min ms':>8}{'fp32 / it':>22}{'it / ours':>22}{'SQNR dB':>9}{'top-1':>8}")
    for name in CONTESTANTS:
        samples = np.concatenate(blocks[name])
        print(
            f"{name:28}{np.median(samples):8.2f}{samples.min():8.2f}"
            f"{ratio(blocks[OURS_FP32], blocks[name]):>22}{ratio(blocks[name], blocks[OURS]):>22}"
            f"{stats.sqnr_db(logits_NK[EAGER], logits_NK[name]):9.1f}"
            f"{stats.agreement(logits_NK[EAGER], logits_NK[name]):8.1%}"
        )


def ratio(numerator: list[Array], denominator: list[Array]) -> str:
    """Median of paired ratios with its 95 % interval."""
    found = stats.paired_speedup(numerator, denominator, confidence=0.95, seed=0)
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    main()
