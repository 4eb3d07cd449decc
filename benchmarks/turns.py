"""Contestants in processes of their own, which run block by block in turn: as many at a time as fit the memory.

Those that do not fit together race in groups. The reference and the leaders of a group stay for the next one, so that
in the last group the best have raced each other in the same rounds.
"""

import multiprocessing
from collections.abc import Callable, Collection, Iterable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import psutil
from contestants import first_answer

from bitsweep import stats
from bitsweep.results import Array

#: Answers through a connection: what a contestant makes of the images, or in one line why it does not take part; then
#: latencies in ms for every number of seconds.
Run = Callable[..., None]
#: Name -> number of the round -> latencies in ms.
Blocks = dict[str, dict[int, Array]]


class Turns:
    """The contestants that are alive, and what all have been measured to take.

    Attributes:
        blocks: of every round that a contestant ran in.
        answers: what contestants computed.
        missing: why the others did not take part.
        groups: names of those that raced together.
    """

    def __init__(self, *, memory_bytes: float, leaders: Callable[[Blocks, Collection[str]], Collection[str]]) -> None:
        """Nobody is alive yet.

        Args:
            memory_bytes: what the contestants that are alive may take together.
            leaders: names of those that stay for the next group, of measured blocks and the names in this one.
        """
        self.blocks: Blocks = {}
        self.answers: dict[str, Array] = {}
        self.missing: dict[str, str] = {}
        self.groups: list[list[str]] = []
        self._memory_bytes, self._leaders = memory_bytes, leaders
        self._alive: dict[str, tuple[Connection, BaseProcess]] = {}
        self._rounds = 0

    def race(self, names: Iterable[str], run: Run, *arguments: Any, rounds: int, block_s: float) -> None:
        """Build contestants one after the other, since compilers take all the CPUs there are, and let them run."""
        waiting = False
        for name in names:
            if waiting and self._is_full():
                self._run(rounds, block_s)
                self._dismiss()
                waiting = False
            waiting |= self._start(name, run, arguments)
        if waiting:
            self._run(rounds, block_s)
        for name in list(self._alive):
            self._stop(name)

    def _start(self, name: str, run: Run, arguments: tuple[Any, ...]) -> bool:
        context = multiprocessing.get_context("spawn")
        lane, theirs = context.Pipe()
        process = context.Process(target=run, args=(theirs, name, *arguments), daemon=True)
        process.start()
        theirs.close()
        answer = first_answer(lane, process)
        self._alive[name] = lane, process
        if isinstance(answer, str):
            self.missing[name] = answer
            self._stop(name)
            return False
        self.answers[name], self.blocks[name] = answer, {}
        return True

    def _is_full(self) -> bool:
        """Whether another one as large as the largest might not fit."""
        taken = [psutil.Process(process.pid).memory_full_info().uss for _, process in self._alive.values()]
        return len(taken) > 1 and sum(taken) + max(taken) > self._memory_bytes

    def _run(self, rounds: int, block_s: float) -> None:
        self.groups.append(list(self._alive))
        for turn in range(self._rounds, self._rounds + rounds):
            for name in self._alive if turn % 2 == 0 else reversed(self._alive):
                lane, _ = self._alive[name]
                lane.send(block_s)
                self.blocks[name][turn] = lane.recv()
        self._rounds += rounds

    def _dismiss(self) -> None:
        kept = self._leaders(self.blocks, self._alive)
        for name in [name for name in self._alive if name not in kept]:
            self._stop(name)

    def _stop(self, name: str) -> None:
        lane, process = self._alive.pop(name)
        process.kill()
        process.join()
        lane.close()


def milliseconds(blocks: dict[int, Array]) -> float:
    """Median latency."""
    return float(np.median(np.concatenate(list(blocks.values()))))


def relative(blocks: dict[int, Array], reference: dict[int, Array]) -> float:
    """How many times as long as the reference in the rounds that both ran in; comparable between groups."""
    shared = blocks.keys() & reference.keys()
    return float(np.median([np.median(blocks[turn]) / np.median(reference[turn]) for turn in shared]))


def ratio(numerator: dict[int, Array], denominator: dict[int, Array]) -> str:
    """Median of ratios, paired by round, with its 95 % interval."""
    shared = sorted(numerator.keys() & denominator.keys())
    found = stats.paired_speedup(
        [numerator[turn] for turn in shared], [denominator[turn] for turn in shared], confidence=0.95, seed=0
    )
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"
