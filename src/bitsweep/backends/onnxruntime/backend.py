"""ONNX Runtime: float and 8-bit integer kernels for x86 and ARM, and float kernels for NVIDIA GPUs."""

import json
import math
import re
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from bitsweep.config.backend import CpuOrGpu, InferenceFn, OnDevice
from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, reduce_range, storage_only
from bitsweep.errors import CompressionError, ConfigError, DataError, MissingPackage, damaged, first_line
from bitsweep.results import Array, OpProfile
from bitsweep.runtime import gpu
from bitsweep.runtime.batches import in_batches_of
from bitsweep.runtime.environment import Cpu, Gpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NO_FALLBACK = "session.disable_cpu_ep_fallback"
BYTE_TYPES = {"uint8", "int8"}
#: Runs of a batch whose median is the time of a kernel.
TIMED_RUNS = 9
#: Kernels that convolve -> which of their inputs are the weights.
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
PRODUCTS = {
    "Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
}  # fmt: skip


@final
@configurable
class OnnxRuntime(CpuOrGpu):
    """ONNX Runtime's own kernels, on a GPU for floats only.

    The artifact is one ONNX file; loading and running it imports no PyTorch.

    Attributes:
        optimization: of the graph when it is loaded: ``all``; ``basic``, which fuses no kernels, so that integer
            programs compute in float32; ``none``.
    """

    artifact: ClassVar[str] = "model.onnx"
    reads_onnx: ClassVar[bool] = True
    package: ClassVar[str] = "onnxruntime"
    deploy_needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    deploy_with: ClassVar[tuple[str, ...]] = ("bitsweep.runtime.batches",)

    optimization: Literal["all", "basic", "none"] = "all"

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply codes that fit in a byte, and there are none for GPUs."""
        if self.on_gpu and (reason := gpu.no_gpu() or self._no_cuda_build()):
            return reason
        if self.on_gpu and precision.is_integer:
            return (
                f"ONNX Runtime has no integer kernels for {precision.name} on a GPU: use backend.device=cpu, or "
                "backend=tensorrt"
            )
        return beyond_byte_kernels(precision, self.name)

    def _no_cuda_build(self) -> str | None:
        """Why the ONNX Runtime that is installed runs on no GPU, with the hint; None when it does."""
        try:
            providers = self._library().get_available_providers()
        except MissingPackage as missing:
            return str(missing)
        if PROVIDERS["cuda"] in providers:
            return None
        return (
            f"backend.device=cuda: this ONNX Runtime has {', '.join(providers)} only; run: pip uninstall -y "
            "onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]', or use backend.device=cpu"
        )

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Half precision is computed on ARM and GPUs, bfloat16 nowhere; weights have 7 bits where sums of products
        would saturate."""
        if precision.is_integer:
            return reduce_range(precision, cpu)
        processor = self.processor(cpu)
        has_kernels = isinstance(processor, Gpu) or processor.architecture == "aarch64"
        computes = has_kernels and processor.computes_fp16 and precision.weights == "float16"
        return storage_only(precision, computes=computes, where=f"ONNX Runtime on this {processor}")

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program as ONNX."""
        from bitsweep.lowering.onnx.export import export_onnx

        export_onnx(
            program, folder / self.artifact, codes_of_gates=True, convolved_averages=True, wide_groups=True,
            float_weights=False, bits_of_weights=2,
        )  # fmt: skip

    def take(self, file: Path, folder: Path) -> None:
        """Keep the graph."""
        from bitsweep.lowering.onnx.given import write_given

        write_given(file, folder / self.artifact)

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Open a session of that many threads, of which none spins between runs."""
        session = self._session(folder, threads=threads)
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        def run(images: Array) -> Array:
            try:
                logits: Array = session.run(["logits"], {"images": images})[0]
            except InvalidArgument as error:
                given, (taken,) = f"{images.dtype} {list(images.shape)}", session.get_inputs()
                raise DataError(f"images: {given} given; the artifact takes {taken.type} {taken.shape}") from error
            return logits

        number = session.get_inputs()[0].shape[0]
        return in_batches_of(number, run) if isinstance(number, int) else run

    def load_on_device(self, folder: Path, images: Array, *, threads: int) -> OnDevice:
        """Open a session that computes in a stream of one's own, with images and logits bound to the GPU's memory."""
        stream = gpu.new_stream()
        session = self._session(folder, threads=threads, stream=stream)
        onnxruntime = self._library()
        binding, options = session.io_binding(), onnxruntime.RunOptions()
        binding.bind_ortvalue_input("images", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
        binding.bind_output("logits", "cuda", 0)
        # Else a run would return only when the GPU is done, and the way back to Python would be measured too.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return OnDevice(queue=lambda: session.run_with_iobinding(binding, options), stream=stream)

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """What ran, from ONNX Runtime's profiler; channels that it pads to fill vectors count.

        Of a GPU's kernels it sees when they are queued, and not how long they take.
        """
        # Weights that are packed for a kernel are missing from its profile, and kernels are slower without.
        described = self._events(folder, images, threads=threads, prepacked=False, runs=1)
        times = defaultdict(list)
        timed = [] if self.on_gpu else self._events(folder, images, threads=threads, prepacked=True, runs=TIMED_RUNS)
        for event in timed:
            times[event["name"]].append(event["dur"] / 1e3)
        return tuple(_kernel(event, ms=statistics.median(times[event["name"]] or [0.0])) for event in described)

    def _events(self, folder: Path, images: Array, *, threads: int, prepacked: bool, runs: int) -> list[dict[str, Any]]:
        """The kernels' events of a profile."""
        with tempfile.TemporaryDirectory() as scratch:
            profile = Path(scratch) / "profile"
            session = self._session(folder, threads=threads, profile=profile, prepacked=prepacked)
            for _ in range(runs):
                session.run(None, {"images": images})
            events = json.loads(Path(session.end_profiling()).read_text())
        return [event for event in events if event["name"].endswith("_kernel_time")]

    def _library(self) -> Any:
        with self.importing():
            import onnxruntime
        return onnxruntime

    def _session(
        self, folder: Path, *, threads: int, profile: Path | None = None, prepacked: bool = True, stream: int = 0
    ) -> Any:
        onnxruntime = self._library()
        from bitsweep.backends.onnxruntime.deploy import session_options

        options = session_options(threads=threads, optimization=self.optimization)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if not prepacked:
            options.add_session_config_entry("session.disable_prepacking", "1")
        path, state = folder / self.artifact, onnxruntime.capi.onnxruntime_pybind11_state
        provider: dict[str, str] = {}
        if self.on_gpu:
            provider = {"use_tf32": str(int(self.tf32))} | ({"user_compute_stream": str(stream)} if stream else {})
            # Else what has no kernel on the GPU would run on the CPU, and all of it where CUDA cannot be loaded.
            options.add_session_config_entry(NO_FALLBACK, "1")
            onnxruntime.preload_dlls()
        try:
            session = onnxruntime.InferenceSession(path, options, providers=[(PROVIDERS[self.device], provider)])
        except (state.InvalidGraph, state.NotImplemented) as error:
            raise _refused(error) from error
        except (
            state.Fail,
            state.InvalidArgument,
            state.InvalidProtobuf,
            state.NoSuchFile,
        ) as error:
            # It says so of layers without a kernel, and of all where CUDA does not start.
            if self.on_gpu and "fallback to" in str(error):
                raise ConfigError(
                    "backend.device=cuda: ONNX Runtime cannot run all of this on the GPU; use backend.device=cpu, or, "
                    "where the log says that CUDA cannot be loaded, run: pip install 'onnxruntime-gpu[cuda,cudnn]'"
                ) from error
            raise damaged(path, error) from error
        # Else a run that fails on the GPU would be tried again on the CPU.
        session.disable_fallback()
        return session


def _refused(error: Exception) -> CompressionError:
    """What is said of a graph for which there are no kernels: the file is as it was written."""
    reason = first_line(error).rpartition(" : ")[2]
    if "Unrecognized attribute" in reason:
        return CompressionError(
            f"ONNX Runtime does not take the program: {reason}; this came with a later opset than the file says: write "
            "the file anew in opset 13 or later, which is the first with a scale for each channel"
        )
    wide = " in float64" if re.search(r"tensor\(double\)|float64", str(error)) else ""
    return CompressionError(
        f"ONNX Runtime does not take the program{wide}: {reason}; let the network compute in float32, or use "
        "backend=openvino or reference"
    )


def _kernel(event: dict[str, Any], *, ms: float) -> OpProfile:
    """A kernel from an event of the profile."""
    op = event["args"]["op_name"]
    # Each tensor is described as {type: shape}.
    types, inputs = zip(*(next(iter(tensor.items())) for tensor in event["args"]["input_type_shape"]), strict=True)
    (output,) = event["args"]["output_type_shape"][0].values()
    macs = 0
    if op in CONVOLUTIONS:
        macs = math.prod(output) * math.prod(inputs[CONVOLUTIONS[op]][1:])
    elif op == "ConvTranspose":
        macs = math.prod(inputs[0]) * math.prod(inputs[1][1:])
    elif op in PRODUCTS:
        macs = math.prod(output) * inputs[0][-1]
    takes_codes = op != "DequantizeLinear" and types[0] in BYTE_TYPES
    integer = takes_codes or op in ("DynamicQuantizeMatMul", "QLinearConcat")  # the first input of which is a scale
    return OpProfile(name=event["name"].removesuffix("_kernel_time"), op=op, macs=macs, integer=integer, ms=ms)
