"""Networks in which everything occurs that methods must cope with."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bitsweep.graphs import tracing
from bitsweep.graphs.folding import fold_batch_norm
from bitsweep.results import Split, Splits

SIZE = 8
#: Channels of the tokens of the transformer.
WIDTH = 8


class Mixed(nn.Module):
    """A grouped and a depthwise convolution, a shortcut, a stride, an average, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=2, dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(8, 12, 3, stride=2)
        self.hidden, self.head = nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(images)))
        y = torch.relu(self.grouped(x))
        y = nn.functional.relu6(self.depthwise(y))
        x = torch.relu(x + self.point(y))
        x = torch.relu(self.down(x)).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer normalisation and added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.hidden, self.out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        N, T, _ = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(N, T, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, T, WIDTH)
        x = x + self.proj(y)
        return x + self.out(torch.relu(self.hidden(self.behind(x))))


class Transformer(nn.Module):
    """Patches with a token for the class, a block, and a layer that reads that token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.token = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.block, self.last, self.head = Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.last(self.block(x))[:, 0])


def mixed() -> GraphModule:
    """The traced network with its normalisation folded."""
    torch.manual_seed(0)
    network = Mixed()
    network(torch.randn(16, 3, SIZE, SIZE))
    graph = tracing.trace(network.eval(), input_shape=(3, SIZE, SIZE))
    fold_batch_norm(graph)
    return graph


def images(count: int = 12, *, batch: int = 6) -> list[Tensor]:
    """Batches of random images."""
    return list(torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).split(batch))


def noise_splits(size: int) -> Splits:
    """64 random images of four classes, which serve for training and testing alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
    split = Split(images=pixels, labels=np.arange(64) % 4)
    about = {"classes": tuple("abcd"), "mean_C": (0.5,) * 3, "std_C": (0.25,) * 3, "fingerprint": ""}
    return Splits(train=split, val=split, test=split, **about)
