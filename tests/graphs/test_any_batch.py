"""Programs that were written for one number of images give for any number what they give for each image."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitsweep.errors import CompressionError
from bitsweep.graphs import tracing
from bitsweep.graphs.any_batch import any_batch

SIZE = 8


class Tokens(nn.Module):
    """Attention as exporters write it down: a token for each image, and heads beside the images."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        x = x.reshape(x.shape[0], 16, -1).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        logits: Tensor = self.head(x[:, 0])
        return logits


class Windows(nn.Module):
    """Windows that are taken apart, joined to the images, and put together again."""

    def forward(self, images: Tensor) -> Tensor:
        n, c, h, w = images.shape
        x = images.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
        x = torch.relu(x.mean((2, 3))).view(n, -1, c)
        return x.flatten(1)


class OverImages(nn.Module):
    """Looks at all images at once."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] - images.mean()


def exported(network: nn.Module, batch: int) -> torch.export.ExportedProgram:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return torch.export.export(network.eval(), (torch.randn(batch, 3, SIZE, SIZE),))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("make", [Tokens, Windows])
def test_any_number_of_images(make: Any, batch: int) -> None:
    torch.manual_seed(0)
    network = make().eval()
    freed = any_batch(exported(network, batch))
    images = torch.randn(7, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(freed(images), network(images), rtol=1e-4, atol=1e-5)
        program = tracing.export(freed, input_shape=(3, SIZE, SIZE))
        torch.testing.assert_close(program.module()(images), network(images), rtol=1e-4, atol=1e-5)


def test_what_depends_on_the_number_of_images_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"takes 2 images at a time and no other number; export it with dynamic"):
        any_batch(exported(OverImages(), 2))
