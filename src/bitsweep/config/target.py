"""The base class of machines that measure."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from bitsweep.config.configurable import Choice, configurable
from bitsweep.runtime.environment import Cpu
from bitsweep.runtime.progress import Progress


@configurable
class Target(Choice, ABC):
    """The machine that measures. Artifacts are made for its CPU, here.

    Attributes:
        here: whether it is this machine.
    """

    here: ClassVar[bool] = False

    @property
    @abstractmethod
    def cpu(self) -> Cpu:
        """Its processor."""

    @property
    @abstractmethod
    def cores(self) -> int:
        """Physical cores that a measurement may keep busy."""

    @property
    def cpus(self) -> int | None:
        """CPUs that the threads of an engine may run on; None where that is not known."""
        return None

    def measure(self, kit: Path, results: Path, progress: Progress) -> None:
        """Run what a folder holds there, see `bitsweep.measuring.kit`, and bring the results back.

        Args:
            results: existing empty folder, which gets their files.

        Raises:
            BitsweepError: the machine cannot be reached, lacks something, or failed.
        """
        raise AssertionError(f"target={self.name} is this machine")
