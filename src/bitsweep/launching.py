"""Jobs that run somewhere: they must be what was planned, and one that is lost is one failed cell."""

from collections.abc import Callable, Sequence

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.errors import MachineError
from bitsweep.results import Outcome, Status
from bitsweep.runtime.environment import current_cpu, current_gpu, physical_cores
from bitsweep.stages import Stage
from bitsweep.tracking.connection import Connection

#: Runs cells as far as a stage, somewhere; gives an outcome for each, or raises `GaveUp`.
Launch = Callable[[Sequence[Cell], str], Sequence[Outcome]]
#: Whether the result of a stage with a key is there, for whoever needs it.
IsThere = Callable[[Stage, str], bool]


#: What jobs make that do not measure.
_WAVES = {stage.name: stage for stage in (stages.BASELINE, stages.ARTIFACT, stages.SCREENING)}


def as_planned(cell: Cell, stage: str) -> str:
    """What a job is told of the plan: the key of what it is to make, and the machine that it was planned on."""
    return f"{_key(cell, stage)} {_machine()}"


def require_planned(cell: Cell, planned: str, stage: str) -> None:
    """Refuse a cell that is another one here than where it was planned.

    Its figures would be found by nobody: they are looked for by the key of the plan.

    Raises:
        MachineError: another machine, fewer or more cores, or other code.
    """
    key, _, where = planned.partition(" ")
    if not key or key == _key(cell, stage):
        return
    if where != _machine():
        raise MachineError(
            f"planned on {where}, but this is {_machine()}: run the command in a job on such a node, or ask for nodes "
            "and CPUs like those of the machine that plans"
        )
    raise MachineError("its code, packages or files are others here than where it was planned: make them the same")


def _key(cell: Cell, stage: str) -> str:
    return made(cell, stage).key_of(cell)


def made(cell: Cell, stage: str) -> Stage:
    """What a job is to make."""
    return _WAVES.get(stage) or stages.last(cell)


def _machine() -> str:
    cpu, gpu, cores = current_cpu(), current_gpu(), physical_cores()
    return f"{cpu.model} ({cpu.isa}), {cores} core{'s' * (cores != 1)}{f', {gpu.model}' if gpu else ''}"


class GaveUp(Exception):
    """A launcher gave up all jobs, because of one perhaps, while some may have done their work."""


def launched(
    launch: Launch, cells: Sequence[Cell], stage: str, *, connection: Connection, is_there: IsThere, since_ms: int
) -> list[Outcome]:
    """Run cells as far as a stage, and see what became of each, whatever happened to the launcher.

    Where a launcher gives up all jobs, those that have left no result are run again: all of them while some get done
    each time, since a worker may be lost by chance; else in two halves, and so on. So the one that is lost is lost
    alone in the end.

    Args:
        since_ms: when the sweep started; runs from before are none of its.
    """

    def left_behind(cell: Cell) -> Outcome | None:
        return _left_behind(cell, stage, connection, is_there, since_ms)

    def run(asked: Sequence[Cell]) -> dict[Cell, Outcome]:
        try:
            return dict(zip(asked, launch(asked, stage) if asked else (), strict=True))
        except GaveUp as error:
            lost = Outcome(status="failed", reason=str(error), lost=True)
        found = {cell: outcome for cell in asked if (outcome := left_behind(cell))}
        rest = [cell for cell in asked if cell not in found]
        if len(asked) == 1:
            return found or {asked[0]: lost}
        if found:
            return found | run(rest)
        middle = (len(rest) + 1) // 2
        return found | run(rest[:middle]) | run(rest[middle:])

    outcomes = run(cells)
    return [(outcomes[cell].lost and left_behind(cell)) or outcomes[cell] for cell in cells]


def prepare(cells: Sequence[Cell], launch: Launch, is_there: IsThere) -> dict[Cell, Outcome]:
    """Compress and lower what is to be measured later, many at once, and the same never twice at once.

    Returns:
        How those ended that failed.
    """
    failed: dict[Cell, Outcome] = {}
    for stage in (stages.COMPRESSED, stages.ARTIFACT):
        todo = {stage.key_of(cell): cell for cell in cells if cell not in failed}
        missing = [cell for key, cell in todo.items() if not is_there(stage, key)]
        outcomes = launch(missing, stages.ARTIFACT.name)
        failed |= {cell: each for cell, each in zip(missing, outcomes, strict=True) if each.status == "failed"}
    return failed


def _left_behind(cell: Cell, stage: str, connection: Connection, is_there: IsThere, since_ms: int) -> Outcome | None:
    """What a job that did not answer has done all the same, by its key; None for nothing."""
    if stage != "cell":
        return Outcome(status="finished") if is_there(made(cell, stage), _key(cell, stage)) else None
    run = connection.cells([stages.key_of(cell)]).get(stages.key_of(cell))
    if run is None or (run.info.end_time or 0) < since_ms:
        return None
    status: Status = "lowered" if run.data.tags.get("status") == "lowered" else "finished"
    return Outcome(status=status, reason=run.data.tags.get("reason", ""), run_id=run.info.run_id)
