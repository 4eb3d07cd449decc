"""A baseline that is another network than was meant does not pass for it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.cell_results import splits_of
from bitsweep.config.binding import invalid
from bitsweep.expectation import Expectation
from bitsweep.runtime.progress import silent
from bitsweep.runtime.store import Store
from bitsweep.stage_work import load_data
from tests.test_cell import cell

#: Predictions that are right, of 449.
RIGHT = 400


@pytest.fixture
def baseline(tmp_path: Path) -> Callable[[int], tuple[Cell, Store]]:
    """A store with the digits and what a network said of them, whose classes are counted from a number on."""

    def made(first: int) -> tuple[Cell, Store]:
        of, store = cell(), Store(tmp_path / "store")
        with store.building("dataset", stages.DATA.key_of(of), about={}) as data:
            assert data
            load_data(dataset=of.dataset, framing=None, published=False, folder=data, progress=silent)
        labels = np.asarray(splits_of(of, store).test.labels)
        said = np.where(np.arange(len(labels)) < RIGHT, labels, (labels + 1) % 10)
        with store.building("baseline", stages.BASELINE.key_of(of), about={}) as place:
            assert place
            about = {"device": "cpu", "best_epoch": -1, "val_top1": 0.9, "epochs": [], "notes": []}
            (place / "history.json").write_text(json.dumps(about))
            np.save(place / "validation_right.npy", np.zeros(0, bool))
            np.save(place / "test_logits.npy", np.eye(10, dtype=np.float32)[(said + first) % 10])
        return of, store

    return made


def test_only_what_the_interval_holds_is_met(baseline: Callable[[int], tuple[Cell, Store]]) -> None:
    of, store = baseline(0)
    for close in (RIGHT / 449, 0.89, 0.87, 0.91):
        assert Expectation(top1=close).unmet(of, store) == ""
    assert Expectation().unmet(of, store) == ""
    for far in (0.5, 0.95):
        why = Expectation(top1=far).unmet(of, store)
        assert why.startswith(f"expect.top1={far}: the baseline has 0.8909 [0.8586, 0.9165] on 449 test images, so ")
        assert all(word in why for word in ("normalisation", "order of channels", "resizing", "order of the classes"))
        assert "\n" not in why


def test_classes_in_another_order_are_found_out(baseline: Callable[[int], tuple[Cell, Store]]) -> None:
    of, store = baseline(3)
    assert Expectation(top1=0.89).unmet(of, store).endswith("order of the classes: in another one it would be met")
    assert "normalisation" in Expectation(top1=0.99).unmet(of, store)


def test_a_percentage_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1") as caught:
        Expectation(top1=91.2)
    assert str(invalid(Expectation, caught.value, "expect")) == (  # type: ignore[arg-type]
        "expect.top1=91.2: should be less than or equal to 1"
    )
