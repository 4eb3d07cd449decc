"""Makes bitsweep's sweeper known to Hydra, which looks for plug-ins in this namespace only."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from bitsweep.sweep import BitsweepSweeper

__all__ = ["BitsweepSweeper"]


@dataclass
class SweeperConfig:
    """Hydra's schema of the sweeper; ``params`` is the grid of a named sweep."""

    _target_: str = "hydra_plugins.bitsweep_sweeper.BitsweepSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="bitsweep", node=SweeperConfig, provider="bitsweep")
