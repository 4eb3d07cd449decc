"""How much of a grid a sweep may run."""

from typing import Annotated

from pydantic import Field

from bitsweep.config.configurable import Count, configurable


@configurable
class Budget:
    """What a search may spend; without any, every cell of the grid is run.

    Attributes:
        minutes: of compressing, lowering, screening and measuring, after which nothing is begun, by the time that each
            stage took when it was run. Data and baselines do not count, which every cell needs.
        cells: that are measured on their engines, at most.
        points: that are proposed where a setting has an interval of values, at most.
        seed: of the points, and of the order among cells of which nothing says which is better.
    """

    minutes: Annotated[float, Field(gt=0)] | None = None
    cells: Count | None = None
    points: Count = 100
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def limited(self) -> bool:
        """Whether there is to be a search at all."""
        return self.minutes is not None or self.cells is not None

    def spent(self, *, seconds: float, cells: int) -> str:
        """Which limit is reached; empty for none."""
        if self.minutes is not None and seconds >= 60 * self.minutes:
            return f"search.minutes={self.minutes:g}"
        return f"search.cells={self.cells}" if self.cells is not None and cells >= self.cells else ""
