"""How an artifact is measured."""

from typing import Annotated

import pydantic
from pydantic import Field

from bitsweep.config.configurable import NOT_IN_KEYS, Choice, Count, Several, Share, configurable


def _distinct(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if twice := sorted({size for size in sizes if sizes.count(size) > 1}):
        raise ValueError(f"should hold each size once, and {twice[0]} stands there more often")
    return sizes


@configurable
class MeasurementProtocol(Choice):
    """How an artifact is measured.

    Attributes:
        threads: intra-op threads of the engine and CPUs it may run on; 0 takes the physical cores.
        batch_sizes: the first is the one that latency metrics without a suffix mean.
        warmup_s: seconds of warm-up for each artifact and batch size.
        blocks: timed blocks of each artifact, interleaved A B B A; a pair of blocks gives one paired ratio.
        block_s: least seconds a block lasts.
        confidence: of all intervals.
        max_drift: largest relative change of a fixed kernel's time from the first half of the blocks to the second;
            above it the run is noisy.
        max_spread: largest interquartile range of the latency relative to its median; above it the run is noisy.
        max_foreign_share: largest part of the CPUs' time that other processes may take; above it the run is noisy.
        max_slowdown: how much slower than at their best the cores may be, as a share, in arithmetic and in answering
            each other; slower blocks are measured again, and where too few are left the run is noisy.
        repeats: how often a run that is noisy, or whose cores others use, is repeated at most.
        eval_batch: images a batch when measuring accuracy.
        parity_images: test images on which an artifact is compared with the reference, at most; each class has its
            share. Accuracy is that of all test images.
        validation_images: on which cells are judged and chosen, at most; each class has its share. Accuracy on test
            images is reported once, of what was chosen.
        final: how many cells of a network at most, each the fastest on its engine, race each other when all cells are
            measured; below 2 none do.
        memory: whether to measure peak memory in a pass of its own.
    """

    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    batch_sizes: Annotated[Several[Count], Field(min_length=1), pydantic.AfterValidator(_distinct)] = (1,)
    warmup_s: Annotated[float, Field(ge=0, le=3600)] = 0.3
    blocks: Annotated[int, Field(ge=6, le=100_000)] = 20
    block_s: Annotated[float, Field(gt=0, le=3600)] = 0.05
    confidence: Share = 0.95
    max_drift: Annotated[float, Field(gt=0)] = 0.15
    max_spread: Annotated[float, Field(gt=0)] = 0.25
    max_foreign_share: Annotated[float, Field(gt=0)] = 0.15
    max_slowdown: Annotated[float, Field(gt=0)] = 0.25
    repeats: Annotated[int, Field(ge=0)] = 2
    eval_batch: Count = 64
    parity_images: Count = 1000
    validation_images: Count = 5000
    final: Annotated[int, Field(ge=0), NOT_IN_KEYS] = 3
    memory: bool = True
