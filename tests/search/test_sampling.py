"""Points of intervals that are proposed, and a search of them whose figures are known."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from omegaconf import DictConfig

from bitsweep import api
from bitsweep.cell import Cell
from bitsweep.config.requirement import Requirements
from bitsweep.errors import ConfigError
from bitsweep.report import Row
from bitsweep.search.budget import Budget
from bitsweep.search.candidates import Candidate, candidate_of
from bitsweep.search.prospects import Known, Screening, name_of
from bitsweep.search.sampling import BATCH, Interval, Points, corners
from bitsweep.search.strategy import Found, search
from bitsweep.several_values import spaces

BUDGET = Budget(cells=8, points=32, seed=3)
BEST = 0.01


@pytest.fixture(scope="module")
def base() -> Cell:
    """A cell whose method has a knob with a continuous range."""
    (cell,) = api.grid("model=lenet dataset=digits method=gptq precision=int4 backend=reference")
    return cell


@dataclass
class Damped:
    """A network that loses the more images, the further the damping is from the best one; and what was asked for."""

    asked: list[str] = field(default_factory=list)

    def screen(self, candidate: Candidate) -> Screening:
        self.asked.append(candidate.choices["method.damping"])
        lost = round(100 * abs(math.log10(self.damping(candidate) / BEST)))
        return Screening(size_mb=0.1, images=1000, right=950 - lost, lost=lost, gained=0)

    def measure(self, candidate: Candidate) -> Row:
        found = self.screen(candidate)
        metrics = {"top1": found.accuracy, "size_mb": 0.1, "validation_top1": found.accuracy, "validation_images": 1e3}
        return Row(cell=candidate.choices, status="finished", metrics=metrics, command="")

    @staticmethod
    def damping(candidate: Candidate) -> float:
        return float(candidate.choices["method.damping"])

    @property
    def seconds(self) -> float:
        return float(len(self.asked))


def searched(base: Cell, evidence: Damped) -> tuple[Found, list[list[float]]]:
    """How a search of the damping ends, and the dampings that were proposed, batch by batch."""
    proposed: list[list[float]] = []
    candidates: dict[Cell, Candidate] = {}

    def cell_at(overrides: Sequence[str]) -> Cell:
        (word,) = (each.removeprefix("method.damping=") for each in overrides if each.startswith("method.damping="))
        return replace(base, method=replace(base.method, damping=float(word)), knobs=(("method.damping", word),))

    def described(cells: Sequence[Cell]) -> list[Candidate]:
        candidates.update({cell: candidate_of(cell) for cell in cells})
        proposed.append([evidence.damping(candidates[cell]) for cell in cells])
        return [candidates[cell] for cell in cells]

    space = {"method": ("gptq",), "method.damping": Interval(low=1e-4, high=1, log=True)}
    points = Points({"": space}, BUDGET, cell_at=cell_at)

    def more(known: Known) -> list[Candidate]:
        points.tell(lambda cell: known.figures(candidates[cell]))
        return described(points.propose())

    first, require = described(points.propose()), Requirements(objective="accuracy")
    found = search(first, evidence, require=require, budget=BUDGET, confidence=0.95, more=more)
    assert {*found.measured} | {*found.reasons} == {name_of(each) for each in candidates.values()}
    return found, [batch for batch in proposed if batch]


def test_points_come_nearer_to_the_best_and_go_on_after_a_kill_with_the_same(base: Cell) -> None:
    whole = Damped()
    _, batches = searched(base, whole)
    away = [[abs(math.log10(damping / BEST)) for damping in batch] for batch in batches]
    assert len(batches) == BUDGET.points / BATCH
    assert statistics.median(itertools.chain(*away[1:])) < statistics.median(away[0]) / 2

    class Killed(Damped):
        def screen(self, candidate: Candidate) -> Screening:
            if len(self.asked) == 15:
                raise KeyboardInterrupt
            return super().screen(candidate)

    killed, again = Killed(), Damped()
    with pytest.raises(KeyboardInterrupt):
        searched(base, killed)
    assert searched(base, again)[1] == batches
    assert again.asked == whole.asked and whole.asked[: len(killed.asked)] == killed.asked


def test_a_point_without_figures_is_none_of_the_best(base: Cell) -> None:
    cell = replace(base, knobs=(("method.damping", "0.01"),))
    candidate, known = candidate_of(cell), Known(Requirements(objective="accuracy"), 0.95)
    assert known.figures(candidate) is None  # its program was not even made
    known.learn_program(candidate, Damped().screen(candidate))
    foreseen = known.figures(candidate)
    assert foreseen and (foreseen.cost, foreseen.accuracy, foreseen.excess) == (-0.95, 0.95, 0)
    known.without_figures.add(name_of(candidate))
    assert known.figures(candidate) is None
    known.learn_program(candidate, Screening(failed="cannot be traced"))
    assert known.figures(candidate) is None


def test_figures_of_what_is_measured_and_foreseen_have_one_unit(base: Cell) -> None:
    candidate, known = candidate_of(base), Known(Requirements(objective="throughput"), 0.95)
    figures = {"top1": 0.9, "latency_p50_ms": 2.0, "throughput_ips": 500.0, "size_mb": 0.1}
    known.learn(
        replace(candidate, choices={"model": "another"}), Row(cell={}, status="finished", metrics=figures, command="")
    )
    foreseen = known.figures(candidate)
    assert foreseen and foreseen.cost == pytest.approx(1.8)  # another with the same kernels may be a tenth faster
    known.learn(candidate, Row(cell=candidate.choices, status="finished", metrics=figures, command=""))
    measured = known.figures(candidate)
    assert measured and measured.cost == 2


def test_intervals_are_read_as_hydra_writes_them() -> None:
    words = [
        "model=lenet,mlp",
        "method.damping=tag(log,interval(0.001,0.1))",
        "method.calibration_images=int(interval(8,64))",
    ]
    config = DictConfig({"method": {"calibration_images": 256, "sigmas": 3.0}})
    found = spaces(words, params={}, grids={"": {}}, loader=None, config=config)
    damping, images = Interval(low=0.001, high=0.1, log=True), Interval(low=8, high=64, whole=True)
    assert found == {"": {"model": ("lenet", "mlp"), "method.damping": damping, "method.calibration_images": images}}
    assert spaces(words[:1], params={}, grids={"": {}}, loader=None, config=config) == {}
    plain = ["method.calibration_images=interval(8,64)", "method.sigmas=interval(2,4)"]
    assert spaces(plain, params={}, grids={"": {}}, loader=None, config=config)[""] == {
        "method.calibration_images": images,
        "method.sigmas": Interval(low=2, high=4),
    }
    assert [damping.word(0.0123456), damping.word(0.0999999), images.word(9.0)] == ["0.01235", "0.1", "9"]
    assert corners(found[""]) == [
        ["model=lenet", "method.damping=0.001", "method.calibration_images=8"],
        ["model=mlp", "method.damping=0.1", "method.calibration_images=64"],
    ]


def test_an_interval_is_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"train.lr=interval\(0.1,1\): an interval has no end of values; name them"):
        api.grid(["train.lr=interval(0.1,1)"])
