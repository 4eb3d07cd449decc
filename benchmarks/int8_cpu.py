"""Our engines against what one would pick instead on a CPU, in fp32 and int8, side by side.

    python benchmarks/int8_cpu.py --model resnet18
    python benchmarks/int8_cpu.py --model mobilenet_v3_small --batch 32 --only onnxruntime quantize_static

All contestants come from one network and one set of calibration images, and run the same images; `contestants.py` lists
them. Each builds and runs its model in a process of its own; in every round each has one block of runs, in turn, while
the others sleep. Ratios are paired by round: median, with a bootstrap interval. What is not installed is left out, with
the reason.

Beside them a product of two matrices runs, in float32 by PyTorch and on codes by ONNX Runtime: what the CPU can do, of
which the last column gives the share that a contestant reaches.
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from contestants import PEERS, REFERENCE, Build, Task, built, ours, session_runner

from bitsweep import stats
from bitsweep.config.backend import InferenceFn
from bitsweep.results import Array, Split, Splits
from bitsweep.runtime.environment import current_cpu, version_of

if TYPE_CHECKING:
    import torch

MODELS = ("alexnet", "resnet18", "mobilenet_v3_small", "efficientnet_b0")
#: Images to calibrate on, and to compare logits on.
IMAGES = 32
HALF = (0.5, 0.5, 0.5)


def main() -> None:
    """Time the contestants in turn, and print a table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        blocks, logits_NK, missing = measure_latency(contestants(arguments), arguments, Path(scratch))
    print_table(blocks, logits_NK, arguments)
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")


def parse_arguments() -> argparse.Namespace:
    """What to time, and for how long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--weights", type=Path, help="state_dict of the network; random weights without it")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block-s", type=float, default=0.3, help="seconds of a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of those that race")
    return parser.parse_args()


# --------------------------------------------------------------------------- the contestants


def contestants(arguments: argparse.Namespace) -> dict[str, Build]:
    """Name -> how it is built: peers, then ours."""
    named = PEERS | ours()
    chosen = {name for name in named if not arguments.only or any(part in name for part in arguments.only)}
    return {name: build for name, build in named.items() if name in chosen | {REFERENCE}} | LIMITS


def network_of(arguments: argparse.Namespace) -> "torch.nn.Module":
    """The network that all contestants start from."""
    import torch
    import torchvision

    torch.manual_seed(arguments.seed)
    network: torch.nn.Module = torchvision.models.get_model(arguments.model, num_classes=arguments.classes)
    if arguments.weights:
        network.load_state_dict(torch.load(arguments.weights, map_location="cpu", weights_only=True))
    return network.eval()


def splits_of(arguments: argparse.Namespace) -> Splits:
    """Images of random coloured tiles; speed does not depend on what they show."""
    size = arguments.image_size
    tiles = np.random.default_rng(arguments.seed).integers(0, 256, (IMAGES, size // 8, size // 8, 3), dtype=np.uint8)
    split = Split(images=np.kron(tiles, np.ones((1, 8, 8, 1), np.uint8)), labels=np.zeros(IMAGES, np.int64))
    return Splits(train=split, val=split, test=split, classes=("any",), mean_C=HALF, std_C=HALF, fingerprint="")


def product(task: Task) -> InferenceFn:
    """Square matrices in float32."""
    import torch

    left, right = torch.randn(2, SIDE, SIDE).unbind()
    return lambda images: torch.mm(left, right)[:1].numpy()


def integer_product(task: Task) -> InferenceFn:
    """Square matrices of u8 by s8 codes, small enough that nothing saturates."""
    import onnx
    from onnx import TensorProto, helper

    right = np.random.default_rng(0).integers(-64, 64, (SIDE, SIDE), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["images", "right"], ["logits"])],
        "product",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, (SIDE, SIDE))],
        [helper.make_tensor_value_info("logits", TensorProto.INT32, (SIDE, SIDE))],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, task.folder / "product.onnx")
    left = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    session = session_runner(task.folder / "product.onnx", task)
    return lambda images: session(left)[:1]


#: Side of the matrices whose product shows what the CPU can do.
SIDE = 768
LIMITS: dict[str, Build] = {"limit fp32": product, "limit int8": integer_product}


# --------------------------------------------------------------------------- timing in turn


def measure_latency(
    building: dict[str, Build], arguments: argparse.Namespace, scratch: Path
) -> tuple[dict[str, list[Array]], dict[str, Array], dict[str, str]]:
    """Run every contestant in a process of its own, block by block in turn.

    Returns:
        name -> latencies in ms of each block; name -> logits [N, K]; name -> why it did not take part.
    """
    context = multiprocessing.get_context("spawn")
    lanes: dict[str, Connection] = {}
    logits_NK, missing, processes = {}, {}, []
    for name in building:
        lane, theirs = context.Pipe()
        process = context.Process(target=run_lane, args=(theirs, name, arguments, scratch), daemon=True)
        process.start()
        processes.append(process)
        answer = lane.recv()  # one after the other: compilers take all the CPUs there are
        if isinstance(answer, str):
            missing[name] = answer
        else:
            lanes[name], logits_NK[name] = lane, answer
    blocks: dict[str, list[Array]] = {name: [] for name in lanes}
    for turn in range(arguments.rounds):
        for name in list(lanes) if turn % 2 == 0 else reversed(list(lanes)):
            lanes[name].send(arguments.block_s)
            blocks[name].append(lanes[name].recv())
    for process in processes:
        process.kill()
    return blocks, logits_NK, missing


def run_lane(lane: Connection, name: str, arguments: argparse.Namespace, scratch: Path) -> None:
    """Build one contestant, send its logits, then answer every number of seconds with latencies in ms."""
    folder = scratch / name.replace(" ", "-")
    folder.mkdir()
    task = Task(
        network=network_of(arguments), splits=splits_of(arguments),
        input_shape=(3, arguments.image_size, arguments.image_size), batch=arguments.batch,
        threads=arguments.threads, folder=folder,
    )  # fmt: skip
    infer, images = built(contestants(arguments)[name], task), task.images
    if isinstance(infer, str):
        lane.send(infer)
        return
    lane.send(infer(images))
    batch = np.ascontiguousarray(np.resize(images, (arguments.batch, *images.shape[1:])))
    while True:
        seconds = lane.recv()
        samples: list[float] = []
        for _ in range(3):
            infer(batch)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples) < 3:
            start = time.perf_counter_ns()
            infer(batch)
            samples.append((time.perf_counter_ns() - start) / 1e6)
        lane.send(np.array(samples))


def print_table(blocks: dict[str, list[Array]], logits_NK: dict[str, Array], arguments: argparse.Namespace) -> None:
    """One line for each contestant, and the goals: our best by the best peer's."""
    cpu = current_cpu()
    packages = [f"{each} {version_of(each)}" for each in ("torch", "onnxruntime", "openvino", "nncf")]
    print(
        f"{arguments.model}, batch {arguments.batch}, {arguments.image_size} px, {arguments.threads} threads, "
        f"{arguments.rounds} rounds; {', '.join(packages)}; {cpu.model} ({cpu.isa})"
    )
    limits = {name.split()[-1]: SIDE**3 / milliseconds(blocks.pop(name)) for name in LIMITS if name in blocks}
    print(", ".join(f"products of matrices in {kind}: {each / 1e6:.0f} GMAC/s" for kind, each in limits.items()))
    macs = arguments.batch * macs_of(arguments)
    print(f"{'':32}{'p50 ms':>9}{REFERENCE + ' / it':>22}{'SQNR dB':>9}{'top-1':>8}{'of limit':>10}")
    for name, each in sorted(blocks.items(), key=lambda item: milliseconds(item[1])):
        sqnr = stats.sqnr_db(logits_NK[REFERENCE], logits_NK[name]) if name != REFERENCE else float("inf")
        print(
            f"{name:32}{milliseconds(each):9.2f}{ratio(blocks[REFERENCE], each):>22}{sqnr:9.1f}"
            f"{stats.agreement(logits_NK[REFERENCE], logits_NK[name]):8.1%}"
            f"{macs / milliseconds(each) / limits[name.split()[-1]]:10.0%}"
        )
    for kind in (" int8", ""):
        ours, theirs = (
            min(names, key=lambda name: milliseconds(blocks[name]), default="")
            for names in (
                [name for name in blocks if name.endswith(kind) and name.startswith("bitsweep")],
                [name for name in blocks if name.endswith(kind) and not name.startswith("bitsweep")],
            )
        )
        if ours and theirs:
            print(f"best{kind or ' of all'}: {ours} is {ratio(blocks[theirs], blocks[ours])} times as fast as {theirs}")


def milliseconds(blocks: list[Array]) -> float:
    """Median latency."""
    return float(np.median(np.concatenate(blocks)))


def macs_of(arguments: argparse.Namespace) -> int:
    """Multiply-accumulates of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network_of(arguments)(torch.zeros(1, 3, arguments.image_size, arguments.image_size))
    return counter.get_total_flops() // 2


def ratio(numerator: list[Array], denominator: list[Array]) -> str:
    """Median of paired ratios with its 95 % interval."""
    found = stats.paired_speedup(numerator, denominator, confidence=0.95, seed=0)
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    main()
