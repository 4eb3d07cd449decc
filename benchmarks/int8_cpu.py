"""Our engines against what one would pick instead on a CPU, in fp32 and int8, side by side.

    python benchmarks/int8_cpu.py --model resnet18
    python benchmarks/int8_cpu.py --model mobilenet_v3_small --batch 32 --only onnxruntime quantize_static

All contestants come from one network and one set of calibration images, and run the same images. Each builds and runs
its model in a process of its own; in every round each has one block of runs, in turn, while the others sleep. Ratios
are paired by round: median, with a bootstrap interval. What is not installed is left out, with the reason. Peers:

    torch                          eager mode, channels last
    torch inductor                 torch.compile with freezing
    torch fx fbgemm, onednn, ...   FX graph mode quantization, its default settings for the engine
    torchao inductor               PT2E with the X86 inductor quantizer, compiled with freezing
    onnxruntime                    the file of torch.onnx.export
    quantize_static                ONNX Runtime's own: QDQ, u8 activations, s8 weights per channel
    openvino                       the model that openvino makes of the same file
    nncf                           its quantize(), default settings, on OpenVINO

Beside them a product of two matrices runs, in float32 by PyTorch and on codes by ONNX Runtime: what the CPU can do, of
which the last column gives the share that a contestant reaches.
"""

import argparse
import contextlib
import copy
import importlib.util
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsweep import stats
from bitsweep.config.backend import InferenceFn
from bitsweep.config.precision import Grid, Precision
from bitsweep.results import Array, Split, Splits
from bitsweep.runtime.environment import current_cpu, version_of

if TYPE_CHECKING:
    import torch

MODELS = ("alexnet", "resnet18", "mobilenet_v3_small", "efficientnet_b0")
CONF = Path(__file__).parents[1] / "conf"
#: Images to calibrate on, and to compare logits on.
IMAGES = 32
HALF = (0.5, 0.5, 0.5)
REFERENCE = "torch fp32"


def main() -> None:
    """Let the contestants race, and print a table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        blocks, logits_NK, missing = measure_latency(contestants(arguments), arguments, Path(scratch))
    print_table(blocks, logits_NK, arguments)
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")


def parse_arguments() -> argparse.Namespace:
    """What to race, and for how long."""
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

#: Builds what a contestant runs, from the arguments, the calibration images [N, 3, H, W] and an empty folder.
Build = Callable[[argparse.Namespace, Array, Path], InferenceFn]


def contestants(arguments: argparse.Namespace) -> dict[str, Build]:
    """Name -> how it is built: peers, then ours."""
    named = dict(PEERS)
    for file in sorted((CONF / "backend").glob("*.yaml")):
        for precision in ("fp32", "int8"):
            named[f"bitsweep {file.stem} {precision}"] = Ours(file.stem, precision)
    chosen = {name for name in named if not arguments.only or any(part in name for part in arguments.only)}
    return {name: build for name, build in named.items() if name in chosen | {REFERENCE}} | LIMITS


class Ours:
    """An engine of this project with ``method=ptq`` (none for fp32) and its default settings."""

    def __init__(self, backend: str, precision: str) -> None:
        self.backend, self.precision = backend, precision

    def __call__(self, arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        from bitsweep.methods.none import NoCompression
        from bitsweep.methods.ptq import PostTrainingQuantization

        backend = instantiate(OmegaConf.load(CONF / "backend" / f"{self.backend}.yaml"), _convert_="all")
        precision: Precision = instantiate(
            OmegaConf.load(CONF / "precision" / f"{self.precision}.yaml"), _convert_="all"
        )
        if version_of(backend.package) == "absent":
            raise LeftOut(f"{backend.package} is not installed")
        if not backend.timed or (reason := backend.unsupported(precision)):
            raise LeftOut(reason if backend.timed else "it simulates")
        scheme = backend.scheme(precision, current_cpu())
        method = PostTrainingQuantization(name="ptq", calibration_images=IMAGES)
        compression = (method if isinstance(scheme.weights, Grid) else NoCompression(name="none")).compress(
            network_of(arguments), splits_of(arguments), image_size=arguments.image_size, scheme=scheme, seed=0
        )
        backend.lower(compression.program, folder)
        infer: InferenceFn = backend.load(folder, threads=arguments.threads)
        return infer


class LeftOut(Exception):
    """Why a contestant does not take part."""


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


def eager(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """PyTorch itself."""
    import torch

    return torch_runner(network_of(arguments).to(memory_format=torch.channels_last))


def inductor(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """torch.compile."""
    import torch

    torch._inductor.config.freezing = True
    return torch_runner(torch.compile(network_of(arguments).to(memory_format=torch.channels_last)))


def fx(engine: str) -> Build:
    """FX graph mode quantization for an engine."""

    def build(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
        import torch
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = engine
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        prepared = prepare_fx(network_of(arguments), get_default_qconfig_mapping(engine), (batch[:1],))
        with torch.inference_mode():
            prepared(batch)
            quantized = convert_fx(prepared)
            traced = torch.jit.freeze(torch.jit.trace(quantized, batch[:1], check_trace=False))
        return torch_runner(traced)

    return build


def torchao_inductor(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """torchao's PT2E flow, compiled."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    network = network_of(arguments).to(memory_format=torch.channels_last)
    exported = torch.export.export(network, (batch[: arguments.batch],)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    with torch.inference_mode():
        for start in range(0, IMAGES, arguments.batch):
            prepared(batch[start : start + arguments.batch])
        torch._inductor.config.freezing = True
        return torch_runner(torch.compile(convert_pt2e(prepared)), batch=arguments.batch)


def torch_runner(network: "Callable[[torch.Tensor], torch.Tensor]", *, batch: int = 0) -> InferenceFn:
    """A network as a function of images; of that many at a time, if it takes no others."""
    import torch

    def run(images: Array) -> Array:
        given = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            parts = given.split(batch) if batch else [given]
            return np.concatenate([network(part).numpy() for part in parts])

    return run


def onnx_file(arguments: argparse.Namespace, images: Array, folder: Path) -> Path:
    """What torch.onnx.export makes of the network."""
    import torch

    torch.onnx.export(
        network_of(arguments), (torch.from_numpy(images[:1]),), folder / "plain.onnx", dynamo=True,
        external_data=False, input_names=["images"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    return folder / "plain.onnx"


def onnxruntime(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """ONNX Runtime in fp32."""
    return session_runner(onnx_file(arguments, images, folder), arguments)


def session_runner(file: Path, arguments: argparse.Namespace) -> InferenceFn:
    """A file as a function, in a session with ONNX Runtime's defaults."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.log_severity_level = 3
    # Threads that spin after a run would slow the contestant whose turn is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def quantize_static(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """ONNX Runtime's own static quantization, as its documentation recommends it for x86."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Array]] = iter([{"images": image[None]} for image in images])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    prepared, target = folder / "prepared.onnx", folder / "model.onnx"
    quant_pre_process(onnx_file(arguments, images, folder), prepared)
    quantization.quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=current_cpu().saturates_u8s8,
    )
    return session_runner(target, arguments)


def openvino(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """OpenVINO in fp32."""
    return compiled_runner(openvino_model(arguments, images, folder), arguments)


def nncf(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """NNCF's post-training quantization on OpenVINO."""
    needed("nncf")
    import nncf

    model = openvino_model(arguments, images, folder)
    dataset = nncf.Dataset([image[None] for image in images])
    return compiled_runner(nncf.quantize(model, dataset, subset_size=IMAGES), arguments)


def openvino_model(arguments: argparse.Namespace, images: Array, folder: Path) -> Any:
    """The network as OpenVINO reads it."""
    needed("openvino")
    import openvino

    return openvino.Core().read_model(onnx_file(arguments, images, folder))


def compiled_runner(model: Any, arguments: argparse.Namespace) -> InferenceFn:
    """A model as a function of batches of the size that is raced; larger ones are run in parts."""
    import openvino

    model.reshape([arguments.batch, *model.input(0).get_partial_shape()[1:]])
    settings = {"INFERENCE_NUM_THREADS": arguments.threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Array) -> Array:
        parts = [images[start : start + arguments.batch] for start in range(0, len(images), arguments.batch)]
        return np.concatenate([request.infer([part])[0].copy() for part in parts])

    return run


def product(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
    """Square matrices in float32."""
    import torch

    left, right = torch.randn(2, SIDE, SIDE).unbind()
    return lambda images: torch.mm(left, right)[:1].numpy()


def integer_product(arguments: argparse.Namespace, images: Array, folder: Path) -> InferenceFn:
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
    onnx.save(model, folder / "product.onnx")
    left = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    session = session_runner(folder / "product.onnx", arguments)
    return lambda images: session(left)[:1]


def needed(package: str) -> None:
    """Leave a contestant out whose package is not there."""
    if importlib.util.find_spec(package) is None:
        raise LeftOut(f"{package} is not installed")


PEERS: dict[str, Build] = {
    REFERENCE: eager,
    "torch inductor fp32": inductor,
    "torch fx fbgemm int8": fx("fbgemm"),
    "torch fx onednn int8": fx("onednn"),
    "torch fx qnnpack int8": fx("qnnpack"),
    "torchao inductor int8": torchao_inductor,
    "onnxruntime fp32": onnxruntime,
    "quantize_static int8": quantize_static,
    "openvino fp32": openvino,
    "nncf int8": nncf,
}


#: Side of the matrices whose product tells what the CPU can do.
SIDE = 768
LIMITS: dict[str, Build] = {"limit fp32": product, "limit int8": integer_product}


# --------------------------------------------------------------------------- the race


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
    import torch

    from bitsweep.data.preprocessing import preprocess

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    splits = splits_of(arguments)
    images = preprocess(splits.test.images, image_size=arguments.image_size, mean_C=HALF, std_C=HALF).numpy()
    folder = scratch / name.replace(" ", "-")
    folder.mkdir()
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            infer = contestants(arguments)[name](copy.deepcopy(arguments), images, folder)
            logits_NK = infer(images)
    except LeftOut as reason:
        lane.send(str(reason))
        return
    except Exception as error:
        lane.send(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return
    lane.send(np.asarray(logits_NK))
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
