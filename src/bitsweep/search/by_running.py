"""What a search asks for, found by running stages of cells."""

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.cell_results import measurement_by_key
from bitsweep.report import Row
from bitsweep.results import Outcome
from bitsweep.runtime.store import Store
from bitsweep.search.candidates import Candidate, candidate_of
from bitsweep.search.prospects import Screening, name_of
from bitsweep.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    Launch = Callable[[Sequence[Cell], str], Sequence[Outcome]]

#: Stages that every cell needs, and whose time is no matter of the search.
_FREE = (stages.DATA.name, stages.BASELINE.name)


class ByRunning:
    """Runs stages where the store does not have their results, and counts the time that each took when it was run."""

    def __init__(self, *, launch: "Launch", store: Store) -> None:
        """Begin with no cells.

        Args:
            launch: runs cells as far as a stage.
        """
        self._launch, self._store = launch, store
        self._cells: dict[str, Cell] = {}
        self._candidates: dict[str, Candidate] = {}
        self._finished: set[Cell] = set()
        self._outcomes: dict[Cell, Outcome] = {}
        self._failed: dict[str, Outcome] = {}
        self._paid: dict[tuple[str, str], float] = {}

    def candidates(self, cells: Sequence[Cell], *, finished: Collection[Cell]) -> list[Candidate]:
        """Describe cells that there is evidence of to be asked for from now on.

        Args:
            finished: those of them that have a run in MLflow.
        """
        found = [candidate_of(cell) for cell in cells]
        self._candidates |= {stages.key_of(cell): each for cell, each in zip(cells, found, strict=True)}
        self._cells |= {name_of(each): cell for cell, each in zip(cells, found, strict=True)}
        self._finished |= set(finished)
        return found

    def candidate_of(self, cell: Cell) -> Candidate | None:
        """What a cell was described as, or another one with the same key; None where none was."""
        return None if cell.skip_reason() else self._candidates.get(stages.key_of(cell))

    @property
    def seconds(self) -> float:
        """What all stages took that were asked for, but data and baselines."""
        return sum(self._paid.values())

    def outcome_of(self, cell: Cell) -> Outcome | None:
        """How a cell ended, or that its program could not be made; None where it was not run."""
        return self._outcomes.get(cell) or self._failed.get(stages.COMPRESSED.key_of(cell))

    def screen(self, candidate: Candidate) -> Screening:
        """Make a program, and let its reference classify validation images."""
        cell = self._cells[name_of(candidate)]
        key = stages.SCREENING.key_of(cell)
        if not self._store.find(stages.SCREENING.name, key):
            (outcome,) = self._launch([cell], "screening")
            if outcome.status == "failed":
                self._failed[candidate.program] = outcome
                return Screening(failed=outcome.reason)
        self._pay(stages.needs(cell, stages.SCREENING))
        text = (self._store.folder(stages.SCREENING.name, key) / "screening.json").read_text()
        return Screening(**json.loads(text))

    def measure(self, candidate: Candidate) -> Row | None:
        """Measure a cell, unless it is finished."""
        cell = self._cells[name_of(candidate)]
        if cell not in self._finished:
            (self._outcomes[cell],) = self._launch([cell], "cell")
        measured = measurement_by_key(stages.key_of(cell), self._store)
        if measured is None:
            return None
        self._pay(stages.needs(cell))
        return Row(
            cell=cell.choices,
            status="finished",
            metrics=measured.metrics,
            flags=measured.flags,
            verdict=measured.verdict,
            command=cell.command,
            confidence=cell.protocol.confidence,
            batch=cell.protocol.batch_sizes[0],
        )

    def _pay(self, needed: Sequence[tuple[Stage, Cell]]) -> None:
        for stage, of in needed:
            place = stage.name, stage.key_of(of)
            if stage.name not in _FREE and self._store.find(*place):
                self._paid.setdefault(place, self._store.seconds(*place))
