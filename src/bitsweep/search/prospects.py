"""What a cell could reach at best, by all that is known of it and of cells that have something in common with it."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bitsweep.config.requirement import Requirements
from bitsweep.report import Row
from bitsweep.report.choice import TOLERATED_LOSS, cost
from bitsweep.report.verdict import accuracy, verdict_of
from bitsweep.results import AT_CHANCE, MOSTLY_FLOAT
from bitsweep.search.candidates import Candidate
from bitsweep.search.sampling import Figures

#: What other formats may gain on an engine over those that were measured there, as a share of their time, besides what
#: fewer bits may gain.
_OTHER_FORMATS = 0.8
#: Fewer bits than these are computed as if they were as many, and what is left in float as if it had these.
_LEAST_BITS, _FLOAT_BITS = 8, 32
#: How much faster one more cell with the same kernels may come out by chance, as a share; the less, the more were
#: measured.
_CHANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What the reference makes of validation images.

    Attributes:
        size_mb: what the layers need at their bits.
        images: that were classified; none where there are no validation images.
        right, lost, gained: how many of them are right, and against the baseline.
        failed: why there is nothing of this; empty otherwise.
    """

    size_mb: float = 0.0
    images: int = 0
    right: int = 0
    lost: int = 0
    gained: int = 0
    failed: str = ""

    @property
    def accuracy(self) -> float:
        """Share of the images that are right."""
        return self.right / self.images if self.images else 1.0

    @property
    def baseline_accuracy(self) -> float:
        """The same of the baseline."""
        return (self.right + self.lost - self.gained) / self.images if self.images else 1.0


class Known:
    """All that a search has found out so far.

    Attributes:
        screened: program -> what its reference does.
        measured: candidate -> its row, for those that have figures.
        without_figures: candidates that were run and have none.
    """

    def __init__(self, require: Requirements, confidence: float) -> None:
        self.require, self.confidence = require, confidence
        self.screened: dict[str, Screening] = {}
        self.measured: dict[str, tuple[Candidate, Row]] = {}
        self.without_figures: set[str] = set()
        self._sizes_mb: dict[str, float] = {}
        self._times: dict[str, list[float]] = defaultdict(list)
        self._twins: dict[str, float] = {}
        self._engines: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        self._beside_layers_mb: dict[tuple[str, str], float] = {}

    def learn_program(self, candidate: Candidate, screening: Screening) -> None:
        """Note what the reference does with a program."""
        self.screened[candidate.program] = screening
        if not screening.failed:
            known = self._sizes_mb.get(candidate.formats, screening.size_mb)
            self._sizes_mb[candidate.formats] = min(known, screening.size_mb)

    def learn(self, candidate: Candidate, row: Row) -> None:
        """Note what was measured of a cell."""
        self.measured[name_of(candidate)] = candidate, row
        found, on = self.screened.get(candidate.program), (candidate.network, candidate.engine)
        if found and (file_mb := row.metrics.get("size_mb")):
            beside = file_mb - found.size_mb
            self._beside_layers_mb[on] = min(beside, self._beside_layers_mb.get(on, beside))
        ms = row.metrics.get("latency_p50_ms")
        if ms is None:
            return
        self._times[candidate.kernels].append(ms)
        self._engines[on][candidate.kernels] = _FLOAT_BITS if MOSTLY_FLOAT in row.flags else _computed_bits(candidate)
        if (speedup := row.metrics.get("speedup")) and not candidate.uncompressed:
            self._twins[candidate.twin_kernels] = ms * speedup

    def fastest_ms(self, candidate: Candidate) -> float:
        """What its latency could be at best; 0 where its engine has run nothing of the network yet."""
        if times := self._times.get(candidate.kernels):
            return statistics.median(times) * (1 - _CHANCE / len(times))
        if candidate.kernels in self._twins:
            return self._twins[candidate.kernels] * (1 - _CHANCE)
        of_engine = self._engines.get((candidate.network, candidate.engine), {})
        shares = {each: min(1.0, _computed_bits(candidate) / bits) for each, bits in of_engine.items()}
        most = max(shares.values(), default=1.0)  # of those formats that tell the most of its own
        told = [most * min(self._times[each]) for each, share in shares.items() if share == most]
        if told and (fp32_ms := self._twins.get(candidate.twin_kernels)):  # codes may be slower than floats
            told.append(fp32_ms)
        return min(told, default=0.0) * _OTHER_FORMATS

    def size_mb(self, candidate: Candidate) -> float:
        """What its file needs at the least, known once a program with its formats has been made; 0 before."""
        found = self.screened.get(candidate.program)
        layers_mb = found.size_mb if found and not found.failed else self._sizes_mb.get(candidate.formats)
        if layers_mb is None:
            return 0.0
        return layers_mb + self._beside_layers_mb.get((candidate.network, candidate.engine), 0.0)

    def foreseen(self, candidate: Candidate) -> Row:
        """The cell as if it had been measured, with its figures at their best."""
        metrics: dict[str, float] = {}
        if (ms := self.fastest_ms(candidate)) > 0:
            metrics |= {"latency_p50_ms": ms, "latency_p50_ms_low": ms, "latency_p50_ms_high": ms}
        if size_mb := self.size_mb(candidate):
            metrics["size_mb"] = size_mb
        found = self.screened.get(candidate.program)
        if found and found.images:
            metrics |= {
                "top1": found.accuracy,
                "validation_top1": found.accuracy,
                "validation_images": float(found.images),
                "validation_drop_pp": 100 * (found.lost - found.gained) / found.images,
                "validation_flips": float(found.lost + found.gained),
            }
        return Row(
            cell=candidate.choices, status="interrupted", metrics=metrics, command="", confidence=self.confidence
        )

    def missed(self, candidate: Candidate) -> str:
        """Which limits it cannot keep, for certain, and by how much; empty where it may keep all."""
        verdict = verdict_of(self.foreseen(candidate), self.require)
        if verdict.state == "missed":
            return str(verdict)
        found = self.screened.get(candidate.program)
        if found and found.images and self._tolerates and found.accuracy < found.baseline_accuracy - TOLERATED_LOSS:
            lost = 100 * (found.baseline_accuracy - found.accuracy)
            return (
                f"loses {lost:.2f} points by its reference, more than the one that is tolerated where no limit is set"
            )
        return ""

    @property
    def _tolerates(self) -> bool:
        """Whether no limit says how good a cell must be."""
        return self.require.drop_pp is None and self.require.top1 is None

    def keeps_accuracy(self, candidate: Candidate) -> bool:
        """Whether the reference keeps the limits on accuracy for certain, as far as there are images to tell."""
        if not self.screened[candidate.program].images:
            return True
        judged = verdict_of(self.foreseen(candidate), self.require).judged
        return all(each.state == "met" for each in judged if each.name in ("drop_pp", "top1"))

    def best_cost(self, candidate: Candidate) -> float:
        """The objective at its best: the less, the better."""
        match self.require.objective:
            case "size":
                return self.size_mb(candidate)
            case "accuracy":
                found = self.screened.get(candidate.program)
                return -found.accuracy if found and found.images else -1.0
        return self.fastest_ms(candidate)

    def figures(self, candidate: Candidate) -> Figures | None:
        """What a sampler learns of a cell: its figures, or those at their best; None where there are none."""
        found, name = self.screened.get(candidate.program), name_of(candidate)
        if (found and found.failed) or name in self.without_figures:
            return None
        if name in self.measured:
            _, row = self.measured[name]
            if not row.believable or cost(row, self.require.objective) is None:
                return None
            return Figures(cost=self._cost_of(row), accuracy=accuracy(row), excess=self._excess(row, found))
        if found is None and (self.require.objective == "accuracy" or not self.best_cost(candidate)):
            return None
        at_best = self._excess(self.foreseen(candidate), found)
        return Figures(cost=self.best_cost(candidate), accuracy=found.accuracy if found else 0.0, excess=at_best)

    def _excess(self, row: Row, found: Screening | None) -> float:
        """By how much limits are missed for certain, as shares of them, added up."""
        missed = verdict_of(row, self.require).of("missed")
        lost = found.baseline_accuracy - TOLERATED_LOSS - found.accuracy if found and self._tolerates else 0.0
        return sum(each.excess / (abs(each.bound) or 1.0) for each in missed) + max(0.0, lost / TOLERATED_LOSS)

    def best(self) -> tuple[Row | None, float]:
        """The best that was measured, and its objective; none and infinite where nothing keeps what is required."""
        chosen = best_row([row for _, row in self.measured.values()], self.require)
        return chosen, self._cost_of(chosen) if chosen else math.inf

    def _cost_of(self, row: Row) -> float:
        """The objective of a measured row, in the unit of ``best_cost``."""
        match self.require.objective:
            case "size":
                return row.metrics["size_mb"]
            case "accuracy":
                return -accuracy(row)
        return row.metrics["latency_p50_ms"]


def _computed_bits(candidate: Candidate) -> int:
    return max(candidate.bits, _LEAST_BITS)


def name_of(candidate: Candidate) -> str:
    """What tells a candidate from all others."""
    return " ".join(f"{name}={value}" for name, value in candidate.choices.items())


def best_row(rows: Sequence[Row], require: Requirements) -> Row | None:
    """The best by the objective of the rows that keep what is required, or else the accuracy of the best."""
    sound = [row for row in rows if row.believable and AT_CHANCE not in row.flags]
    keeping = [row for row in sound if verdict_of(row, require).state == "met"]
    if require.drop_pp is None and require.top1 is None:
        most = max(map(accuracy, keeping), default=0.0)
        keeping = [row for row in keeping if accuracy(row) >= most - TOLERATED_LOSS]
    keeping = [row for row in keeping if cost(row, require.objective) is not None]
    return min(keeping, key=lambda row: (cost(row, require.objective), row.metrics["size_mb"]), default=None)
