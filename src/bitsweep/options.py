"""The settings of a run that change no result."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bitsweep.config.configurable import configurable
from bitsweep.expectation import Expectation
from bitsweep.search.budget import Budget

#: What addresses of models in MLflow have no other meaning for.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def _named(folder: Path) -> Path:
    if folder == Path():
        raise ValueError("name a folder, as in store.folder=multirun/store")
    return folder


@configurable
class Keeping:
    """Where finished work is kept.

    Attributes:
        folder: of the artifact store.
        fetch: whether baselines, programs and artifacts that the store lacks are taken from MLflow, and those that it
            has are put there, for machines that share no folder.
    """

    folder: Annotated[Path, AfterValidator(_named)] = Path("multirun/store")
    fetch: bool = False


@configurable
class Options:
    """The settings of a run that change no result, so that no key contains them.

    Attributes:
        plan: only show what would be run.
        stage: how far to go: ``cell`` measures, ``baseline`` only trains, ``artifact`` also compresses and lowers,
            ``screening`` compresses and lets the reference classify validation images, which a search does.
        remeasure: which finished cells to measure again: ``none``, those that are ``noisy``, or ``all``.
        store: where finished work is kept.
        timeout_s: seconds that compressing, lowering and each measuring pass may take.
        memory_gb: how far the data of such a process may grow, in 10^9 bytes; 0 for any.
        expect: what baselines must reach, so that their cells go on.
        search: how much of a grid to run; without a limit, all of it.
        register: name of the registered model in MLflow that what is recommended becomes a version of; empty for none.
        planned: key of the cell and machine where it was planned, see `bitsweep.launching`; empty for no plan.
        called: what the plan calls the cell, beside the others of a sweep; empty for its own name.
    """

    plan: bool = False
    stage: Literal["cell", "baseline", "artifact", "screening"] = "cell"
    remeasure: Literal["none", "noisy", "all"] = "none"
    store: Keeping = Keeping()
    timeout_s: Annotated[float, Field(gt=0)] = 3600
    memory_gb: Annotated[float, Field(ge=0)] = 0
    expect: Expectation = Expectation()
    search: Budget = Budget()
    register: str = ""
    planned: str = ""
    called: str = ""

    def __post_init__(self) -> None:
        if self.register and not _MODEL_NAME.fullmatch(self.register):
            raise ValueError(f"register={self.register}: a name has up to 200 letters, digits and '_', '-', '.' alone")

    def measures_again(self, tags: Mapping[str, str]) -> bool:
        """Whether a finished cell, known by its tags, is to be measured again."""
        flags = tags.get("flags", "").split(", ")
        return self.remeasure == "all" or (self.remeasure == "noisy" and "noisy" in flags)
