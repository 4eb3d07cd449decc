"""The guard mends networks that were made hard without a change of what they compute, and leaves others alone."""

from collections.abc import Callable, Collection
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bitsweep.config.precision import Grid
from bitsweep.graphs import tracing
from bitsweep.graphs.folding import fold_batch_norm, fold_hard_sigmoid
from bitsweep.graphs.ops import is_layer
from bitsweep.quantization.analysis.noise import NoiseStudy, Source
from bitsweep.quantization.calibration.ranges import minmax_weight_range, mse_range
from bitsweep.quantization.guard.centring import _lies_apart
from bitsweep.quantization.guard.guarded import Guarded
from bitsweep.quantization.guard.search import ENOUGH_DB, FLOAT_SHARE, LARGE_PART_DB, SUFFICIENT_DB, Guard
from bitsweep.quantization.guard.state import State
from bitsweep.quantization.placement import Placement
from bitsweep.quantization.weights import nearest_codes
from tests.quantization.networks import WIDTH, Transformer

SIZE = 16
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
SEVEN = Grid(bits=7, signed=True, symmetric=True, per_channel=True)
ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


class Separable(nn.Module):
    """A stem, a depthwise, a pointwise and a dense convolution, each with a normalisation and a function after it."""

    def __init__(self, function: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.depthwise_norm = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.point, self.point_norm = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.dense, self.dense_norm = nn.Conv2d(32, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32)
        self.function, self.head = function(), nn.Linear(32, 4)
        self(torch.randn(32, 3, SIZE, SIZE))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for name in ("stem", "depthwise", "point", "dense"):
            x = self.function(getattr(self, f"{name}_norm")(getattr(self, name)(x)))
        return self.head(x.mean((2, 3)))


#: From 1 to 1000, in no order.
FACTORS = torch.logspace(0, 3, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(3))]


def rescale_stem(network: Separable) -> None:
    """Channels before the depthwise convolution, through a ReLU."""
    network.stem_norm.weight.data *= FACTORS
    network.stem_norm.bias.data *= FACTORS
    network.depthwise.weight.data /= FACTORS.view(-1, 1, 1, 1)


def _rescale_depthwise(network: Separable) -> None:
    """Channels between the depthwise and the pointwise convolution."""
    network.depthwise_norm.weight.data *= FACTORS
    network.depthwise_norm.bias.data *= FACTORS
    network.point.weight.data /= FACTORS.view(1, -1, 1, 1)


def _rescale_dense(network: Separable) -> None:
    """Channels between the pointwise and the dense convolution."""
    factors = torch.cat([FACTORS, FACTORS.flip(0)])
    network.point_norm.weight.data *= factors
    network.point_norm.bias.data *= factors
    network.dense.weight.data /= factors.view(1, -1, 1, 1)


def _hold_channels(network: Separable) -> None:
    """Some channels before the depthwise convolution are large and constant, and their readers take the edges alone."""
    with torch.no_grad():
        for channel, value in ((2, 80.0), (9, 30.0)):
            network.stem_norm.weight[channel] = 0.0
            network.stem_norm.bias[channel] = value
            network.depthwise.weight[channel] /= value


def _shrink_variances(network: Separable) -> None:
    """Normalisations divide by nearly nothing, as those of dead channels do."""
    for norm, channels in ((network.stem_norm, (1, 5)), (network.depthwise_norm, (3, 7))):
        for channel in channels:
            norm.weight.data[channel] *= (1e-8 + norm.eps) ** 0.5 / (norm.running_var[channel] + norm.eps) ** 0.5
            norm.running_var[channel] = 1e-8


def _cancel(network: Separable) -> None:
    """Two channels are multiples of one another, and the dense convolution reads them with large opposite weights."""
    large = 300 * torch.randn(network.dense.weight[:, 0].shape, generator=torch.Generator().manual_seed(4))
    network.point.weight.data[20] = network.point.weight.data[4]
    for name in ("weight", "bias"):
        getattr(network.point_norm, name).data[20] = 0.5 * getattr(network.point_norm, name).data[4]
    for name in ("running_mean", "running_var"):
        getattr(network.point_norm, name)[20] = getattr(network.point_norm, name)[4]
    network.dense.weight.data[:, 4] += large
    network.dense.weight.data[:, 20] -= 2 * large


def _read_dead_channels(network: Separable) -> None:
    """Channels are always 0 behind their ReLU, and the dense convolution has large weights for them."""
    for channel in (3, 17):
        network.point_norm.weight.data[channel] *= 1e-3
        network.point_norm.bias.data[channel] = -5.0
        network.dense.weight.data[:, channel] *= 300


DISTORTIONS = {
    "dead channels": _read_dead_channels,
    "cancelling channels": _cancel,
    "depthwise pair": rescale_stem,
    "dense pair": _rescale_depthwise,
    "pair of dense layers": _rescale_dense,
    "constant channels": _hold_channels,
    "tiny variances": _shrink_variances,
}


def _graph(function: type[nn.Module], *distortions: Callable[[Separable], None]) -> GraphModule:
    network = Separable(function)
    for distort in distortions:
        distort(network)
    graph = tracing.trace(network, input_shape=(3, SIZE, SIZE))
    fold_batch_norm(graph)
    fold_hard_sigmoid(graph)
    return graph


def _images() -> Tensor:
    return torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def _guard(*, weights: Grid = WEIGHTS, activations: Grid | None = ACTIVATIONS, fuses: bool = False) -> Guard:
    rounded = partial(nearest_codes, grid=weights, choose_range=minmax_weight_range)
    return Guard(
        round_weights=lambda weight: rounded(weight).values, weights=weights, activations=activations,
        choose_range=mse_range, placement=Placement(fuses_functions=fuses),
    )  # fmt: skip


def _total_db(guard: Guard, guarded: Guarded) -> float:
    study = guard._study(guarded.graph, _images(), guarded.placement, guarded.floats)
    return study.total_db()


@pytest.mark.parametrize(("function", "looks"), [(nn.ReLU, 1), (nn.ReLU6, 0)])
def test_only_what_a_remedy_may_help_is_priced_where_none_may_cost_latency(
    function: type[nn.Module], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, sources = list[list[str]](), NoiseStudy.sources

    def noted(study: NoiseStudy, *known: Collection[Source], among: frozenset[str] | None) -> list[Source]:
        found = sources(study, *known, among=among)
        looked.append([each.name for each in found])
        return found

    monkeypatch.setattr(NoiseStudy, "sources", noted)
    guard, graph = _guard(activations=Grid(bits=7, signed=False, symmetric=False)), _graph(function)
    assert SUFFICIENT_DB < _total_db(guard, Guarded(graph=graph, placement=Placement())) < ENOUGH_DB
    guarded = guard.protect(graph, _images())
    assert len(looked) == 2 * looks and bool(guarded.remedies) is bool(looks)
    assert all("point.weight" in names and "images" not in names for names in looked)


@pytest.mark.parametrize("function", [nn.ReLU, nn.Hardswish, nn.SiLU])
@pytest.mark.parametrize("fuses", [False, True])
def test_a_network_without_trouble_has_its_means_kept_and_nothing_else(function: type[nn.Module], fuses: bool) -> None:
    graph = _graph(function)
    guarded = _guard(fuses=fuses).protect(graph, _images())
    assert guarded.graph is graph and guarded.placement == Placement(fuses_functions=fuses)
    assert guarded.corrected == {f"{name}.weight" for name in ("stem", "depthwise", "point", "dense", "head")}
    assert not (guarded.remedies or guarded.floats or guarded.tables)


@pytest.mark.parametrize("weights", [WEIGHTS, SEVEN], ids=str)
@pytest.mark.parametrize("distort", DISTORTIONS.values(), ids=DISTORTIONS)
def test_a_network_made_hard_is_nearly_as_good_as_before(distort: Callable[[Separable], None], weights: Grid) -> None:
    guard, graph, images = _guard(weights=weights), _graph(nn.ReLU, distort), _images()
    logits = graph(images)
    guarded = guard.protect(graph, images)
    torch.testing.assert_close(guarded.graph(images), logits, rtol=1e-3, atol=1e-3)
    reached = _total_db(guard, guarded)
    assert reached > min(SUFFICIENT_DB, _total_db(guard, Guarded(graph=_graph(nn.ReLU), placement=Placement())) - 3)


def test_dead_channels_are_not_read_behind_a_relu6_either() -> None:
    guard, images = _guard(), _images()
    graph = _graph(nn.ReLU6, _read_dead_channels)
    before = _total_db(guard, Guarded(graph=graph, placement=Placement()))
    guarded = guard.protect(graph, images)
    assert before < 12 and _total_db(guard, guarded) >= SUFFICIENT_DB
    assert "channel 3 is always 0, and 1 more are like that" in guarded.remedies_by_layer()["dense"]


def test_all_distortions_at_once_are_mended() -> None:
    guard, images = _guard(), _images()
    graph = _graph(nn.ReLU, rescale_stem, _rescale_depthwise, _rescale_dense)
    before = _total_db(guard, Guarded(graph=graph, placement=Placement()))
    guarded = guard.protect(graph, images)
    assert before < 5 and _total_db(guard, guarded) >= SUFFICIENT_DB


class Residual(nn.Module):
    """Two blocks whose outputs are added to what they read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)
        self.inner = nn.ModuleList(nn.Conv2d(16, 24, 3, padding=1) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(24, 16, 1) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(images))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = torch.relu(x + outer(torch.relu(inner(x))))
        return self.head(x.mean((2, 3)))


def test_channels_along_shortcuts_are_scaled_together() -> None:
    network, guard = Residual(), _guard()
    plain = _total_db(guard, Guarded(graph=tracing.trace(network, input_shape=(3, SIZE, SIZE)), placement=Placement()))
    for layer in (network.stem, *network.outer):
        layer.weight.data *= FACTORS.view(-1, 1, 1, 1)
        layer.bias.data *= FACTORS
    for layer in (*network.inner, network.head):
        layer.weight.data /= FACTORS.view(1, -1, *[1] * (layer.weight.ndim - 2))
    graph, images = tracing.trace(network, input_shape=(3, SIZE, SIZE)), _images()
    logits, before = graph(images), _total_db(guard, Guarded(graph=graph, placement=Placement()))
    guarded = guard.protect(graph, images)
    torch.testing.assert_close(guarded.graph(images), logits, rtol=1e-3, atol=1e-3)
    assert before < 5 and _total_db(guard, guarded) > min(SUFFICIENT_DB, plain - 3)
    assert not (guarded.floats or guarded.placement.floats)


class Grown(nn.Module):
    """Layers whose outputs are put behind what they read, with normalisations that no layer can take in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Linear(48, 4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (16, 32, 48))
        self.inner = nn.ModuleList(nn.Conv2d(channels, 16, 3, padding=1, bias=False) for channels in (16, 32))
        self(torch.randn(32, 3, SIZE, SIZE))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for norm, inner in zip(self.norms, self.inner, strict=False):
            x = torch.cat([x, inner(torch.relu(norm(x)))], 1)
        return self.head(torch.relu(self.norms[2](x)).mean((2, 3)))


def test_channels_that_share_a_scale_are_scaled_by_what_each_of_them_reaches() -> None:
    network, guard, images = Grown(), _guard(), _images()
    for place, layer in enumerate((network.stem, *network.inner)):
        layer.weight.data *= FACTORS.view(-1, 1, 1, 1)
        for norm in network.norms[place:]:
            norm.weight.data[16 * place : 16 * (place + 1)] /= FACTORS
            norm.running_mean[16 * place : 16 * (place + 1)] *= FACTORS
    graph = tracing.trace(network, input_shape=(3, SIZE, SIZE))
    fold_batch_norm(graph)
    logits, before = graph(images), _total_db(guard, Guarded(graph=graph, placement=Placement()))
    guarded = guard.protect(graph, images)
    torch.testing.assert_close(guarded.graph(images), logits, rtol=1e-3, atol=1e-3)
    assert before < 8 and _total_db(guard, guarded) > SUFFICIENT_DB
    assert not (guarded.floats or guarded.placement.floats)


class Bottlenecks(nn.Module):
    """Narrow sums of layers without a function, between wide layers with one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (16, 16, 24, 24, 32)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, 48, 1) for width in widths[:-1])
        self.outer = nn.ModuleList(nn.Conv2d(48, width, 1) for width in widths[1:])
        self.head = nn.Linear(32, 4)
        for layer in (self.stem, *self.inner, *self.outer, self.head):
            nn.init.normal_(layer.weight, std=1.5 * layer.weight[0].numel() ** -0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            y = outer(nn.functional.silu(inner(x)))
            x = x + y if y.shape == x.shape else y
        return self.head(x.mean((2, 3)))


def _rescale_bottlenecks(network: Bottlenecks, span: float = 30.0) -> None:
    """Channels of the sums, by factors from 1 / span to span."""
    factors = {width: span ** (2 * torch.rand(width, generator=torch.Generator().manual_seed(width)) - 1)
               for width in (16, 24, 32)}  # fmt: skip
    for layer in (network.stem, *network.outer):
        layer.weight.data *= factors[len(layer.weight)].view(-1, 1, 1, 1)
        layer.bias.data *= factors[len(layer.weight)]
    for layer in (*network.inner, network.head):
        layer.weight.data /= factors[layer.weight.shape[1]].view(1, -1, *[1] * (layer.weight.ndim - 2))


def _shift_bottlenecks(network: Bottlenecks, size: float) -> None:
    """Offsets of channels, which the layers that read the sums subtract."""
    offset, generator = torch.zeros(()), torch.Generator().manual_seed(1)
    for layer, reader in zip((network.stem, *network.outer), (*network.inner, network.head), strict=True):
        added = size * torch.randn(len(layer.bias), generator=generator)
        layer.bias.data += added
        offset = offset + added if offset.shape == added.shape else added
        reader.bias.data -= reader.weight.data.flatten(1) @ offset


def test_tensors_that_help_only_together_are_scaled_together() -> None:
    network, guard, images = Bottlenecks(), _guard(), _images()
    plain = _total_db(guard, Guarded(graph=tracing.trace(network, input_shape=(3, SIZE, SIZE)), placement=Placement()))
    _rescale_bottlenecks(network)
    graph = tracing.trace(network, input_shape=(3, SIZE, SIZE))
    logits, before = graph(images), _total_db(guard, Guarded(graph=graph, placement=Placement()))
    guarded = guard.protect(graph, images)
    torch.testing.assert_close(guarded.graph(images), logits, rtol=1e-3, atol=1e-3)
    assert before < 0 and _total_db(guard, guarded) > min(SUFFICIENT_DB, plain - 3)


@pytest.mark.parametrize("rescaled", [False, True], ids=["alike", "rescaled"])
def test_means_that_lie_apart_are_moved_into_the_readers(rescaled: bool) -> None:
    network, guard, images = Bottlenecks(), _guard(), _images()
    plain = _total_db(guard, Guarded(graph=tracing.trace(network, input_shape=(3, SIZE, SIZE)), placement=Placement()))
    if rescaled:  # then some channels span more than all of their tensor's means
        _rescale_bottlenecks(network, 300.0)
    _shift_bottlenecks(network, 3.0 if rescaled else 100.0)
    graph = tracing.trace(network, input_shape=(3, SIZE, SIZE))
    logits, before = graph(images), _total_db(guard, Guarded(graph=graph, placement=Placement()))
    guarded = guard.protect(graph, images)
    torch.testing.assert_close(guarded.graph(images), logits, rtol=1e-3, atol=5e-3)
    assert before < 0 and _total_db(guard, guarded) > min(SUFFICIENT_DB, plain - 3)
    (told, *_) = guarded.remedies
    assert "lies around" in told.cause and {"stem", "outer.3"} <= {*told.layers}
    assert not (guarded.floats or guarded.placement.floats)


@pytest.mark.parametrize(
    ("ends", "apart"),
    [
        ([(0.0, 4.0), (-3.0, 1.0)], False),  # around 0
        ([(8.0, 9.0), (-9.0, -8.0)], True),  # the tensor spans 18 times its widest channel
        ([(-100.0, 100.0), (8.0, 9.0)], True),  # with a scale of its own, the second would have its codes for 8
        ([(-4.0, 4.0), (3.0, 3.0)], False),  # constant, and inside
        ([(-4.0, 4.0), (30.0, 30.0)], True),  # constant, and outside
    ],
)
def test_means_that_are_worth_moving(ends: list[tuple[float, float]], apart: bool) -> None:
    low_C, high_C = torch.tensor(ends).T
    assert _lies_apart(Source(name="x", what="activation", sqnr_db=0, low_C=low_C, high_C=high_C)) == apart


def _imbalanced(function: type[nn.Module]) -> GraphModule:
    """Channels of unlike ranges before a function that lets no factors through."""

    def distort(network: Separable) -> None:
        network.stem_norm.weight.data *= FACTORS / 100
        network.stem_norm.bias.data *= FACTORS / 100
        network.depthwise.weight.data /= FACTORS.view(-1, 1, 1, 1) / 100

    return _graph(function, distort)


@pytest.mark.parametrize("function", [nn.Hardswish, nn.SiLU])
@pytest.mark.parametrize("fuses", [False, True])
def test_channels_around_gates_get_scales_of_their_own(function: type[nn.Module], fuses: bool) -> None:
    guard, graph, images = _guard(fuses=fuses), _imbalanced(function), _images()
    logits, before = graph(images), _total_db(guard, Guarded(graph=graph, placement=Placement(fuses_functions=fuses)))
    layers = sum(map(is_layer, graph.graph.nodes))
    guarded = guard.protect(graph, images)
    torch.testing.assert_close(guarded.graph(images), logits, rtol=1e-3, atol=1e-3)
    assert before < SUFFICIENT_DB and before + 5 < _total_db(guard, guarded)
    more = sum(map(is_layer, guarded.graph.graph.nodes)) - layers
    assert (more == 0) if fuses else (more > 0)
    assert not guarded.floats


def test_what_makes_a_quarter_of_all_noise_is_mended_even_after_the_network_has_enough() -> None:
    def distort(network: Separable) -> None:
        for norm, readers_C, channel, factor in (
            (network.stem_norm, network.depthwise.weight, 3, 60.0),
            (network.point_norm, network.dense.weight.transpose(0, 1), 5, 8.0),
        ):
            norm.weight.data[channel] *= factor
            norm.bias.data[channel] *= factor
            readers_C.data[channel] /= factor

    guarded = _guard().protect(_graph(nn.Hardswish, distort), _images())
    first, second = guarded.remedies
    assert first.alone_db < SUFFICIENT_DB < first.after_db < second.alone_db < first.after_db + LARGE_PART_DB
    assert second.after_db > first.after_db + 3


def test_remedies_tell_cause_and_price_in_the_records_of_their_layers() -> None:
    guarded = _guard().protect(_graph(nn.ReLU, rescale_stem), _images())
    told = guarded.remedies_by_layer()
    assert {"stem", "depthwise"} <= told.keys()
    assert "channel" in told["stem"] and "the median channel" in told["stem"] and "costs no latency" in told["stem"]
    noise, channels, remedies = guarded.tables
    assert (noise.name, channels.name, remedies.name) == ("noise", "channels", "guard")
    spans = [row[-1] for row in channels.rows if row[0] == "relu after stem" and str(row[1]).startswith("before")]
    assert len(spans) == 16 and max(map(float, spans)) > 100 * min(map(float, spans))
    assert {str(row[1]).partition(":")[0] for row in channels.rows} == {"before its remedies", "as it is quantized"}
    assert remedies.rows[0][0] == "before"
    assert remedies.rows[-1][-1] > remedies.rows[0][-1]


def test_float_is_the_last_resort_and_for_few_products() -> None:
    guard, graph = _guard(), _graph(nn.ReLU6, _rescale_dense)
    guarded = guard.protect(graph, _images())
    study = guard._study(guarded.graph, _images(), guarded.placement, guarded.floats)
    state = State(graph=guarded.graph, placement=guarded.placement, study=study, total_db=study.total_db())
    sources = [each for each in state.looking_at(None).sources.values() if each.name in guarded.placement.floats]
    floats = {layer.name for source in sources for layer in state.computed_in_float(source)}
    share = sum(state.macs(node) for node in guarded.graph.graph.nodes if node.name in floats) / state.total_macs()
    assert share <= FLOAT_SHARE


def test_coarse_weights_are_told_and_not_mended() -> None:
    coarse = _guard(weights=Grid(bits=2, signed=True, symmetric=True, per_channel=True), activations=None)
    guarded = coarse.protect(graph := _graph(nn.ReLU), _images())
    assert guarded.graph is graph and not (guarded.remedies or guarded.corrected or guarded.floats)
    noise, channels = guarded.tables
    assert {row[2] for row in channels.rows} == {"shift of the mean / std"}
    assert noise.name == "noise" and {str(row[0]) for row in noise.rows} > {"the weights of stem"}
    assert all("precision.weights.bits" in str(row[-1]) for row in noise.rows)


def test_a_transformer_made_hard_is_nearly_as_good_as_before() -> None:
    network = Transformer()
    images = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    easy = _guard().protect(tracing.trace(network, input_shape=(3, SIZE, SIZE)), images)
    block, factors = network.block, torch.logspace(-1.5, 1.5, WIDTH)
    with torch.no_grad():
        for norm, reader in ((block.before, block.qkv), (block.behind, block.hidden)):
            norm.weight *= factors
            norm.bias *= factors
            reader.weight /= factors
        block.qkv.weight[-WIDTH:] *= factors[:, None]
        block.qkv.bias[-WIDTH:] *= factors
        block.proj.weight /= factors
    guard, graph = _guard(), tracing.trace(network, input_shape=(3, SIZE, SIZE))
    logits, before = graph(images), guard._study(graph, images, guard.placement).total_db()
    guarded = guard.protect(graph, images)
    torch.testing.assert_close(guarded.graph(images), logits, rtol=1e-3, atol=1e-3)
    after, meant = (
        guard._study(each.graph, images, each.placement, each.floats).total_db() for each in (guarded, easy)
    )
    assert before < SUFFICIENT_DB and after > meant - 3
    assert not guarded.floats and not guarded.placement.floats
    (taken,) = guarded.graph.graph.find_nodes(op="placeholder")
    assert not isinstance(taken.meta["val"].shape[0], int)  # any number of images
