"""Random shifts and mirroring of images.

Shape letters: N images, C channels, H height, W width.
"""

import torch
from torch import Tensor


def draw_moves(count: int, height: int, width: int, *, how: str, generator: torch.Generator) -> Tensor | None:
    """How each image is to be moved: int64 [N, 3], pixels down, pixels right, and 1 to mirror it; None to move none.

    Args:
        how: ``none``, ``shift`` (by up to an eighth of the size in each direction) or ``shift_flip``.
    """
    if how == "none":
        return None
    down = torch.randint(-(height // 8), height // 8 + 1, (count,), generator=generator)
    right = torch.randint(-(width // 8), width // 8 + 1, (count,), generator=generator)
    mirrored = torch.zeros(count, dtype=torch.int64)
    if how == "shift_flip":
        mirrored = (torch.rand(count, generator=generator) < 0.5).long()
    return torch.stack([down, right, mirrored], 1)


def move(images_NHWC: Tensor, moves_N3: Tensor) -> Tensor:
    """Move images, on their device; edges are repeated."""
    N, H, W, _ = images_NHWC.shape
    device = images_NHWC.device
    down, right, mirrored = moves_N3.to(device).T[:, :, None]
    rows = (torch.arange(H, device=device) + down).clamp(0, H - 1)
    columns = (torch.arange(W, device=device) + right).clamp(0, W - 1)
    columns = torch.where(mirrored == 1, columns.flip(1), columns)
    return images_NHWC[torch.arange(N, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
