"""What a cell must keep to be deployed, and what is wanted of it beyond that."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from bitsweep.config.configurable import Choice, configurable
from bitsweep.errors import ConfigError
from bitsweep.runtime.fingerprint import digest

Positive = Annotated[float, Field(gt=0)]


@configurable
class Requirements(Choice):
    """Limits that a cell must keep; None for any. No key contains them: another limit measures nothing again.

    Attributes:
        drop_pp: points of top-1 that may be lost against the fp32 baseline.
        p50_ms: median latency of a batch, at most.
        size_mb: of the artifact as stored, at most, in 10^6 bytes.
        rss_mb: peak memory of loading and running it, at most, in 10^6 bytes.
        top1: share of images that are recognised, at least.
        speedup: against fp32 on the same engine, at least.
        objective: what decides between the cells that keep all limits.
    """

    name: str = "none"
    drop_pp: Annotated[float, Field(ge=0, le=100)] | None = None
    p50_ms: Positive | None = None
    size_mb: Positive | None = None
    rss_mb: Positive | None = None
    top1: Annotated[float, Field(gt=0, le=1)] | None = None
    speedup: Positive | None = None
    objective: Literal["latency", "size", "accuracy", "throughput"] = "latency"

    @property
    def limits(self) -> dict[str, float]:
        """Name of a limit -> its value, of those that are set."""
        names = ("drop_pp", "top1", "p50_ms", "speedup", "size_mb", "rss_mb")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def set_values(self) -> dict[str, float | str]:
        """Everything that is not as if nothing had been said."""
        said = {"objective": self.objective} if self.objective != "latency" else {}
        return {**self.limits, **said}


#: No limits at all.
NOTHING = Requirements()


def common(requirements: Iterable[Requirements]) -> Requirements:
    """The requirements of a sweep, which all of its cells share.

    Raises:
        ConfigError: they differ.
    """
    found = list({digest(each.set_values): each for each in requirements}.values())
    if len(found) > 1:
        one, other = (each.set_values for each in found[:2])
        name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
        values = ",".join(str(getattr(each, name) or "null") for each in found[:2])
        raise ConfigError(
            f"require.{name}={values}: a sweep has one set of requirements; give one value, and look at others with "
            f"`bitsweep report SWEEP_ID require.{name}=VALUE`"
        )
    return found[0] if found else NOTHING
