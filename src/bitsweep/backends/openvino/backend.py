"""OpenVINO on the CPU: float and 8-bit integer kernels, most of them oneDNN's."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from bitsweep.config.backend import Backend, InferenceFn
from bitsweep.config.configurable import IN_NAMES, configurable
from bitsweep.config.precision import FloatFormat, Grid, Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, reduce_range, storage_only
from bitsweep.errors import CompressionError, damaged, require_images
from bitsweep.results import Array, OpProfile
from bitsweep.runtime.batches import in_batches_of
from bitsweep.runtime.environment import Cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram

BYTE_TYPES = {"u8", "i8"}
#: Runs of a batch that the times of kernels are averages of.
TIMED_RUNS = 9
CONVOLUTIONS = {"Convolution", "Deconvolution"}
PRODUCTS = {"FullyConnected", "MatMul"}
#: What OpenVINO says of an operation without time.
_NO_TIME = "not_executed"
#: Operations of ``aten`` with a filter that removes what the smaller image cannot show.
ANTIALIASED = ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
ISLANDS: dict[str, FloatFormat] = {"fp32": "float32", "bf16": "bfloat16"}


@final
@configurable
class OpenVino(Backend):
    """OpenVINO's CPU kernels. The artifact is one ONNX file; loading and running it imports no PyTorch.

    The file takes any batch. It is compiled for each batch size when that size first comes: kernels for a size that is
    known are faster.

    Attributes:
        float_islands: arithmetic of what is left in float between the codes of an integer network. There is no fp16:
            some of OpenVINO's kernels between codes yield noise in it.
    """

    artifact: ClassVar[str] = "model.onnx"
    reads_onnx: ClassVar[bool] = True
    package: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    deploy_needs: ClassVar[tuple[str, ...]] = ("openvino",)
    deploy_with: ClassVar[tuple[str, ...]] = ("bitsweep.runtime.batches",)

    float_islands: Annotated[Literal["fp32", "bf16"], IN_NAMES] = "fp32"

    @property
    def for_floats(self) -> "OpenVino":
        """The same with nothing said of islands."""
        return replace(self, float_islands="fp32")

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply codes that fit in a byte: unsigned activations by weights around 0."""
        if reason := beyond_byte_kernels(precision, self.name):
            return reason
        weights, activations = precision.weights, precision.activations
        if not isinstance(weights, Grid) or not isinstance(activations, Grid):
            if self.float_islands == "fp32":
                return None
            return (
                f"backend.float_islands={self.float_islands}: {precision.name} has no codes to lie between; use "
                f"backend.float_islands=fp32, and precision={self.float_islands} for such arithmetic"
            )
        if not weights.symmetric:
            return f"OpenVINO computes {weights} weights in float32: use backend=onnxruntime"
        if activations.signed:
            return "OpenVINO does not keep to the reference with signed activations: use backend=onnxruntime"
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Half precision where the CPU computes it, bfloat16 on x86 only; weights have 7 bits where sums of products
        would saturate."""
        bfloat16 = cpu.architecture == "x86_64" and cpu.computes_bf16
        if not precision.is_integer:
            computes = cpu.computes_fp16 if precision.weights == "float16" else bfloat16
            return storage_only(precision, computes=computes, where=f"OpenVINO on this {cpu}")
        scheme = replace(reduce_range(precision, cpu), fuses_functions=True)
        if self.float_islands == "fp32":
            return scheme
        islands = "floats between codes are computed in bfloat16"
        if not bfloat16:
            islands = f"OpenVINO on this {cpu} has no bfloat16 arithmetic: floats between codes are computed in float32"
        return replace(scheme, why="; ".join(filter(None, [scheme.why, islands])))

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program as ONNX, and read it to see that OpenVINO takes it."""
        from bitsweep.lowering.onnx.export import export_onnx

        _require_right(program)
        form = {"fused_gates": True, "pointwise_linear": True, "pairs_after_joins": False, "reduced_tokens": False}
        export_onnx(program, folder / self.artifact, **form, bits_of_weights=4, floats=ISLANDS[self.float_islands])
        self._require_taken(folder, program)

    def take(self, file: Path, folder: Path) -> None:
        """Keep the graph, and read it to see that OpenVINO takes it."""
        from bitsweep.lowering.onnx.given import write_given

        write_given(file, folder / self.artifact, floats=ISLANDS[self.float_islands])
        self._require_taken(folder)

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Read the file; the first run of each batch size compiles it."""

        try:
            model = self._read(folder)
        except RuntimeError as error:
            path = folder / self.artifact
            raise damaged(path, _reason(error)) from error
        shape = tuple(model.input(0).get_partial_shape()[1:].to_shape())

        infer = self._engine.inference_fn(model, threads=threads)

        def run(images: Array) -> Array:
            require_images(images, shape)
            try:
                logits: Array = infer(images)
            except RuntimeError as error:
                raise _refused(error) from error
            return logits

        number = self._engine.fixed_batch(model)
        return in_batches_of(number, run) if number else run

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """What ran, from the executed graph."""
        compiled = self._engine.compiled_for(self._read(folder), batch=len(images), threads=threads, profile=True)
        request = compiled.create_infer_request()
        for _ in range(TIMED_RUNS):
            request.infer([images])
        found = ((node, _attributes(node)) for node in compiled.get_runtime_model().get_ordered_ops())
        return tuple(_kernel(node, about) for node, about in found if _ran(about))

    def _require_taken(self, folder: Path, program: "ExportedProgram | None" = None) -> None:
        """See that OpenVINO takes a file, which was written from a program or is somebody else's.

        Raises:
            CompressionError: it does not.
        """
        try:
            self._read(folder)
        except RuntimeError as error:
            if operations := _unknown(error):
                raise CompressionError(
                    f"OpenVINO has nothing for {_places(operations, folder / self.artifact, program)}; use "
                    "backend=onnxruntime, or another operation in the network"
                ) from error
            raise _refused(error) from error

    def _read(self, folder: Path) -> Any:
        return self._engine.openvino.Core().read_model(folder / self.artifact)

    @property
    def _engine(self) -> Any:
        """What runs artifacts."""
        with self.importing():
            import openvino  # noqa: F401 - what deploy.py imports only once

            from bitsweep.backends.openvino import deploy
        return deploy


def _require_right(program: "ExportedProgram") -> None:
    """Refuse what OpenVINO takes from ONNX files and computes wrong: Fourier transforms, and antialiasing."""
    from bitsweep.graphs.normal_form import place_of

    for node in program.graph.nodes:
        value = node.meta.get("val")
        is_complex = getattr(getattr(value, "dtype", None), "is_complex", False)
        if is_complex or str(node.target).partition(".")[2].startswith(ANTIALIASED):
            what = "yields complex numbers" if is_complex else "resizes with antialiasing"
            raise CompressionError(f"{place_of(node)} {what}, which OpenVINO computes wrong; use backend=onnxruntime")


def _refused(error: RuntimeError) -> CompressionError:
    return CompressionError(f"OpenVINO does not take the program: {_reason(error)}")


def _unknown(error: RuntimeError) -> list[str]:
    """Operations of ONNX that OpenVINO says it does not know, else those that it fails on."""
    for said in (r"No conversion rule found for operations: (.*)", r"Conversion is failed for: (.*)"):
        if found := re.search(said, str(error)):
            return [name.partition("-")[0] for name in found[1].split(", ")]
    return []


def _places(operations: Sequence[str], file: Path, program: "ExportedProgram | None") -> str:
    """Where the first of some operations comes from: the layer of the program, else the node of the file."""
    import onnx

    from bitsweep.graphs.normal_form import place_of

    nodes = list(onnx.load(file, load_external_data=False).graph.node)
    start = next((index for index, node in enumerate(nodes) if node.op_type in operations), None)
    if start is None:
        return f"{', '.join(operations)} of ONNX"
    # Values are called like the nodes of the program that they are written from. One that is written as several
    # operations gives its name to the last of them.
    sources = {source.name: source for source in program.graph.nodes} if program else {}
    if program:
        sources[nodes[-1].output[0]] = program.graph.output_node().all_input_nodes[0]
    source = next((sources[name] for node in nodes[start:] for name in node.output if name in sources), None)
    node = nodes[start]
    place = place_of(source) if source else node.name or node.output[0]
    return f"{place}, which is {node.op_type} in ONNX"


def _reason(error: RuntimeError) -> str:
    """What OpenVINO says in the end, after the places in its sources where it went by."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Exception from ")]
    return next((line for line in reversed(lines) if line), "no reason given")


def _attributes(node: Any) -> dict[str, str]:
    """What the executed graph records about an operation."""
    return {key: value.astype(str) for key, value in node.get_rt_info().items()}


def _ran(about: dict[str, str]) -> bool:
    """Whether an operation of the executed graph did anything; products did, though less than 0.5 µs are none to it."""
    return about["execTimeMcs"] != _NO_TIME or about["layerType"] in {*CONVOLUTIONS, *PRODUCTS}


def _kernel(node: Any, about: dict[str, str]) -> OpProfile:
    """A kernel from an operation of the executed graph."""
    op, macs = about["layerType"], 0
    output, *inputs = (tuple(port.get_shape()) for port in (*node.outputs()[:1], *node.inputs()))
    if op in CONVOLUTIONS:
        # Weights are [O, I, ...], or [G, O, I, ...] in groups; those of a deconvolution have I before O.
        slid, weights = inputs[0] if op == "Deconvolution" else output, inputs[1]
        macs = math.prod(slid) * math.prod(weights[len(weights) - len(slid) + 1 :])
    elif op in PRODUCTS:
        macs = math.prod(output) * inputs[0][-1]
    integer, time = about["runtimePrecision"] in BYTE_TYPES, about["execTimeMcs"]
    ms = 0.0 if time == _NO_TIME else float(time) / 1e3
    return OpProfile(
        name=node.get_friendly_name(), op=f"{op} {about['primitiveType']}", macs=macs, integer=integer, ms=ms
    )
