"""Our engines against what one would pick instead on a CPU, in fp32 and int8, side by side.

    python benchmarks/int8_cpu.py --model resnet18
    python benchmarks/int8_cpu.py --model mobilenet_v3_small --batch 1 32 --only onnxruntime quantize_static
    python benchmarks/int8_cpu.py --onnx net.onnx --image-size 160

All contestants come from one network and one set of calibration images, and run the same images; `peers.py` lists
them. Each builds and runs its model in a process of its own; in every round each has one block of runs, in turn, while
the others sleep. Ratios are paired by round: median, with a bootstrap interval. What is not installed is left out, with
the reason. No more are alive at a time than fit the memory, see `turns.py`.

Beside them a product of two matrices runs, in float32 by PyTorch and on codes by ONNX Runtime: what the CPU can do, of
which the last column gives the share that a contestant reaches.
"""

import argparse
import tempfile
import time
from collections.abc import Collection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from contestants import Build, Task, built, ours
from peers import PEERS, REFERENCE, session_runner
from turns import Blocks, Turns, milliseconds, ratio, relative

from bitsweep import stats
from bitsweep.config.backend import InferenceFn
from bitsweep.models.efficientnet_lite import EfficientNetLite0
from bitsweep.models.onnx import OnnxModel
from bitsweep.results import Split, Splits
from bitsweep.runtime.environment import current_cpu, version_of

if TYPE_CHECKING:
    import torch

MODELS = (
    "alexnet", "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_lite0",
)  # fmt: skip
#: Images to calibrate on, and to compare logits on.
IMAGES = 32
HALF = (0.5, 0.5, 0.5)
#: Share of the memory that is free in the beginning which the contestants may take together.
MEMORY_SHARE = 0.6


def main() -> None:
    """Time the contestants in turn, and print a table for each batch size."""
    arguments = parse_arguments()
    for batch in arguments.batch:
        named = contestants(arguments)
        turns = Turns(memory_bytes=arguments.memory_gb * 1e9, leaders=leaders)
        with tempfile.TemporaryDirectory() as scratch:
            turns.race(
                named, run_lane, arguments, batch, Path(scratch), rounds=arguments.rounds, block_s=arguments.block_s
            )
        print_table(turns, arguments, batch)
        for name, reason in turns.missing.items():
            print(f"left out: {name}: {reason}")


def parse_arguments() -> argparse.Namespace:
    """What to time, and for how long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--model", choices=MODELS, default="resnet18")
    network.add_argument("--onnx", type=Path, help="a float network in an ONNX file, instead of --model")
    parser.add_argument("--weights", type=Path, help="state_dict of the network; random weights without it")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block-s", type=float, default=0.3, help="seconds of a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of those that race")
    free_gb = round(psutil.virtual_memory().available * MEMORY_SHARE / 1e9, 1)
    parser.add_argument("--memory-gb", type=float, default=free_gb, help="for the contestants that are alive together")
    return parser.parse_args()


# --------------------------------------------------------------------------- the contestants


def contestants(arguments: argparse.Namespace) -> dict[str, Build]:
    """Name -> how it is built: what all are compared with, then the other peers, then ours."""
    named = {REFERENCE: PEERS[REFERENCE]} | LIMITS | PEERS | ours()
    chosen = {name for name in named if not arguments.only or any(part in name for part in arguments.only)}
    return {name: build for name, build in named.items() if name in chosen | {REFERENCE, *LIMITS}}


def network_of(arguments: argparse.Namespace) -> "torch.nn.Module":
    """The network that all contestants start from."""
    import torch
    import torchvision

    torch.manual_seed(arguments.seed)
    network: torch.nn.Module
    if arguments.onnx:
        network = OnnxModel(name="onnx", file=str(arguments.onnx), image_size=arguments.image_size).build(
            arguments.classes
        )
    elif arguments.model == "efficientnet_lite0":
        network = EfficientNetLite0(name=arguments.model, image_size=arguments.image_size).build(arguments.classes)
    else:
        network = torchvision.models.get_model(arguments.model, num_classes=arguments.classes)
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


def leaders(blocks: Blocks, names: Collection[str]) -> set[str]:
    """What all are compared with, and the best of ours and of the peers, of all and in int8."""
    kept = {REFERENCE, *LIMITS}
    racing = [name for name in names if name not in kept]
    for kind in (" int8", ""):
        for own in (True, False):
            rivals = [name for name in racing if name.endswith(kind) and name.startswith("bitsweep") == own]
            kept |= set(sorted(rivals, key=lambda name: relative(blocks[name], blocks[REFERENCE]))[:1])
    return kept


def run_lane(lane: Connection, name: str, arguments: argparse.Namespace, batch: int, scratch: Path) -> None:
    """Build one contestant, send its logits, then answer every number of seconds with latencies in ms."""
    folder = scratch / name.replace(" ", "-")
    folder.mkdir()
    task = Task(
        network=network_of(arguments), splits=splits_of(arguments),
        input_shape=(3, arguments.image_size, arguments.image_size), batch=batch,
        threads=arguments.threads, folder=folder,
    )  # fmt: skip
    infer, images = built(contestants(arguments)[name], task), task.images
    if isinstance(infer, str):
        lane.send(infer)
        return
    lane.send(infer(images))
    repeated = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
    while True:
        seconds = lane.recv()
        samples: list[float] = []
        for _ in range(3):
            infer(repeated)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples) < 3:
            start = time.perf_counter_ns()
            infer(repeated)
            samples.append((time.perf_counter_ns() - start) / 1e6)
        lane.send(np.array(samples))


def print_table(turns: Turns, arguments: argparse.Namespace, batch: int) -> None:
    """One line for each contestant, and the goals: our best by the best peer's."""
    cpu, blocks, logits_NK = current_cpu(), turns.blocks, turns.answers
    packages = [f"{each} {version_of(each)}" for each in ("torch", "onnxruntime", "openvino", "nncf")]
    print(
        f"{arguments.onnx or arguments.model}, batch {batch}, {arguments.image_size} px, {arguments.threads} threads, "
        f"{arguments.rounds} rounds in {len(turns.groups)} group(s); {', '.join(packages)}; {cpu.model} ({cpu.isa})"
    )
    limits = {name.split()[-1]: SIDE**3 / milliseconds(blocks[name]) for name in LIMITS if name in blocks}
    print(", ".join(f"products of matrices in {kind}: {each / 1e6:.0f} GMAC/s" for kind, each in limits.items()))
    macs = batch * macs_of(arguments)
    print(f"{'':32}{'p50 ms':>9}{REFERENCE + ' / it':>22}{'SQNR dB':>9}{'top-1':>8}{'of limit':>10}")
    racing = [name for name in blocks if name not in LIMITS]
    for name in sorted(racing, key=lambda name: relative(blocks[name], blocks[REFERENCE])):
        sqnr = stats.sqnr_db(logits_NK[REFERENCE], logits_NK[name]) if name != REFERENCE else float("inf")
        print(
            f"{name:32}{milliseconds(blocks[name]):9.2f}{ratio(blocks[REFERENCE], blocks[name]):>22}{sqnr:9.1f}"
            f"{stats.agreement(logits_NK[REFERENCE], logits_NK[name]):8.1%}"
            f"{_share(macs / milliseconds(blocks[name]), limits.get(name.split()[-1])):>10}"
        )
    last = [name for name in turns.groups[-1] if name not in LIMITS]
    for kind in (" int8", ""):
        ours, theirs = (
            min(
                (name for name in last if name.endswith(kind) and name.startswith("bitsweep") == own),
                key=lambda name: relative(blocks[name], blocks[REFERENCE]),
                default="",
            )
            for own in (True, False)
        )
        if ours and theirs:
            print(f"best{kind or ' of all'}: {ours} is {ratio(blocks[theirs], blocks[ours])} times as fast as {theirs}")


def _share(speed: float, limit: float | None) -> str:
    """In percent of the limit of its arithmetic, where that was measured."""
    return f"{speed / limit:.0%}" if limit else ""


def macs_of(arguments: argparse.Namespace) -> int:
    """Multiply-accumulates of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network_of(arguments)(torch.zeros(1, 3, arguments.image_size, arguments.image_size))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
