"""This machine."""

from typing import ClassVar, final

from bitsweep.config.configurable import configurable
from bitsweep.config.target import Target
from bitsweep.runtime.environment import Cpu, current_cpu, physical_cores, usable_cpus


@final
@configurable
class ThisMachine(Target):
    """The machine that everything else runs on."""

    here: ClassVar[bool] = True

    @property
    def cpu(self) -> Cpu:
        """Its processor."""
        return current_cpu()

    @property
    def cores(self) -> int:
        """By affinity and quota."""
        return physical_cores()

    @property
    def cpus(self) -> int:
        """By affinity; two of a core where it has them."""
        return len(usable_cpus())
