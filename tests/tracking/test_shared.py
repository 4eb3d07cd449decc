"""Two machines that share no folder, but a tracking store."""

import shutil
from pathlib import Path

import pytest

import bitsweep as bs
from bitsweep import stages
from bitsweep.job import run_cell, runner_of
from bitsweep.options import Keeping, Options
from bitsweep.planning import plan
from bitsweep.runtime.store import Store
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.shared import SHARED, SharedResults


def _options(host: str) -> Options:
    return Options(stage="artifact", store=Keeping(folder=Path(host), fetch=True))


@pytest.mark.slow
def test_the_second_machine_makes_nothing_again(tracked: Path, caplog: pytest.LogCaptureFixture) -> None:
    (cell,) = bs.grid(
        "model=mlp model.image_size=8 train=smoke train.max_steps=20 protocol=smoke precision=int8 method=ptq"
    )
    first = run_cell(cell, _options("first"), folder=Path("multirun/first"), sweep_id="first")
    assert set(first.seconds) == {"dataset", "baseline", "baseline_evidence", "compressed", "artifact"}

    connection, theirs, ours = Connection(), Store(Path("first")), Store(Path("second"))
    shared = SharedResults(connection, ours)
    results = [(stage, stage.key_of(of)) for stage, of in stages.needs(cell, stages.ARTIFACT) if stage in SHARED]
    known = {(stage.name, key) for stage, key in results}
    assert shared.known() == known
    assert len(known) == 4  # the uncompressed program, too
    (planned,) = plan([cell], ours, lambda keys: {}, shared=known)
    assert not planned.trains

    runner = runner_of(_options("second"), Path("multirun/second"), shared)
    for stage, of in stages.needs(cell, stages.ARTIFACT):
        if stage in SHARED:
            runner.build(stage, of)
    assert runner.seconds == {}
    for stage, key in results:
        assert ours.find(stage.name, key)
        manifests = [store.folder(stage.name, key) / "manifest.json" for store in (theirs, ours)]
        assert manifests[0].read_bytes() == manifests[1].read_bytes()

    again = run_cell(cell, _options("second"), folder=Path("multirun/again"), sweep_id="again")
    assert (again.status, again.seconds) == ("finished", {})
    assert shared.known() == known
    assert len(connection.baselines()) == 1

    # What is not what was put there is made again, and put there for others.
    shutil.rmtree("second/artifact")
    for file in Path("mlruns").rglob("model.onnx"):
        file.write_bytes(b"other bytes")
    damaged = run_cell(cell, _options("second"), folder=Path("multirun/damaged"), sweep_id="damaged")
    assert set(damaged.seconds) == {"artifact"}
    assert "that was brought is damaged (model.onnx: other bytes than were written)" in caplog.text
    third = runner_of(_options("third"), Path("multirun/third"), SharedResults(connection, Store(Path("third"))))
    third.build(stages.ARTIFACT, cell)
    assert third.seconds == {}
