"""TensorRT for RTX on an NVIDIA GPU: engines are made on any machine, and run where the GPU is that they are for."""

import json
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from bitsweep.config.backend import Backend, InferenceFn, OnDevice
from bitsweep.config.configurable import Count, configurable
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, storage_only
from bitsweep.errors import CompressionError, damaged, require_images
from bitsweep.results import Array, OpProfile
from bitsweep.runtime.environment import Cpu, current_gpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ENGINE, KERNELS = "model.engine", "kernels.json"
#: How the builder's log describes a layer of an engine, and an input tensor of the layer.
_LAYER = re.compile(
    r"^Name: (.*), LayerType: (\w+), Inputs: \[(.*)\], Constants: \[(.*)\], Outputs: \[.*$", re.MULTILINE
)
_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """An engine on the GPU.

    Attributes:
        queue: lets it run a batch of so many images, in its stream.
        images, logits: addresses of its input and its output.
        shape: C, H and W of the images.
    """

    queue: Callable[[int], None]
    stream: Any
    images: int
    logits: int
    shape: tuple[int, ...]
    classes: int


@final
@configurable
class TensorRt(Backend):
    """TensorRT's kernels for one kind of GPU. The artifact is an engine; loading and running it imports no PyTorch.

    Networks are strongly typed: every operation has the type that the program gives it. Integer layers take symmetric
    signed activations.

    Attributes:
        target: architecture of the GPU: ``sm80``, ``sm86`` (Ampere), ``sm89`` (Ada), ``sm120``, ``sm121`` (Blackwell).
            Turing lacks float32 matrix products, and so the fp32 engine that a cell is compared with.
        max_batch: images that the engine takes at once; it is optimized for one.
        tf32: whether float32 layers may round what they multiply to 10 bits of mantissa.
    """

    artifact: ClassVar[str] = ENGINE
    unloaded: ClassVar[tuple[str, ...]] = (KERNELS,)
    package: ClassVar[str] = "tensorrt-rtx"
    extra: ClassVar[str] = "tensorrt"

    target: Literal["sm80", "sm86", "sm89", "sm120", "sm121"] = "sm89"
    max_batch: Count = 64
    tf32: bool = False

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply codes that fit in a byte, on grids around 0."""
        if reason := beyond_byte_kernels(precision, self.name):
            return reason
        if isinstance(precision.weights, Grid) and not precision.weights.symmetric:
            return f"TensorRT takes no {precision.weights} weights: use backend=onnxruntime"
        return None

    @property
    def on_gpu(self) -> bool:
        """Always."""
        return True

    def cannot_run(self) -> str | None:
        """An engine runs on GPUs of its target's architecture only."""
        gpu = current_gpu()
        if gpu is None:
            return f"there is no NVIDIA GPU here to run an engine for {self.target} on"
        if gpu.architecture != self.target:
            return f"backend.target={self.target}: the GPU here, {gpu.model}, is {gpu.architecture}"
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Half precision is computed by the GPU; activations become signed and symmetric."""
        weights, activations = precision.weights, precision.activations
        if not isinstance(weights, Grid) or not isinstance(activations, Grid):
            return storage_only(precision, computes=True, where=self.target)
        signed = replace(activations, signed=True, symmetric=True)
        why = "" if signed == activations else f"TensorRT takes no zero points: activations are {signed}"
        return Scheme(weights=weights, activations=signed, arithmetic="integer", why=why)

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Build the engine for the target, and record its kernels: the engine itself lists them on such a GPU only."""
        from bitsweep.lowering.onnx.export import export_onnx

        trt = self._library()
        listener = _listener(trt)
        with tempfile.TemporaryDirectory() as scratch:
            export_onnx(program, Path(scratch) / "model.onnx", codes_of_biases=False)
            onnx = (Path(scratch) / "model.onnx").read_bytes()
        builder = trt.Builder(listener)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        engine = None
        if trt.OnnxParser(network, listener).parse(onnx):
            engine = builder.build_serialized_network(network, self._config(trt, builder, network))
        if engine is None:
            raise CompressionError(f"TensorRT does not take the program: {listener.errors[0]}")
        (folder / ENGINE).write_bytes(engine)
        kernels = profile_of(listener.layers, _products(trt, network))
        (folder / KERNELS).write_text(json.dumps([asdict(kernel) for kernel in kernels]))

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load the engine; each run copies images to the GPU and logits back, which its latency contains."""
        import numpy as np
        from cuda.bindings import runtime as cuda

        engine = self._open(folder)

        def run_part(images: Array, logits: Array) -> None:
            to, back = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            _done(cuda.cudaMemcpyAsync(engine.images, images.ctypes.data, images.nbytes, to, engine.stream))
            engine.queue(len(images))
            _done(cuda.cudaMemcpyAsync(logits.ctypes.data, engine.logits, logits.nbytes, back, engine.stream))
            _done(cuda.cudaStreamSynchronize(engine.stream))

        def run(images: Array) -> Array:
            require_images(images, engine.shape)
            images, logits = np.ascontiguousarray(images), np.empty((len(images), engine.classes), np.float32)
            for start in range(0, len(images), self.max_batch):
                part = slice(start, start + self.max_batch)
                run_part(images[part], logits[part])
            return logits

        return run

    def load_on_device(self, folder: Path, images: Array, *, threads: int) -> OnDevice:
        """Load the engine; its input is whatever the memory holds, which takes as long as images do."""
        engine = self._open(folder)
        parts = [len(images[start : start + self.max_batch]) for start in range(0, len(images), self.max_batch)]

        def queue() -> None:
            for part in parts:
                engine.queue(part)

        return OnDevice(queue=queue, stream=int(engine.stream))

    def _open(self, folder: Path) -> _Engine:
        from cuda.bindings import runtime as cuda

        from bitsweep.lowering.onnx.export import INPUT, OUTPUT

        trt = self._library()
        listener = _listener(trt)
        path = folder / ENGINE
        engine = trt.Runtime(listener).deserialize_cuda_engine(path.read_bytes()) if path.exists() else None
        if engine is None:
            reason = listener.errors[0] if listener.errors else "no such file"
            raise damaged(path, reason)
        context, stream = engine.create_execution_context(), _done(cuda.cudaStreamCreate())
        shape, classes = tuple(engine.get_tensor_shape(INPUT))[1:], tuple(engine.get_tensor_shape(OUTPUT))[1]
        addresses = {
            name: _done(cuda.cudaMalloc(4 * self.max_batch * size))
            for name, size in ((INPUT, math.prod(shape)), (OUTPUT, classes))
        }
        for name, address in addresses.items():
            context.set_tensor_address(name, address)

        def queue(batch: int) -> None:
            context.set_input_shape(INPUT, (batch, *shape))
            if not context.execute_async_v3(int(stream)):
                raise RuntimeError(f"TensorRT did not run the engine: {listener.errors[-1]}")

        return _Engine(
            queue=queue, stream=stream, images=addresses[INPUT], logits=addresses[OUTPUT], shape=shape, classes=classes
        )

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """The layers of the engine, as they were recorded when it was built."""
        noted = [OpProfile(**each) for each in json.loads((folder / KERNELS).read_text())]
        return tuple(replace(kernel, macs=len(images) * kernel.macs) for kernel in noted)

    def _library(self) -> Any:
        with self.importing():
            import tensorrt_rtx
        return tensorrt_rtx

    def _config(self, trt: Any, builder: Any, network: Any) -> Any:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, self.target.upper()), 0)
        # Else the builder's log names no types.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if not self.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        images, profile = network.get_input(0), builder.create_optimization_profile()
        smallest, largest = ((batch, *images.shape[1:]) for batch in (1, self.max_batch))
        profile.set_shape(images.name, smallest, smallest, largest)
        config.add_optimization_profile(profile)
        return config


def profile_of(layers: str, products: dict[str, int]) -> list[OpProfile]:
    """The kernels of an engine.

    Args:
        layers: how the builder's log describes them, a line each.
        products: operation of the network -> its multiply-accumulates for one image.
    """
    found = [(match, _TENSOR.findall(match[3]), _TENSOR.findall(match[4])) for match in _LAYER.finditer(layers)]
    largest = [max((_elements(sizes) for sizes, _ in constants), default=0) for _, _, constants in found]
    macs = [0] * len(found)
    for operation, count in products.items():
        # Several layers name an operation that they share in; the one with the weights multiplies by them.
        sharing = [index for index, (match, _, _) in enumerate(found) if operation in match[0]]
        macs[max(sharing, key=lambda index: largest[index])] += count
    return [
        OpProfile(name=match[1], op=f"{match[2]} {_type(read)}".strip(), macs=count, integer=_type(read) == "Int8")
        for (match, read, _), count in zip(found, macs, strict=True)
    ]


def _type(tensors: list[tuple[str, str]]) -> str:
    """Type of the first input tensor of a layer; empty where it has none."""
    return tensors[0][1] if tensors else ""


def _elements(sizes: str) -> int:
    return math.prod(map(int, sizes.split(","))) if sizes else 1


def _products(trt: Any, network: Any) -> dict[str, int]:
    """Operations of a network that multiply, as layers of an engine name them, with their products for one image."""
    found = {}
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer
            values, channels = layer.get_output(0), layer.get_input(0).shape[1] // layer.num_groups
            each = channels * math.prod(layer.kernel_size_nd)
        elif layer.type == trt.LayerType.DECONVOLUTION:
            layer.__class__ = trt.IDeconvolutionLayer
            values, channels = layer.get_input(0), layer.num_output_maps // layer.num_groups
            each = channels * math.prod(layer.kernel_size_nd)
        elif layer.type == trt.LayerType.MATRIX_MULTIPLY:
            values, each = layer.get_output(0), layer.get_input(0).shape[-1]
        else:
            continue
        found[layer.metadata] = math.prod(values.shape[1:]) * each
    return found


def _listener(trt: Any) -> Any:
    """A logger that keeps errors, and the layers of the engine that is built."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

    return Listener()


def _done(answer: tuple[Any, ...]) -> Any:
    """What a call of CUDA gave, its status apart."""
    status, *values = answer
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
