"""What metrics are called, and how they are shown."""

import pytest

from bitsweep import stages
from bitsweep.metrics import METRICS, metric_of, name_of, tracked_name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (137.2, "137"),
        (1370.4, "1370"),
        (0.0123456, "0.0123"),
        (9.999, "10.0"),
        (0, "0"),
        (99.96, "100"),
        (5, "5.00"),
    ],
)
def test_three_digits_count(value: float, shown: str) -> None:
    assert METRICS["latency_p50_ms"].shown(value) == shown


def test_shares_are_shown_in_percent() -> None:
    assert METRICS["top1"].shown(0.98765) == "98.77"
    assert METRICS["top1_drop_pp"].shown(-0.45) == "-0.45"


def test_batch_sizes_are_part_of_names() -> None:
    assert metric_of("latency_p50_ms_b128") is metric_of("latency_p50_ms")
    with pytest.raises(KeyError):
        metric_of("latency_p50_b")


def test_every_stage_is_timed() -> None:
    found = {each.name for each in vars(stages).values() if isinstance(each, stages.Stage)}
    assert {f"{name}_s" for name in found} == {name for name in METRICS if name.endswith("_s")} - {"train_s"}


def test_each_has_a_name_of_its_own_in_a_section_of_mlflow() -> None:
    names = ["latency_p50_ms", "size_mb", "compressed_s", "latency_p50_ms_b128"]
    assert [*map(tracked_name, names)] == [
        "latency/p50_ms",
        "size/artifact_mb",
        "cost/compress_s",
        "latency/p50_ms_b128",
    ]
    assert [name_of(tracked_name(name)) for name in (*METRICS, *names)] == [*METRICS, *names]
    assert [*map(name_of, names)] == names  # as stores have them that know no sections


def test_each_says_what_it_means_in_a_sentence() -> None:
    for metric in METRICS.values():
        assert not metric.text[0].islower() and metric.text.endswith("."), metric.name
