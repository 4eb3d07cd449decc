"""The files that ``bitsweep init`` writes: a network, a data set and a grid of one's own, to be edited."""

from pathlib import Path

from bitsweep.errors import UsageError

_NETWORK = '''"""The network. It is called with num_classes where it asks for it; images come as float [N, C, H, W]."""

from torch import Tensor, nn


class MyNet(nn.Module):
    """Put your own class here, or a function that makes your network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
'''

_MODEL = """# Your network.    bitsweep run --config-dir conf model=mine
defaults:
  - own                  # all knobs of model=own; those below differ
  - _self_

name: mine
factory: nets.py:MyNet   # a file and a name in it; or package.module:name
arguments: {}            # what it is called with, besides num_classes
image_size: 64           # or [height, width]
# channels: 1            # of its images, if they are not 3
# weights: best.pt       # a state_dict; measured as it is with train=pretrained, else trained on
# mean: [0.485, 0.456, 0.406] # as your own script normalises, with std; else by the training images
# std: [0.229, 0.224, 0.225]
"""

_DATASET = """# Your images.    bitsweep run --config-dir conf dataset=mine
defaults:
  - image_folder         # all knobs of dataset=image_folder; those below differ
  - _self_

name: mine
root: images             # with a folder for each class, or train/CLASS and test/CLASS
store_size: 64           # the image_size of the network, or more
# test_share: 0.2        # of each class, where there are no train and test folders
"""

_SWEEP = """# @package _global_
# The grid.    bitsweep run --config-dir conf sweep=mine
defaults:
  - override /model: mine
  - override /dataset: mine
  - override /train: default # pretrained: model.weights as they are; finetune: a new head, then all of it
  - override /protocol: default

hydra:
  mode: MULTIRUN
  sweeper:
    params:
      precision: fp32,int8   # also fp16, int4, ...
      backend: onnxruntime   # also openvino, fbgemm, ...; those that cannot run say why
"""

_FILES = {
    "nets.py": _NETWORK,
    "conf/model/mine.yaml": _MODEL,
    "conf/dataset/mine.yaml": _DATASET,
    "conf/sweep/mine.yaml": _SWEEP,
}


def write_start(folder: Path) -> list[Path]:
    """Write the files into a folder, and say which.

    Raises:
        UsageError: one of them is there already; none is written then. Or the folder cannot be written.
    """
    paths = [folder / name for name in _FILES]
    if taken := [str(path) for path in paths if path.exists()]:
        raise UsageError(f"{', '.join(taken)}: there already; remove it, or name another folder: bitsweep init FOLDER")
    for path, text in zip(paths, _FILES.values(), strict=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror}); name another folder") from error
    return paths
