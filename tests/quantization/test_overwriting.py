import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

from bitsweep.config.precision import Grid
from bitsweep.graphs import tracing
from bitsweep.quantization.calibration import ranges
from bitsweep.quantization.overwriting import IN_PLACE, overwriting
from bitsweep.quantization.placement import Placement, observe

CODES = Grid(bits=8, signed=False, symmetric=False)


class Functions(nn.Module):
    """A function of a layer, of a sum, of what others read too, and of the images themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.relu6(self.one(images)) + nn.functional.hardswish(images)
        y = self.two(torch.relu(x + images))
        return (self.three(nn.functional.silu(y)) + y).mean((2, 3))


@pytest.fixture
def graph() -> GraphModule:
    torch.manual_seed(0)
    return tracing.trace(Functions().eval(), input_shape=(3, 6, 6))


@torch.no_grad()
def test_what_functions_alone_read_is_overwritten_and_nothing_else(graph: GraphModule) -> None:
    images = torch.randn(4, 3, 6, 6)
    expected, kept, targets = graph(images), images.clone(), [node.target for node in graph.graph.nodes]
    with overwriting(graph):
        assert torch.equal(Interpreter(graph).run(images), expected)
        overwritten = [node.name for node in graph.graph.nodes if node.target in IN_PLACE.values()]
        assert len(overwritten) == 2
        assert not any(name.startswith(("hardswish", "silu")) for name in overwritten)
    assert torch.equal(images, kept)
    assert [node.target for node in graph.graph.nodes] == targets


@torch.no_grad()
@pytest.mark.parametrize("fuses_functions", [False, True])
def test_observers_see_what_they_saw(fuses_functions: bool, graph: GraphModule) -> None:
    images = torch.randn(4, 3, 6, 6)
    observed = observe(graph, CODES, ranges.minmax_range, Placement(fuses_functions=fuses_functions))
    observers = [module for _, module in observed.named_modules() if hasattr(module, "seen")]
    expected = observed(images)
    before = [observer.seen for observer in observers]
    for observer in observers:
        observer.forget()
    with overwriting(observed):
        assert torch.equal(Interpreter(observed).run(images), expected)
    seen = [observer.seen for observer in observers]
    assert [(each.ends, each.zeros) for each in seen] == [(each.ends, each.zeros) for each in before]
    assert all(torch.equal(one.counts, other.counts) for one, other in zip(seen, before, strict=True))
