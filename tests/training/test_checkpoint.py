from pathlib import Path

import pytest
import torch
from torch import nn

from bitsweep.config.recipe import Recipe
from bitsweep.results import Splits
from bitsweep.training import loop
from bitsweep.training.checkpoint import Unfinished
from tests.devices import each_device

RECIPE = Recipe(
    name="a", epochs=5, max_steps=1000, lr=0.01, augment=["shift_flip", "RandAugment", "MixUp"], schedule="plateau",
    plateau_patience=1, ema_decay=0.9, device="cpu",
)  # fmt: skip


class Killed(BaseException):
    """Ends a training between two epochs."""


def train(
    digits: Splits, unfinished: Path | None, kill_before: int = 99, device: str = "cpu"
) -> tuple[nn.Module, list[float], list[int]]:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 10)
    ).to(device)
    epochs: list[int] = []

    def before_epoch(epoch: int, _: int) -> None:
        if epoch == kill_before:
            raise Killed
        epochs.append(epoch)

    _, history = loop.train(
        network, digits, recipe=RECIPE, input_shape=(3, 8, 8), seed=0, title="a", before_epoch=before_epoch,
        unfinished=unfinished,
    )  # fmt: skip
    return network, [epoch.val_loss for epoch in history], epochs


@pytest.mark.slow
@each_device
def test_a_killed_training_ends_as_if_it_had_not_been(
    device: str, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsweep.training.checkpoint.WORTH", 0)
    unfinished = tmp_path / "a.unfinished"
    for kill_before in (2, 3):
        with pytest.raises(Killed):
            train(digits, unfinished, kill_before, device)
    network, losses, epochs = train(digits, unfinished, device=device)
    expected, expected_losses, all_epochs = train(digits, None, device=device)
    assert (epochs, all_epochs) == ([3, 4], [0, 1, 2, 3, 4])
    assert losses == expected_losses
    for name, value in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_passed_over(
    digits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.unfinished").write_text("half")
    assert train(digits, tmp_path / "a.unfinished")[2] == [0, 1, 2, 3, 4]
    assert "training anew" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_that_cannot_be_written_stops_nothing(
    digits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(digits, tmp_path / "nowhere" / "a.unfinished")[2] == [0, 1, 2, 3, 4]
    assert "training goes on without" in capsys.readouterr().out


def test_writing_takes_a_small_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 41.0, 43.0, 44.0])
    monkeypatch.setattr("bitsweep.training.checkpoint.time.monotonic", lambda: next(clock))
    unfinished = Unfinished(tmp_path / "a", torch.device("cpu"))
    written = []
    for epoch in range(3):
        unfinished.write({"epoch": epoch})
        written.append((unfinished.read() or {})["epoch"])
    assert written == [0, 0, 2]
