"""The final race: artifacts of several engines, each in a process of its own, one block after the other in turn.

Several engines in one process would disturb each other by their threads. Here all but one sleep. Each process waits for
its turn at a pipe with a name, and wakes the next one when its block is done.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep import stats
from bitsweep.config.backend import Backend
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.measuring.from_memory import between_processes, share_of
from bitsweep.measuring.others import Others
from bitsweep.measuring.pace import Moment, Pace, drift, steady, typical_effect
from bitsweep.measuring.timing import (
    FEWEST_STEADY,
    LONGEST_BLOCK,
    badness_of,
    batch_of,
    block,
    pin,
    runs_a_block,
    too_few,
)
from bitsweep.results import Array, RaceTime
from bitsweep.runtime.environment import last_cache_bytes, physical_cores
from bitsweep.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """What takes part in a race.

    Attributes:
        examples: ``.npy`` file of images as it takes them.
    """

    artifact: Path
    backend: Backend
    examples: Path


def prepare(lanes: Path, count: int) -> None:
    """Make the pipes at which entrants wait for their turn."""
    for rank in range(count):
        os.mkfifo(lanes / str(rank))


def race(
    *,
    entrants: tuple[Entrant, ...],
    protocol: MeasurementProtocol,
    lanes: Path,
    folder: Path,
    progress: Progress,
    rank: int,
) -> None:
    """Run one entrant whenever it is its turn: loading and warming up first, then its blocks, forth and back.

    Args:
        lanes: folder with the pipes.
        folder: gets ``RANK.npz``, the raw samples, and ``RANK.json``, how quiet the machine was.
    """
    entrant = entrants[rank]
    threads = protocol.threads or physical_cores()
    pin(threads)
    images = batch_of(np.load(entrant.examples), protocol.batch_sizes[0])
    blocks: list[Array] = []
    others, moments = Others(), list[list[Moment]]()
    with Pace() as pace:
        for number in _turns(lanes, len(entrants), protocol.blocks, rank):
            if number == 0:
                infer = entrant.backend.load(entrant.artifact, threads=threads)
                runs = runs_a_block(infer, images, protocol)
                continue
            before = pace()
            with others.watched():
                timed = block(infer, images, runs, longest_s=LONGEST_BLOCK * protocol.block_s)
            blocks.append(timed)
            moments.append([before, pace()])
    np.savez_compressed(folder / f"{rank}.npz", allow_pickle=False, **{str(i): each for i, each in enumerate(blocks)})
    (folder / f"{rank}.json").write_text(
        json.dumps(
            _quiet(others, moments, blocks, protocol, computes=not entrant.backend.on_gpu)
            | {"from_memory": _from_memory(entrant, blocks)}
        )
    )


def _from_memory(entrant: Entrant, blocks: list[Array]) -> float:
    ms = float(np.median(np.concatenate(blocks)))
    return share_of(entrant.artifact, entrant.backend, ms, cache=last_cache_bytes())


def _turns(lanes: Path, count: int, rounds: int, rank: int) -> Iterator[int]:
    """Wait for every turn of one of several, and pass it on after it: 0 to get ready, then its blocks from 1 on."""
    forth = list(range(count))
    order = [who for turn in range(rounds + 1) for who in (forth if turn % 2 == 0 else reversed(forth))]
    pipes = [os.open(lanes / str(each), os.O_RDWR) for each in forth]
    number = 0
    for turn, who in enumerate(order):
        if who != rank:
            continue
        if turn:
            os.read(pipes[rank], 1)
        yield number
        number += 1
        if turn + 1 < len(order):
            os.write(pipes[order[turn + 1]], b".")


def _quiet(
    others: Others, moments: list[list[Moment]], blocks: list[Array], protocol: MeasurementProtocol, *, computes: bool
) -> dict[str, float | bool | list[int]]:
    """What an entrant knows of the noise during its own blocks."""
    rounds = steady(moments, protocol.max_slowdown)
    counted = rounds or range(len(blocks))
    change = drift([moments[number] for number in counted])
    spread = stats.relative_iqr(np.concatenate([blocks[number] for number in counted]))
    badness = badness_of(protocol, drift=change, spread=spread, foreign_share=others.share, steady_turns=len(rounds))
    return {
        "noisy": badness > 1, "crowded": others.crowd(protocol, computes=computes), "badness": badness,
        "drift": change, "spread": spread, "steady": rounds,
        "slowdown": typical_effect(moments), **others.figures,
    }  # fmt: skip


def unrest(folder: Path) -> tuple[bool, float]:
    """Whether others used the cores in a race, and how far it was from quiet: above 1 some entrant was noisy."""
    files = sorted(folder.glob("*.npz"))
    heard = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    rounds = len(_blocks(files[0]))
    shortage = FEWEST_STEADY * rounds / max(1, len(_steady_for_all(heard, rounds)))
    return any(each["crowded"] for each in heard), max(shortage, *(each["badness"] for each in heard))


def _steady_for_all(heard: list[dict[str, Any]], rounds: int) -> list[int]:
    """Rounds that were steady for every entrant.

    Args:
        heard: what each entrant knows of the noise.
    """
    return sorted(set(range(rounds)).intersection(*(each["steady"] for each in heard)))


def times(folder: Path, *, confidence: float) -> list[RaceTime]:
    """How each entrant did, in the order in which they were given."""
    files = sorted(folder.glob("*.npz"), key=lambda file: int(file.stem))
    noise = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    every = [_blocks(file) for file in files]
    rounds = len(every[0])
    counted = _steady_for_all(noise, rounds)
    if disturbed := too_few(len(counted), rounds):
        counted = list(range(rounds))
    blocks = [[own[number] for number in counted] for own in every]
    p50_ms = [float(np.median(np.concatenate(each))) for each in blocks]
    winner = int(np.argmin(p50_ms))
    crowded = any(each["crowded"] for each in noise)
    found = []
    for own, ms, heard in zip(blocks, p50_ms, noise, strict=True):
        low_ms, high_ms = stats.median_interval(own, confidence=confidence, seed=0)
        if own is blocks[winner]:
            ratio = stats.Speedup(ratio=1.0, low=1.0, high=1.0, verdict="not distinguishable")
        elif crowded:
            ratio = stats.undecided_speedup(own, blocks[winner])
        else:
            between = between_processes(heard.get("from_memory", 0.0), noise[winner].get("from_memory", 0.0))
            slowdown = max(heard["slowdown"], noise[winner]["slowdown"]) if disturbed else 1.0
            ratio = stats.paired_speedup(
                own, blocks[winner], confidence=confidence, seed=0, between=between, slowdown=slowdown
            )
        found.append(
            RaceTime(
                p50_ms=ms, low_ms=low_ms, high_ms=high_ms, times=ratio.ratio, times_low=ratio.low,
                times_high=ratio.high, noisy=bool(heard["noisy"]) or disturbed, crowded=crowded,
            )
        )  # fmt: skip
    return found


def _blocks(file: Path) -> list[Array]:
    with np.load(file, allow_pickle=False) as stored:
        return [stored[str(number)] for number in range(len(stored.files))]
