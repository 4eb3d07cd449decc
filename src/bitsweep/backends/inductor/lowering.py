"""Programs as packages of machine code, which PyTorch's compiler, Inductor, makes ahead of time.

Weights are laid out for the kernels when the package is made. A Q/DQ program becomes calls of oneDNN's integer kernels,
each with the ReLU or addition after it, by the fusions that torchao registers with Inductor.
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from bitsweep.backends.inductor import onednn
from bitsweep.config.backend import Device, InferenceFn, OnDevice
from bitsweep.errors import CompressionError, damaged, first_line, require_images
from bitsweep.graphs.ops import arguments, aten, attribute, quantized, reads_attribute, set_attribute, tidy
from bitsweep.graphs.program import image_shape, on_device
from bitsweep.graphs.program import profile_of as profile_of_program
from bitsweep.results import Array, OpProfile

mkldnn = torch.ops.mkldnn
DEQUANTIZE = {quantized.dequantize_per_tensor.default, quantized.dequantize_per_channel.default}
OPTIONS: dict[str, Any] = {
    "freezing": True,
    "aot_inductor.package": True,
    # As many threads as PyTorch is set to when it runs, not as when it was compiled.
    "cpp.dynamic_threads": True,
    # Line numbers for debuggers would take more space than the code.
    "aot_inductor.enable_line_tables": False,
}


def compile_package(program: ExportedProgram, path: Path, *, device: Device = "cpu") -> None:
    """Compile a program to one package with a dynamic batch, for processors like the one that this runs on.

    Args:
        device: where the package will run.

    Raises:
        CompressionError: Inductor or the C++ compiler does not take the program.
    """
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti
    from torchao.quantization.pt2e.inductor_passes import x86

    x86._register_quantization_weight_pack_pass()
    shape = image_shape(program)
    one, images = np.zeros((1, *shape), np.float32), torch.zeros(2, *shape, device=device)
    macs = sum(kernel.macs for kernel in profile_of_program(program, one))
    facts = {"shape": shape, "macs": macs, "device": device}
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        options = OPTIONS | {
            "aot_inductor.output_path": f"{scratch}/model",
            "aot_inductor.metadata": {"facts": json.dumps(facts)},
            "post_grad_custom_pre_pass": LayOutWeights(),
        }
        try:
            files = aot_compile(for_integer_kernels(on_device(program, device)), (images,), options=options)
        except Exception as error:
            reason = first_line(error)
            raise CompressionError(f"Inductor does not compile the program: {reason}") from error
        assert isinstance(files, list)
        # The source code would be packaged too.
        package_aoti(str(path), [str(file) for file in files if not str(file).endswith(".cpp")])


def inference_fn(path: Path) -> InferenceFn:
    """A package as a function of images, on as many threads as PyTorch is set to.

    Raises:
        StoreError: the file is missing, truncated or of another version of PyTorch.
    """
    package, facts = _load(path)
    shape = tuple(facts["shape"])

    def run(images: Array) -> Array:
        require_images(images, shape)
        (logits,) = package.boxed_run([torch.from_numpy(images).to(facts["device"])])
        result: Array = logits.cpu().numpy()
        return result

    return run


def on_gpu(path: Path, images: Array) -> OnDevice:
    """A run of a package for a GPU on a batch in the GPU's memory."""
    package, facts = _load(path)
    batch = torch.from_numpy(images).to(facts["device"])
    return OnDevice(queue=lambda: package.boxed_run([batch]), stream=torch.cuda.current_stream().cuda_stream)


def profile_of(path: Path, images: Array) -> tuple[OpProfile, ...]:
    """What oneDNN executes for one batch, and what is left of the program's multiply-accumulates."""
    package, facts = _load(path)
    kernels = onednn.executed(lambda: package.boxed_run([torch.from_numpy(images).to(facts["device"])]))
    left = facts["macs"] * len(images) - sum(kernel.macs for kernel in kernels)
    rest = OpProfile(name="rest", op="generated code", macs=left, integer=False)
    return (*kernels, rest) if left > 0 else kernels


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    """A package and its facts."""
    try:
        package = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
        return package, json.loads(package.get_metadata()["facts"])
    except Exception as error:
        raise damaged(path, error) from error


def for_integer_kernels(program: ExportedProgram) -> GraphModule:
    """Graph of a program in the form that the fusions know: biases in float, a scale for each channel of weights.

    Weights that read images of one channel are in float, too. Ranges that are chosen at run time hold 0.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    for node in graph.graph.find_nodes(op="call_function", target=quantized.choose_qparams.tensor):
        _hold_zero(graph, node)
    for node in [node for node in graph.graph.nodes if node.target in DEQUANTIZE and reads_attribute(node.args[0])]:
        codes = attribute(graph, node.args[0])
        with graph.graph.inserting_before(node):
            if codes.dtype == torch.int32 or any(map(_reads_one_channel, node.users)):
                given = [attribute(graph, each) if isinstance(each, Node) else each for each in arguments(node)]
                set_attribute(graph, f"{node.name}_values", node.target(*given))
                node.replace_all_uses_with(graph.graph.get_attr(f"{node.name}_values"))
            elif node.target == quantized.dequantize_per_tensor.default:
                _, scale, zero_point, *limits = arguments(node)
                set_attribute(graph, f"{node.name}_scale", torch.full(codes.shape[:1], scale))
                set_attribute(graph, f"{node.name}_zero_point", torch.full(codes.shape[:1], zero_point))
                qparams = (graph.graph.get_attr(f"{node.name}_{part}") for part in ("scale", "zero_point"))
                by_channel = (node.args[0], *qparams, 0, *limits)
                node.replace_all_uses_with(
                    graph.graph.call_function(quantized.dequantize_per_channel.default, by_channel)
                )
    tidy(graph)
    return graph


def _hold_zero(graph: GraphModule, choice: Node) -> None:
    """Let a range be chosen for the ends of a tensor and 0: Inductor leaves 0 out where all values are above it.

    The zero point cannot be below the codes, so that the largest values would be clipped.
    """
    (x, *limits), call = choice.args, graph.graph.call_function
    with graph.graph.inserting_before(choice):
        low = call(aten.clamp_max.default, (call(aten.amin.default, (x,)), 0.0))
        high = call(aten.clamp_min.default, (call(aten.amax.default, (x,)), 0.0))
        choice.args = (call(aten.stack.default, ([low, high],)), *limits)


def _reads_one_channel(layer: Node) -> bool:
    """Whether a convolution reads images of one channel: their strides say of no layout.

    oneDNN then takes another layout in the run than the one that weights were packed for, and computes noise.
    """
    return layer.target == aten.conv2d.default and bool(arguments(layer)[0].meta["val"].shape[1] == 1)


class LayOutWeights(CustomGraphPass):  # type: ignore[misc]
    """Lays out the weights of float convolutions for oneDNN once, instead of in every run.

    Inductor does so itself only where the batch is known. What suits one image is taken for all batches: oneDNN lays
    the weights out again for those that it does not suit.
    """

    def __call__(self, graph: Graph) -> None:
        """Rewrite a graph in place."""
        module = graph.owning_module
        assert module is not None
        for node in graph.find_nodes(op="call_function", target=mkldnn._convolution_pointwise.default):
            images, weight, _, *geometry = arguments(node)[:7]
            if not reads_attribute(weight) or (values := attribute(module, weight)).is_mkldnn:
                continue
            _, *sizes = images.meta["val"].shape
            if sizes[0] == 1:  # see `_reads_one_channel`
                continue
            packed = mkldnn._reorder_convolution_weight(values, *geometry, [1, *sizes])
            set_attribute(module, f"{node.name}_weight", packed)
            with graph.inserting_before(node):
                laid_out = graph.get_attr(f"{node.name}_weight")
            laid_out.meta.update(weight.meta)
            node.replace_input_with(weight, laid_out)
        tidy(module)

    def uuid(self) -> bytes:
        """Tells Inductor's caches that this pass has changed."""
        return bytes(get_hash_for_files((__file__,)))
