"""Contestants race in groups that fit the memory, and the best of all groups in the last one together."""

import os
from collections.abc import Collection
from multiprocessing.connection import Connection

import numpy as np
import pytest
from turns import Blocks, Turns, ratio, relative

#: Name -> ms of a run; "absent" takes no part.
SPEEDS = {"reference": 8.0, "slow": 4.0, "fast": 1.0, "medium": 2.0}


def contestant(lane: Connection, name: str) -> None:
    """Answers at once what a block of runs would have taken."""
    if name == "absent":
        lane.send("is not installed")
        return
    if name == "killed":
        os._exit(9)
    lane.send(np.full((1, 2), SPEEDS[name]))
    while True:
        seconds = lane.recv()
        lane.send(np.full(3, SPEEDS[name] * seconds))


def leaders(blocks: Blocks, names: Collection[str]) -> set[str]:
    rivals = [name for name in names if name != "reference"]
    return {"reference", min(rivals, key=lambda name: relative(blocks[name], blocks["reference"]))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory_bytes", "groups"),
    [
        (1e12, [["reference", "slow", "fast", "medium"]]),
        (0, [["reference", "slow"], ["reference", "slow", "fast"], ["reference", "fast", "medium"]]),
    ],
)
def test_as_many_are_alive_as_fit_the_memory(memory_bytes: float, groups: list[list[str]]) -> None:
    turns = Turns(memory_bytes=memory_bytes, leaders=leaders)
    turns.race(["reference", "absent", "slow", "fast", "killed", "medium"], contestant, rounds=2, block_s=1.0)
    assert turns.groups == groups
    assert turns.missing == {"absent": "is not installed", "killed": "its process ended with code 9"}
    assert len(turns.blocks["reference"]) == 2 * len(groups)
    assert len(turns.blocks["slow"]) == 2 * sum("slow" in group for group in groups)
    assert ratio(turns.blocks["medium"], turns.blocks["fast"]) == "2.00 [1.95, 2.05]"  # what differs between processes
    assert relative(turns.blocks["slow"], turns.blocks["reference"]) == 0.5
