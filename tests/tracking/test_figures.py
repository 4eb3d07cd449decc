"""The figures of a run, as they are written and read."""

from mlflow.entities import Metric, Run, RunData, RunInfo

from bitsweep.tracking.figures import figures, figures_of


def run(*metrics: Metric) -> Run:
    info = RunInfo("a", "1", "user", "FINISHED", 0, 0, "active")
    return Run(info, RunData(list(metrics)))


def test_what_was_written_is_read_also_where_there_were_no_sections() -> None:
    values = {"top1": 0.9, "latency_p50_ms": 1.5, "latency_p50_ms_b8": 9.0, "size_mb": 0.2, "compressed_s": 3.0}
    written = figures(values, 0)
    assert [metric.key for metric in written][:3] == ["accuracy/top1", "latency/p50_ms", "latency/p50_ms_b8"]
    assert figures_of(run(*written)) == values
    assert figures_of(run(*(Metric(name, value, 0, 0) for name, value in values.items()))) == values


def test_what_is_known_of_each_layer_is_no_figure_of_the_cell() -> None:
    by_layer = [Metric("layers/weights_sqnr_db", 30.0, 0, 4), Metric("layers/relative_error.fc", 0.1, 0, 9)]
    assert figures_of(run(*by_layer)) == {"relative_error.fc": 0.1}
