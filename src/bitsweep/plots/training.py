"""How a baseline was trained."""

from collections.abc import Sequence
from pathlib import Path

from bitsweep.plots.figures import label, panels, save
from bitsweep.results import Epoch


def draw_training(history: Sequence[Epoch], best_epoch: int, path: Path, *, name: str) -> None:
    """Draw losses, accuracy, learning rate and time of each epoch, with the epoch that was kept."""
    figure, (losses, accuracy, rate, time) = panels(name, rows=2, columns=2, width=3.3, height=1.7)
    epochs = [epoch.epoch for epoch in history]
    losses.plot(epochs, [epoch.train_loss for epoch in history], ".-", color="0.5", label="training")
    losses.plot(epochs, [epoch.val_loss for epoch in history], ".-", color="C0", label="validation")
    accuracy.plot(epochs, [100 * epoch.val_top1 for epoch in history], ".-", color="C0")
    rate.plot(epochs, [epoch.lr for epoch in history], ".-", color="C2")
    time.bar(epochs, [epoch.seconds for epoch in history], color="C1")
    for axes in (losses, accuracy, rate, time):
        axes.axvline(best_epoch, color="C3", linestyle=":", linewidth=1, label=f"kept: epoch {best_epoch}")
        axes.xaxis.get_major_locator().set_params(integer=True)
    rate.ticklabel_format(axis="y", scilimits=(-2, 2))
    label(losses, "loss", "epoch", "cross entropy (nats)", legend=True)
    label(accuracy, "accuracy on validation images", "epoch", "top-1 (%)")
    label(rate, "learning rate at the end of the epoch", "epoch", "learning rate")
    label(time, "time of an epoch, validation included", "epoch", "seconds")
    save(figure, path)
