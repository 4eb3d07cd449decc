"""Rounding in training, against its formulas and against what is stored in the end."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitsweep.config.precision import Grid
from bitsweep.graphs import tracing
from bitsweep.graphs.folding import fold_batch_norm
from bitsweep.quantization import grids
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.learned.training import TrainedNetwork, freeze_normalization
from bitsweep.quantization.placement import convert, observe
from tests.devices import each_device
from tests.quantization.networks import SIZE, Mixed, images

UNSIGNED = Grid(bits=8, signed=False, symmetric=False)
WIDE = Grid(bits=16, signed=True, symmetric=True)


def weight_grid(bits: int = 8, *, per_channel: bool = True) -> Grid:
    return Grid(bits=bits, signed=True, symmetric=True, per_channel=per_channel)


def network() -> Mixed:
    torch.manual_seed(0)
    made = Mixed()
    for _ in range(60):  # until the running statistics are those of these images
        made(torch.cat(images()))
    return made.eval()


def trained(model: nn.Module, weights: Grid, activations: Grid = UNSIGNED, **knobs: Any) -> TrainedNetwork:
    graph = tracing.trace(model, input_shape=(3, SIZE, SIZE))
    normalized = fold_batch_norm(graph)
    assert normalized == ["stem.weight"]
    observed = observe(graph, activations, minmax_range)
    return TrainedNetwork(observed, weights, minmax_weight_range, images(), normalized=normalized, **knobs)


@pytest.mark.parametrize("per_channel", [True, False])
@torch.no_grad()
def test_it_starts_as_the_float_network(per_channel: bool) -> None:
    """On a grid so fine that nothing is lost, and with normalisation by the batch as without."""
    model, batch = network(), torch.cat(images())
    fine = trained(model, Grid(bits=16, signed=True, symmetric=True, per_channel=per_channel), WIDE)
    assert grids.sqnr_db(model(batch), fine.eval()(batch)) > 60
    model.train()
    expected = model(batch)
    assert grids.sqnr_db(expected, fine.train()(batch)) > 50


@torch.no_grad()
def test_running_statistics_follow_the_batches_until_they_are_frozen() -> None:
    made, batch = trained(network(), weight_grid()), torch.cat(images()) + 1
    stem = made.layers["conv2d"]
    before = stem.mean.clone()
    made.train()(batch)
    moved = stem.mean.clone()
    assert not torch.equal(before, moved)
    freeze_normalization(made)
    frozen = made(batch)
    assert torch.equal(stem.mean, moved)
    assert torch.equal(frozen, made.eval()(batch))


def test_weights_that_stay_float_learn_and_are_not_rounded() -> None:
    made = trained(network(), weight_grid(3), floats={"grouped.weight"})
    batch, layer = torch.cat(images()), made.layers["conv2d_1"]
    before = layer.weight.detach().clone()
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    made.train()(batch).square().sum().backward()
    optimizer.step()
    made.choose_ranges()
    with torch.no_grad():
        expected = made.eval()(batch)
        codes = made.finish()
        assert codes.keys() == {f"{name}.weight" for name in ("stem", "depthwise", "point", "down", "hidden", "head")}
        assert torch.equal(made._graph.get_buffer("grouped.weight"), layer.weight)
        assert not torch.equal(layer.weight, before)
        assert grids.sqnr_db(expected, convert(made._graph)[0](batch)) > 35


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("learned_scales", [True, False])
@pytest.mark.parametrize("bits", [3, 8])
def test_what_is_stored_computes_what_was_trained(bits: int, learned_scales: bool, per_channel: bool) -> None:
    made = trained(network(), weight_grid(bits, per_channel=per_channel), learned_scales=learned_scales)
    batch, labels = torch.cat(images()), torch.arange(12) % 4
    scales = [value.clone() for name, value in made.state_dict().items() if name.endswith("scale")]
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    losses = []
    for step in range(12):
        made.train()
        if step == 8:
            made.choose_ranges()
            freeze_normalization(made)
        loss = nn.functional.cross_entropy(made(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = [value for name, value in made.state_dict().items() if name.endswith("scale")]
    assert sum(not torch.equal(old, new) for old, new in zip(scales, after, strict=True)) >= len(scales) - 1  # images
    with torch.no_grad():
        expected = made.eval()(batch)
        codes = made.finish()
        assert all(grid.lo <= int(each.codes.min()) for each in codes.values() for grid in [each.grid])
        converted, clipped = convert(made._graph)
        # A value on the brink between two codes may go to the other one: sums come in another order.
        assert grids.sqnr_db(expected, converted(batch)) > 35
    assert clipped and all(0 <= share < 1 for share in clipped.values())


class Repeated(nn.Module):
    """Two layers that run twice each, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.biased = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.plain, self.head = nn.Conv2d(8, 8, 1, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in (self.biased, self.plain, self.biased, self.plain):
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


def test_a_layer_that_runs_twice_learns_one_set_of_weights() -> None:
    graph = observe(tracing.trace(Repeated().eval(), input_shape=(3, SIZE, SIZE)), UNSIGNED, minmax_range)
    made, batch = TrainedNetwork(graph, weight_grid(), minmax_weight_range, images()), torch.cat(images())
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made.train()(batch), torch.arange(12) % 4).backward()
        optimizer.step()
    made.choose_ranges()
    with torch.no_grad():
        expected = made.eval()(batch)
        assert made.finish().keys() == {f"{name}.weight" for name in ("stem", "biased", "plain", "head")}
        assert grids.sqnr_db(expected, convert(made._graph)[0](batch)) > 35


def pooled() -> nn.Module:
    """Its pooling has the scale of what it reads."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(4))


@each_device
def test_tensors_of_one_scale_are_rounded_alike_and_not_observed_in_training(device: str) -> None:
    model, batch = pooled(), torch.cat(images())
    model(batch)
    graph = observe(tracing.trace(model.eval(), input_shape=(3, SIZE, SIZE)), UNSIGNED, minmax_range)
    named = dict(graph.named_modules(remove_duplicate=False))
    assert len(named) > len(dict(graph.named_modules()))  # some observer has several names
    made = TrainedNetwork(graph, weight_grid(), minmax_weight_range, images()).move(torch.device(device)).train()
    seen = [observer.seen for observer in made._observers.values()]
    nn.functional.cross_entropy(made(batch.to(device)), (torch.arange(12) % 4).to(device)).backward()
    assert all(old is observer.seen for old, observer in zip(seen, made._observers.values(), strict=True))
    made.choose_ranges()
    made(batch.to(device))
    made.finish()
    assert grids.sqnr_db(model(batch), convert(made._graph)[0](batch)) > 25
