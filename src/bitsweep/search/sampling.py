"""Points of spaces that are too large to list, proposed a few at a time by a sampler that learns from those before.

The sampler is Optuna's tree-structured Parzen estimator (Bergstra 2011, "Algorithms for hyper-parameter optimization").
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitsweep.cell import Cell
from bitsweep.search.budget import Budget

if TYPE_CHECKING:
    from optuna.trial import Trial

#: Points that are proposed at a time. The first are drawn evenly, all others by what is known of those before.
BATCH = 8
#: Significant digits of a number that is proposed.
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Numbers from one to another, both included.

    Attributes:
        whole: whether only whole numbers count.
        log: whether equal ratios, instead of equal differences, are equally likely at first.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def word(self, value: float) -> str:
        """A number as a value in a command line, with few digits."""
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high))


#: Key of an override -> its values as words, or an interval.
Space = Mapping[str, tuple[str, ...] | Interval]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What a search chooses from.

    Attributes:
        spaces: by the name of the grid.
        cell_at: the cell that overrides make, one for each key of a space.
        command: that searches it.
    """

    spaces: Mapping[str, Space]
    cell_at: Callable[[list[str]], Cell]
    command: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is known of a cell at a point, or foreseen of it.

    Attributes:
        cost: the objective; the less, the better.
        accuracy: share of the images that are right; 0 where it is not known.
        excess: by how much limits are missed, as shares of them, added up; none where 0.
    """

    cost: float
    accuracy: float
    excess: float


def corners(space: Space) -> list[list[str]]:
    """As few points as have every listed value, and the ends of every interval."""
    ends = {
        key: [each.word(each.low), each.word(each.high)] if isinstance(each, Interval) else each
        for key, each in space.items()
    }
    most = max(map(len, ends.values()))
    return [[f"{key}={words[min(at, len(words) - 1)]}" for key, words in ends.items()] for at in range(most)]


class Points:
    """Cells at points of one space or several. The same figures make the same points follow."""

    def __init__(self, spaces: Mapping[str, Space], budget: Budget, *, cell_at: Callable[[list[str]], Cell]) -> None:
        """Start a study, which nothing is known in yet.

        Args:
            spaces: by name.
            budget: how many points there are to be, and their seed.
            cell_at: the cell that overrides of a command line make.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._spaces, self._cell_at, self._left = spaces, cell_at, budget.points
        sampler = optuna.samplers.TPESampler(seed=budget.seed, n_startup_trials=BATCH)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._open: list[tuple[Trial, Cell]] = []
        self._seen: set[Cell] = set()

    @property
    def knobs(self) -> list[str]:
        """Names of the knobs that points differ in."""
        varying = [
            key
            for space in self._spaces.values()
            for key, values in space.items()
            if isinstance(values, Interval) or len(values) > 1
        ]
        return [key.lstrip("+") for key in varying if "." in key]

    def propose(self) -> list[Cell]:
        """The cells at the next points, without those that were proposed before; none once there are enough points."""
        batch = min(BATCH, self._left)
        self._left -= batch
        for _ in range(batch):
            trial = self._study.ask()
            self._open.append((trial, self._cell_at(self._point(trial))))
        fresh = dict.fromkeys(cell for _, cell in self._open if cell not in self._seen)
        self._seen |= fresh.keys()
        return list(fresh)

    def tell(self, figures: Callable[[Cell], Figures | None]) -> None:
        """Tell the sampler what became of the points that it proposed last; None where there are no figures."""
        from optuna.trial import TrialState

        for trial, cell in self._open:
            known = figures(cell)
            if known is None:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            trial.set_constraint("limits", known.excess)
            self._study.tell(trial, [known.cost, -known.accuracy])
        self._open = []

    def _point(self, trial: "Trial") -> list[str]:
        """Overrides, one for each key of a space."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a space has keys which another lacks
            name = _one_of(trial, "space", self._spaces)
            words = ((key, _word(trial, f"{name} {key}", each)) for key, each in self._spaces[name].items())
            return [f"{key}={word}" for key, word in words]


def _word(trial: "Trial", name: str, values: tuple[str, ...] | Interval) -> str:
    if not isinstance(values, Interval):
        return _one_of(trial, name, values)
    if values.whole:
        return values.word(trial.suggest_int(name, int(values.low), int(values.high), log=values.log))
    return values.word(trial.suggest_float(name, values.low, values.high, log=values.log))


def _one_of(trial: "Trial", name: str, values: Iterable[str]) -> str:
    known = list(values)
    return known[0] if len(known) == 1 else str(trial.suggest_categorical(name, known))
