"""Does a search find the best cell of a grid, and in how little of the grid's time?

    python benchmarks/search.py measure --grid digits --data DATA   # run a grid completely, and record it: an hour
    python benchmarks/search.py                                     # search the recorded grids again and again

There are four grids, each of more than 200 cells. ``digits`` is a small convolutional network: ptq, gptq and gpfq at
8, 4 and 3 bits, with three ways to choose ranges and 16 to 256 calibration images, on five engines. The rules of the
search were written beside it. ``cifar10`` is a trained ResNet-20: the same methods, dynamic ranges and bfloat16, on
five engines of which two have settings of their own. ``residual`` is the same for a ResNet-8 on digits. ``lenet`` has
other methods, with layers made of several, on the same engines; it is so small that floats are faster than codes.

Every cell is measured, stage by stage, in one process on one core. In the end all are timed in turn, so that latencies
can be compared (those of ``digits`` were recorded one after the other). A search asks for the same figures that a sweep
would ask for, and pays for each stage what it took. It is judged by the best cell of the complete grid: how far is what
it found from that, and what share of the time did it take?

The recorded grids are in `benchmarks/search_grids/`; docs/search.md has the result.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep import api, stages, stats
from bitsweep.cell import Cell
from bitsweep.config.backend import InferenceFn
from bitsweep.config.requirement import Requirements
from bitsweep.errors import BitsweepError
from bitsweep.measuring.latency import CROWDED
from bitsweep.measuring.passes import load_measurement
from bitsweep.measuring.timing import batch_of, block, runs_a_block
from bitsweep.report import Row
from bitsweep.report.choice import cost
from bitsweep.report.verdict import verdict_of
from bitsweep.results import Array
from bitsweep.runtime.environment import current_cpu
from bitsweep.runtime.progress import silent
from bitsweep.runtime.store import Store
from bitsweep.search.budget import Budget
from bitsweep.search.candidates import Candidate, candidate_of
from bitsweep.search.prospects import Screening, best_row, name_of
from bitsweep.search.strategy import search
from bitsweep.stages import Stage

RECORDED = Path(__file__).parent / "search_grids"
COMMON = "protocol=smoke protocol.memory=false protocol.threads=1"
#: Name of a grid -> what all of its cells have in common.
SETTINGS = {
    "digits": f"model=cnn model.image_size=16 model.dropout=0 dataset=digits dataset.val_share=0.4 train=fast {COMMON}",
    "cifar10": (
        "model=resnet20 model.weights=weights/resnet20_cifar10.pt train=pretrained dataset=npz "
        f"dataset.root=cifar10/cifar10.npz protocol.parity_images=100 {COMMON}"
    ),
    "residual": (
        "model=resnet20 model.depth=8 model.image_size=16 dataset=digits dataset.val_share=0.4 train=fast " + COMMON
    ),
    "lenet": f"model=lenet model.image_size=20 dataset=digits dataset.val_share=0.4 train=fast {COMMON}",
}
_FIVE = "backend=onnxruntime,openvino,onednn,fbgemm,qnnpack"
_UNFUSED = "backend=onnxruntime backend.optimization=basic,none"
_FLOATS = (f"{_FIVE},torch", _UNFUSED)
_INTEGERS = (_FIVE, _UNFUSED, "backend=openvino backend.float_islands=bf16")
_RANGES = "method.calibration_images=16,64 method.activation_range=mse,minmax,percentile"
#: Name of a grid -> methods and precisions, each on engines.
PARTS = {
    "digits": {
        "method=none precision=fp32": (f"{_FIVE},torch",),
        "method=ptq precision=fp16": (f"{_FIVE},torch",),
        "method=ptq precision=int8,int4,int3 method.calibration_images=16,64,256 "
        "method.activation_range=mse,minmax,percentile": (_FIVE,),
        "method=gptq precision=int8,int4,int3 method.calibration_images=16,64,256": (_FIVE,),
        "method=gpfq precision=int4,int3": (_FIVE,),
    },
    "cifar10": {
        "method=none precision=fp32": _FLOATS,
        "method=ptq precision=fp16,bf16": _FLOATS,
        f"method=ptq precision=int8,int4 {_RANGES}": _INTEGERS,
        "method=ptq precision=int3 method.calibration_images=16,64": _INTEGERS,
        "method=gptq precision=int8,int4,int3 method.calibration_images=16,64": _INTEGERS,
        "method=gpfq precision=int4,int3 method.calibration_images=64": _INTEGERS,
        "method=dynamic precision=int8": _INTEGERS,
    },
}
PARTS["residual"] = PARTS["cifar10"]
PARTS["lenet"] = {
    "method=none precision=fp32": (f"{_FIVE},torch",),
    "method=ptq precision=fp16": (f"{_FIVE},torch",),
    "method=ptq precision=int8,int4,ternary method.calibration_images=32,128,256 "
    "method.activation_range=mse,minmax,entropy": (_FIVE,),
    "method=gptq precision=int8 method.damping=0.01,0.1": (_FIVE,),
    "method=msq precision=int4,int3": (_FIVE,),
    "method=adaround precision=int4,int3 method.iterations=50,200": (_FIVE,),
    "method=factorize precision=fp32,int8 method.ratio=0.3,0.6": (_FIVE,),
    "method=dynamic precision=int8": (_FIVE,),
}
#: Name of a grid -> a size in MB that some of its cells keep.
SIZES_MB = {"digits": 0.15, "cifar10": 0.4, "residual": 0.12, "lenet": 0.05}
#: What a search is to reach: how near to the best, in what share of the time; and how many seeds it is tried with.
NEAR, SHARE, SEEDS = 0.02, 0.25, 10
#: The budget of a search, as a share of the grid's time: what was begun before it was spent is ended.
BUDGET = 0.24
#: How often each cell is timed, in turn with all others.
ROUNDS = 20
#: Figures that a choice among cells may rest on.
_KEPT = (
    "top1", "validation_images", "validation_top1", "validation_drop_pp", "validation_flips", "size_mb", "speedup",
    "speedup_low", "speedup_high", "latency_p50_ms", "latency_p50_ms_low", "latency_p50_ms_high",
)  # fmt: skip
#: Every cell needs these.
_FREE = (stages.DATA.name, stages.BASELINE.name)


def wanted(name: str) -> dict[str, dict[str, Any]]:
    """What is wanted of a grid, each a search of its own."""
    size_mb = SIZES_MB[name]
    return {
        "latency": {},
        "latency, drop at most 2 points": {"drop_pp": 2},
        "size, drop at most 3 points": {"objective": "size", "drop_pp": 3},
        f"latency, at most {size_mb} MB": {"size_mb": size_mb},
        f"accuracy, at most {size_mb} MB": {"objective": "accuracy", "size_mb": size_mb},
    }


# --------------------------------------------------------------------------- measuring the grid


def cells_of(name: str) -> list[Cell]:
    """The cells of a grid."""
    words = [f"{SETTINGS[name]} {part} {engine}" for part, engines in PARTS[name].items() for engine in engines]
    return list({stages.key_of(cell): cell for each in words for cell in api.grid(each)}.values())


def measure(name: str, folder: Path, data: Path) -> None:
    """Run what is missing of a grid, and record all of it.

    Args:
        data: folder that the paths in the settings of a grid start from.
    """
    import torch

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # some engines would, for all cells after theirs
    torch.set_num_threads(1)
    store = Store(folder.absolute() / "store")
    os.chdir(data)
    cells = cells_of(name)
    cpu = current_cpu()
    found: dict[str, Any] = {"cpu": f"{cpu.model} ({cpu.isa})", "stages": {}, "screenings": {}, "cells": []}
    done: list[Cell] = []
    for cell in cells:
        if reason := cell.skip_reason():
            raise SystemExit(f"{cell.name}: {reason}")
        try:
            measured = load_measurement(build(stages.MEASUREMENT, cell, store))
            screened = build(stages.SCREENING, cell, store) / "screening.json"
        except BitsweepError as error:
            print(f"{cell.name}: {error}", flush=True)
            continue
        needed = [*stages.needs(cell), *stages.needs(cell, stages.SCREENING)]
        for stage, of in needed:
            key = stage.key_of(of)
            found["stages"][_short(key)] = [stage.name, round(store.seconds(stage.name, key), 3)]
        candidate = candidate_of(cell)
        found["screenings"][candidate.program] = json.loads(screened.read_text())
        found["cells"].append(
            {
                "candidate": asdict(candidate),
                "metrics": {name: value for name, value in measured.metrics.items() if name in _KEPT},
                "flags": measured.flags,
                "verdict": measured.verdict,
                "needs": [_short(stage.key_of(of)) for stage, of in stages.needs(cell)],
                "screening_needs": [_short(stage.key_of(of)) for stage, of in stages.needs(cell, stages.SCREENING)],
            }
        )
        done.append(cell)
        print(cell.name, flush=True)
    for entry, latencies in zip(found["cells"], timed_in_turns(done, store), strict=True):
        entry["metrics"] |= latencies
        entry["flags"] = [flag for flag in entry["flags"] if flag not in ("noisy", CROWDED)]
    file = RECORDED / f"{name}.json"
    file.write_text(json.dumps(found, separators=(",", ":")))
    print(f"{len(found['cells'])} cells: {file}")


def timed_in_turns(cells: Sequence[Cell], store: Store) -> list[dict[str, float]]:
    """Latencies of all cells, whose blocks take turns: what slows the machine for a while slows all of them."""
    keys = [stages.ARTIFACT.key_of(cell) for cell in cells]
    loaded: list[tuple[InferenceFn, Array, int]] = []
    for cell, key in zip(cells, keys, strict=True):
        run = cell.backend.load(store.folder(stages.ARTIFACT.name, key), threads=1)
        measured = store.folder(stages.MEASUREMENT.name, stages.MEASUREMENT.key_of(cell))
        image = batch_of(np.load(measured / "examples.npy"), 1)
        loaded.append((run, image, runs_a_block(run, image, cell.protocol)))
    blocks: list[list[Array]] = [[] for _ in cells]
    order = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for place in order.permutation(len(cells)):
            blocks[place].append(block(*loaded[place]))
    found = []
    for cell, own in zip(cells, blocks, strict=True):
        low, high = stats.median_interval(own, confidence=0.95, seed=0)
        metrics = {"latency_p50_ms": float(np.median([np.median(each) for each in own]))}
        metrics |= {"latency_p50_ms_low": low, "latency_p50_ms_high": high}
        twin = stages.ARTIFACT.key_of(cell.twin)
        if cell.twin is not cell and twin in keys:
            gain = stats.paired_speedup(blocks[keys.index(twin)], own, confidence=0.95, seed=0)
            metrics |= {"speedup": gain.ratio, "speedup_low": gain.low, "speedup_high": gain.high}
        found.append(metrics)
    return found


def recorded(name: str) -> dict[str, Any]:
    """What was measured of a grid."""
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def _short(key: str) -> str:
    return key[:16]


def build(stage: Stage, cell: Cell, store: Store) -> Path:
    """The finished folder of a stage, made in this process if it is not there."""
    key = stage.key_of(cell)
    if folder := store.find(stage.name, key):
        return folder
    folders = {name: build(*source, store) for name, source in stage.inputs(cell).items()}
    with store.building(stage.name, key, about=stage.about(cell)) as folder:
        for work in stage.work if folder else ():  # where another process made it meanwhile, there is none
            arguments = stages.arguments(work, cell, folders=folders, unfinished=store.unfinished(stage.name, key))
            work(**arguments, folder=folder, progress=silent)
    return store.folder(stage.name, key)


# --------------------------------------------------------------------------- searching it


@dataclass
class Recorded:
    """The figures of the grid, and what it takes to get them."""

    grid: dict[str, Any]
    rows: dict[str, Row]
    paid: set[str] = field(default_factory=set)

    def screen(self, candidate: Candidate) -> Screening:
        """What was recorded of the program."""
        self._pay(self._cell(candidate)["screening_needs"])
        return Screening(**self.grid["screenings"][candidate.program])

    def measure(self, candidate: Candidate) -> Row:
        """What was recorded of the cell."""
        self._pay(self._cell(candidate)["needs"])
        return self.rows[name_of(candidate)]

    @property
    def seconds(self) -> float:
        """Of all that was asked for."""
        return sum(self.grid["stages"][key][1] for key in self.paid)

    def _cell(self, candidate: Candidate) -> dict[str, Any]:
        return next(each for each in self.grid["cells"] if each["candidate"]["choices"] == candidate.choices)

    def _pay(self, keys: Sequence[str]) -> None:
        self.paid |= {key for key in keys if self.grid["stages"][key][0] not in _FREE}


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a search ended: its cells, its share of the time, and how far what it found is from the best, as a share."""

    cells: int
    share: float
    away: float


def run(grid: dict[str, Any], require: Requirements, *, seed: int) -> Result:
    """Search the grid for a share of the time that all of it took."""
    candidates = [Candidate(**each["candidate"]) for each in grid["cells"]]
    rows = {
        name_of(candidate): Row(
            cell=candidate.choices, status="finished", metrics=each["metrics"], flags=tuple(each["flags"]),
            verdict=each["verdict"], command="",
        )
        for candidate, each in zip(candidates, grid["cells"], strict=True)
    }  # fmt: skip
    everything = Recorded(grid=grid, rows=rows)
    for candidate in candidates:
        everything.measure(candidate)
    evidence = Recorded(grid=grid, rows=rows)
    budget = Budget(minutes=BUDGET * everything.seconds / 60, seed=seed)
    found = search(candidates, evidence, require=require, budget=budget, confidence=0.95)
    assert len(found.measured) + len(found.reasons) == len(candidates)
    best = best_row(list(rows.values()), require)
    own = best_row([rows[name] for name in found.measured], require)
    assert best
    # Where nothing is required of the accuracy, a search has to keep near the best accuracy of the whole grid.
    spent = evidence.seconds / everything.seconds
    if own is None or verdict_of(own, require).state != "met":
        return Result(cells=len(found.measured), share=spent, away=float("inf"))
    theirs, ours = cost(best, require.objective), cost(own, require.objective)
    assert theirs is not None and ours is not None
    return Result(cells=len(found.measured), share=spent, away=(ours - theirs) / abs(theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["measure", "search"], default="search")
    parser.add_argument("--grid", choices=PARTS, default="digits")
    parser.add_argument("--data", type=Path, default=Path(), help="folder with weights/ and cifar10/cifar10.npz")
    parser.add_argument("--folder", type=Path, default=Path("search-grid"), help="where what was measured is kept")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        measure(arguments.grid, arguments.folder, arguments.data)
        return
    for grid_name in PARTS:
        grid = recorded(grid_name)
        print(f"{grid_name}: {len(grid['cells'])} cells, measured on {grid['cpu']}")
        for name, limits in wanted(grid_name).items():
            results = [run(grid, Requirements(**limits), seed=seed) for seed in range(SEEDS)]
            good = sum(result.away <= NEAR and result.share <= SHARE for result in results)
            cells, shares = [result.cells for result in results], [100 * result.share for result in results]
            away = sorted(100 * result.away for result in results)
            print(
                f"{name}: {good} of {SEEDS} seeds within {100 * NEAR:g} % (at most {away[-1]:.1f} %), "
                f"{min(cells)} to {max(cells)} cells, {min(shares):.0f} to {max(shares):.0f} % of the time"
            )


if __name__ == "__main__":
    main()
