"""Weights that do not fit the last cache make a speed-up differ from process to process."""

from pathlib import Path

import numpy as np
import pytest

import bitsweep as bs
from bitsweep import stats
from bitsweep.measuring.from_memory import between_processes, share_from_memory
from bitsweep.measuring.latency import cautions, figures_of
from bitsweep.measuring.passes import Subject
from bitsweep.results import LATENCY_SAMPLES
from bitsweep.runtime.environment import Cpu

CACHE = 32 << 20


@pytest.mark.parametrize(
    ("size", "ms", "share"),
    [
        (44.7e6, 0.56, 1.0),  # ResNet-18 at 32 pixels
        (44.7e6, 6.0, 0.3725),  # the same weights, used for more pixels
        (11.3e6, 0.45, 0.0),  # they fit
        (228.2e6, 8.0, 1.0),
    ],
)
def test_the_share_is_the_time_that_reading_takes(size: float, ms: float, share: float) -> None:
    assert share_from_memory(size, ms, cache=CACHE) == pytest.approx(share)
    assert share_from_memory(size, ms, cache=0) == 0  # nothing is known of the cache


def test_who_reads_more_decides() -> None:
    assert between_processes(0.0, 0.0) == stats.BETWEEN_PROCESSES
    assert between_processes(0.2, 1.0) == between_processes(1.0, 0.2) > between_processes(0.2, 0.2)


@pytest.mark.parametrize(("megabytes", "verdict"), [(1, "faster"), (45, "not distinguishable")])
def test_the_interval_has_it(megabytes: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = bs.grid("model=lenet precision=int8")
    files = {name: tmp_path / name for name in ("own", "fp32")}
    for folder, size in zip(files.values(), (1, megabytes), strict=True):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(bytes(size * 1_000_000))
    subject = Subject(
        artifact=files["own"], twin=files["fp32"], backend=cell.backend, protocol=cell.protocol, scheme=cell.scheme,
        target=cell.target,
    )  # fmt: skip
    samples = {f"{which}_b1_ms": np.full(60, ms) for which, ms in (("candidate", 0.5), ("fp32", 0.55))}
    lengths = {f"{which}_b1_block_lengths": np.full(20, 3) for which in ("candidate", "fp32")}
    np.savez(tmp_path / LATENCY_SAMPLES, **samples, **lengths)
    noise = {"noisy": False, "crowded": False, "slowdown": 1.0}
    timed = {"load_ms": 1.0, "first_run_ms": 1.0, "threads": 1, "batches": {"1": noise}, "last_cache_bytes": CACHE}
    metrics, flags, details = figures_of(timed, tmp_path, subject)
    assert details["verdict"] == verdict
    assert metrics["speedup_low"] < metrics["speedup"] < metrics["speedup_high"]
    assert metrics["speedup"] == pytest.approx(1.1)
    assert any("read from memory" in text for text in cautions(flags, details)) == (megabytes == 45)

    noise["slowdown"] = 1.5
    metrics, flags, details = figures_of(timed, tmp_path, subject)
    assert details["verdict"] == "not distinguishable"
    assert any("by up to 1.5 times and the other not at all" in text for text in cautions(flags, details))

    monkeypatch.setattr(Cpu, "is_emulated", True)
    _, flags, details = figures_of(timed, tmp_path, subject)
    assert (flags, details["verdict"]) == (["emulated"], "not distinguishable")
    assert "its times say nothing of one" in cautions(flags, details)[0]
