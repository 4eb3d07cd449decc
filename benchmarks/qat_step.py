"""How much longer a training step takes with rounded weights and activations, here and by torchao's own PT2E flow.

    python benchmarks/qat_step.py --model resnet18

The float network, ours, ours with learned scales, and torchao's (its XNNPACK quantizer, 8 bits, per-channel weights)
take steps in turn, round by round; printed are medians in milliseconds and ratios to the float step.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from bitsweep.config.precision import Grid
from bitsweep.graphs import tracing
from bitsweep.graphs.folding import fold_batch_norm
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.learned.training import TrainedNetwork
from bitsweep.quantization.placement import observe
from bitsweep.runtime.environment import current_cpu

WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


def ours(network: nn.Module, images: torch.Tensor, *, learned_scales: bool) -> nn.Module:
    """The network as method=qat trains it."""
    graph = tracing.trace(network, input_shape=(3, *images.shape[2:]))
    normalized = fold_batch_norm(graph)
    observed = observe(graph, ACTIVATIONS, minmax_range)
    return TrainedNetwork(
        observed, WEIGHTS, minmax_weight_range, [images], normalized=normalized, learned_scales=learned_scales
    ).train()


def torchaos(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """The network as torchao prepares it."""
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(network.train(), (images,), dynamic_shapes=({0: batch},)).module()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))
    return prepare_qat_pt2e(exported, quantizer)


def step_of(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One step of AdamW."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return torchvision.models.get_model(arguments.model, num_classes=10).eval()

    images = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size)
    labels = torch.randint(10, (arguments.batch,))
    steps = {
        "float": step_of(fresh().train(), images, labels),
        "ours": step_of(ours(fresh(), images, learned_scales=False), images, labels),
        "ours, learned scales": step_of(ours(fresh(), images, learned_scales=True), images, labels),
        "torchao": step_of(torchaos(fresh(), images), images, labels),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    cpu = current_cpu()
    print(f"{arguments.model}, {arguments.image_size} px, batch {arguments.batch}; {cpu.model}, {cpu.isa}")
    for name, each in times.items():
        ratios = [mine / base for mine, base in zip(each[1:], times["float"][1:], strict=True)]
        print(f"{name:22} {statistics.median(each[1:]):8.1f} ms  {statistics.median(ratios):5.2f} of float")


if __name__ == "__main__":
    main()
