import torch

from bitsweep.training.augmentation import draw_moves, move


def test_augmentation_moves_whole_images() -> None:
    images = torch.arange(16 * 16, dtype=torch.int16).reshape(1, 16, 16, 1).repeat(200, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    shifts = draw_moves(200, 16, 16, how="shift", generator=generator)
    assert shifts is not None
    moved = move(images, shifts)
    inner = moved[:, 2:-2, 2:-2, 0]
    offsets = inner[:, 0, 0] - images[0, 2, 2, 0]
    down = torch.div(offsets + 8, 16, rounding_mode="floor")
    right = offsets - 16 * down
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
    assert (inner - offsets[:, None, None] == images[0, 2:-2, 2:-2, 0]).all()
    flips = draw_moves(200, 16, 16, how="shift_flip", generator=generator)
    assert flips is not None
    mirrored = move(images, flips)
    decreasing = (mirrored[:, 8, 8, 0] < mirrored[:, 8, 7, 0]).double().mean()
    assert 0.35 < decreasing < 0.65
    assert draw_moves(200, 16, 16, how="none", generator=generator) is None
