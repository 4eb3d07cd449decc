"""The plan of a sweep, as MLflow keeps it."""

from dataclasses import dataclass, field

#: File of a sweep's final races, which has none where nothing raced.
RACES = "races.json"
#: File of the table of its cells.
TABLE = "cells.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a sweep's plan, and how it ended. Kept as an artifact of the sweep's run.

    Attributes:
        verdict: ``run``, ``lower``, ``reuse`` or ``skip`` when planned; ``finished``, ``lowered`` or ``failed`` later.
        shown: knobs that names show.
        confidence: of the intervals of its figures.
        batch: images of a batch whose latency it has.
        settings: knobs that other cells of the sweep set, with the value that this one has by default.
        run_id: the MLflow run that its figures are in, once there is one.
    """

    cell: dict[str, str]
    key: str
    baseline_key: str
    scheme: str
    command: str
    verdict: str
    reason: str = ""
    log_tail: str = ""
    shown: list[str] = field(default_factory=list)
    confidence: float = 0.95
    batch: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
