"""How fast a baseline is trained, against a loop by hand that has nothing to do but to train.

    python benchmarks/training_loop.py --model resnet20
    python benchmarks/training_loop.py --model resnet18 --stored 8

The loop by hand has all images preprocessed in memory, as float32, and computes the same: forward, loss, backward,
clipped gradients, AdamW. Ours reads uint8 images where they are stored, moves and mirrors them, preprocesses them, and
keeps a history. Both train as many steps in turn, round by round; printed are medians in images a second, their ratio
with the range of the middle half of the rounds, and the share of a step that our images take.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from bitsweep.config.model import Model
from bitsweep.config.recipe import Recipe
from bitsweep.data.preprocessing import preprocess
from bitsweep.results import Shape, Split, Splits
from bitsweep.runtime.allocation import keep_freed_memory
from bitsweep.runtime.environment import current_cpu
from bitsweep.training.augmentation import Augmentation
from bitsweep.training.loop import train

CONF = Path(__file__).parents[1] / "conf"
CLASSES = 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def main() -> None:
    """Let both loops train in turn, and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet20", help="a YAML of conf/model")
    parser.add_argument("--stored", type=int, default=32, help="size of the stored images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30, help="in each round")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the stage that trains does

    model: Model = instantiate(OmegaConf.load(CONF / "model" / f"{arguments.model}.yaml"))
    recipe = Recipe(
        name="benchmark", epochs=1, max_steps=arguments.steps, batch_size=arguments.batch, augment="shift_flip",
        device="cpu",
    )  # fmt: skip
    splits = random_splits(arguments.steps * arguments.batch, arguments.stored)
    speeds: dict[str, list[float]] = {"by hand": [], "ours": []}
    for _ in range(arguments.rounds + 1):
        for name, seconds in (
            ("by hand", by_hand(fresh(model), splits, recipe, model.input_shape)),
            ("ours", ours(fresh(model), splits, recipe, model.input_shape)),
        ):
            speeds[name].append(arguments.steps * arguments.batch / seconds)
    del speeds["by hand"][0], speeds["ours"][0]  # warming up
    ratios = sorted(mine / other for mine, other in zip(speeds["ours"], speeds["by hand"], strict=True))
    loading = loading_seconds(splits, recipe, model.input_shape) * statistics.median(speeds["ours"])
    cpu = current_cpu()
    print(
        f"{arguments.model}, {model.image_size} px, batch {arguments.batch}, {torch.get_num_threads()} threads; "
        f"{cpu.model}, {cpu.isa}"
    )
    for name, each in speeds.items():
        print(f"{name:8} {statistics.median(each):8.1f} images a second")
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"ours / by hand: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]; images: {100 * loading:.1f} %")


def fresh(model: Model) -> nn.Module:
    """A network with the same weights every time."""
    torch.manual_seed(0)
    return model.build(CLASSES)


def random_splits(count: int, size: int) -> Splits:
    """Images of noise: what they show makes no step longer."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, count)
    train, one = Split(images=images, labels=labels), Split(images=images[:1], labels=labels[:1])
    return Splits(
        train=train, val=one, test=one, classes=tuple(map(str, range(CLASSES))), mean_C=MEAN, std_C=STD, fingerprint=""
    )


def ours(network: nn.Module, splits: Splits, recipe: Recipe, input_shape: Shape) -> float:
    """Seconds of an epoch, validation of one image included."""
    _, (epoch,) = train(network, splits, recipe=recipe, input_shape=input_shape, seed=0, title="")
    return epoch.seconds


def by_hand(network: nn.Module, splits: Splits, recipe: Recipe, input_shape: Shape) -> float:
    """Seconds of as many steps on images that are ready."""
    images = preprocess(splits.train.images, input_shape=input_shape, mean_C=MEAN, std_C=STD)
    labels = torch.from_numpy(splits.train.labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, fused=True)
    network.train()
    start = time.monotonic()
    for batch in torch.randperm(len(images)).split(recipe.batch_size):
        loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimizer.step()
    return time.monotonic() - start


def loading_seconds(splits: Splits, recipe: Recipe, input_shape: Shape) -> float:
    """Seconds that an image takes from the store to the network, in batches."""
    generator = torch.Generator().manual_seed(0)
    images, batch = splits.train.images, recipe.batch_size
    augmentation = Augmentation(
        recipe.augment, image_size=images.shape[1:3], num_classes=len(splits.classes), key="augment"
    )
    start = time.monotonic()
    for chosen in torch.randperm(len(images)).split(batch):
        drawn = augmentation.draw(len(chosen), generator)
        changed = augmentation.change(torch.from_numpy(images[chosen.numpy()]), drawn)
        preprocess(changed, input_shape=input_shape, mean_C=MEAN, std_C=STD)
    return (time.monotonic() - start) / len(images)


if __name__ == "__main__":
    main()
