import pytest
import torch
from torch import Tensor, nn

from bitsweep.config.precision import Scheme
from bitsweep.errors import CompressionError
from bitsweep.graphs.ops import ensure_bias, is_layer, values_of_an_image
from bitsweep.graphs.tracing import trace
from bitsweep.measuring.parity import tap
from bitsweep.methods.none import NoCompression


class Tokens(nn.Module):
    """Tensors whose images lie first, in windows, or second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.windows = nn.Linear(8, 8)
        self.sequence = nn.TransformerEncoderLayer(8, 2, 16)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)  # [N, 8, 4, 4]
        windows = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 8)  # [4 N, 4, 8]
        x = self.windows(windows).unflatten(0, (-1, 4)).flatten(1, 2)
        return self.head(self.sequence(x.transpose(0, 1)).mean(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().eval()


def test_sizes_do_not_fix_the_number_of_images(network: nn.Module) -> None:
    graph = trace(network, input_shape=(3, 4, 4))
    (images,) = graph.graph.find_nodes(op="placeholder")
    values = {node.name: node.meta["val"] for node in graph.graph.nodes if node.op == "call_function"}
    known = {name: values_of_an_image(value) for name, value in values.items() if isinstance(value, Tensor)}
    layers = [name for name in known if name.startswith("linear")]
    assert [known[name] for name in layers[:2]] == [4 * 4 * 8, 16 * 3 * 8]
    assert known[layers[-1]] == 4
    assert not isinstance(images.meta["val"].shape[0], int)


def test_what_has_no_row_for_an_image_is_not_tapped(network: nn.Module) -> None:
    floats = Scheme(weights="float32", activations="float32", arithmetic="float32")
    program = NoCompression(name="none").compress(network, None, input_shape=(3, 4, 4), scheme=floats, seed=0).program  # type: ignore[arg-type]
    tapped = tap(program)
    values = tapped.program.module(check_guards=False)(torch.randn(5, 3, 4, 4))
    assert values.shape == (5, sum(tapped.sizes))
    assert len(tapped.names) == 2  # the stem and the logits


class Distances(nn.Module):
    """Distances to points, which PyTorch computes in another way for more than 25."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(4, 3))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cdist(images.mean((2, 3)), self.points)


def test_what_depends_on_the_number_of_images_says_so() -> None:
    with pytest.raises(CompressionError, match=r"in another for others \(2 <= N and N <= 25\); let it do the same"):
        trace(Distances(), input_shape=(3, 4, 4))


class Rounded(nn.Module):
    """Made for quantization-aware training elsewhere."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(images, 0.1, 0, 0, 255).mean((2, 3))


def test_what_is_rounded_already_says_so() -> None:
    with pytest.raises(CompressionError, match=r"rounds its own values \(fake quantization\)"):
        trace(Rounded(), input_shape=(3, 4, 4))


class OwnBias(nn.Module):
    """Adds the bias of a linear layer itself, after its scale, and runs the layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean((2, 3))
        for _ in range(2):
            x = torch.relu(2 * nn.functional.linear(x, self.weight) + self.bias)
        return x


@torch.no_grad()
def test_a_new_bias_takes_no_other_tensors_place() -> None:
    network, images = OwnBias().eval(), torch.randn(5, 3, 4, 4)
    graph = trace(network, input_shape=(3, 4, 4))
    biases = [ensure_bias(graph, node).target for node in graph.graph.nodes if is_layer(node)]
    graph.recompile()
    assert biases == ["bias_2", "bias_3"]
    assert torch.equal(graph(images), network(images))
