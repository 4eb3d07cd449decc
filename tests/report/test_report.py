"""The report, also as a browser shows it."""

import csv
import dataclasses
import io
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from bitsweep.config.requirement import Requirements
from bitsweep.report import table, write
from bitsweep.report.advice import recommendations
from bitsweep.report.choice import pareto_front
from bitsweep.report.content import SweepReport, distinguishing, findings, ratio
from bitsweep.report.drawing import against
from bitsweep.report.pictures import swept_numbers
from bitsweep.report.row import Baseline, Row, RowStatus
from bitsweep.runtime.store import Store

CHROMIUM = shutil.which("chromium")


def row(
    model: str, precision: str, status: RowStatus = "finished", *, flags: tuple[str, ...] = (), **metrics: float
) -> Row:
    cell = {"model": model, "method": "ptq", "precision": precision, "backend": "onnxruntime", "dataset": "digits"}
    return Row(
        cell=cell,
        status=status,
        metrics=metrics,
        flags=flags,
        verdict="faster" if "speedup" in metrics else "",
        command=f"python run.py model={model} precision={precision}",
    )


def measured(model: str, precision: str, top1: float, ms: float, mb: float, *flags: str) -> Row:
    return row(
        model, precision, flags=flags, top1=top1, top1_low=top1 - 0.01, top1_high=top1 + 0.005, top1_drop_pp=0.2,
        flips=3, mcnemar_p=0.25, latency_p50_ms=ms, speedup=2.0, speedup_low=1.9, speedup_high=2.1, size_mb=mb,
        size_ratio=0.25, peak_rss_mb=40, parity_agreement=0.999, int8_mac_share=0.98,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report() -> SweepReport:
    failed = dataclasses.replace(
        row("alexnet", "int8", "failed"), reason="lower was killed by SIGSEGV", log_tail="<b>Fatal</b> ```error```"
    )
    skipped = dataclasses.replace(row("resnet18", "int16", "skipped"), reason="no kernels: use backend=reference | 2")
    return SweepReport(
        sweep_id="2026-01-01_00-00-00",
        command="python run.py -m model=a,b",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=61,
        rows=[
            measured("resnet18", "int8", 0.98, 0.5, 11.3),
            measured("resnet18", "fp16", 0.985, 1.5, 22.0, "noisy"),
            measured("mobilenetv3", "int8", 0.60, 0.1, 1.7, "diverges"),
            failed,
            skipped,
            row("mobilenetv3", "fp16", "interrupted"),
        ],
        baselines=[Baseline(name="baseline resnet18 digits", run_id="", metrics={"top1": 0.99}, seconds=50)],
        environment={"cpu": {"model": "Some CPU", "isa": "avx2"}, "versions": {"torch": "2"}},
        tracking_uri="sqlite:///mlflow.db",
        ui_url="http://127.0.0.1:5000/#/experiments/1",
    )


def test_the_front_against_its_definition() -> None:
    points = [(1, 5), (2, 5), (2, 7), (3, 6), (3, 9), (4, 9), (0.5, 1), (2, 7)]
    front = pareto_front(points)

    def beaten(i: int) -> bool:
        (x, y), others = points[i], (point for j, point in enumerate(points) if j != i)
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in others)

    assert sorted({points[i] for i in front}) == sorted({points[i] for i in range(len(points)) if not beaten(i)})
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_what_diverges_is_not_recommended(report: SweepReport) -> None:
    text, *_ = recommendations(report)
    assert text.startswith("digits: deploy resnet18 ptq int8 onnxruntime, the fastest of the 2 cells within 1 point")
    assert "98 % of its multiply-accumulates ran on integers" in text
    assert "99.90 % of the test images" in text


def test_what_has_learned_nothing_is_not_recommended(report: SweepReport) -> None:
    guessing = [dataclasses.replace(row, flags=("at chance",)) for row in report.rows[:2]]
    text, *_ = recommendations(dataclasses.replace(report, rows=guessing))
    assert "nothing can be recommended" in text
    assert "train longer" in text
    text, *_ = recommendations(dataclasses.replace(report, rows=[guessing[0], report.rows[1]]))
    assert text.startswith("digits: deploy resnet18 ptq fp16")


def test_engines_are_ranked_for_each_model(report: SweepReport) -> None:
    first = report.rows[0]
    others = [
        dataclasses.replace(first, cell=first.cell | {"backend": name}, metrics=first.metrics | {"latency_p50_ms": ms})
        for name, ms in (("slow", 90.0), ("quick", 0.01))
    ]
    wrong = dataclasses.replace(others[1], cell=first.cell | {"backend": "wrong"}, flags=("diverges",))
    _, ranked, caution = recommendations(dataclasses.replace(report, rows=[*others, wrong]))
    assert ranked == (
        f"{first.cell['model']} on digits, engines from the fastest: quick in int8 (0.0100 ms), slow in int8 (90.0 ms)."
    )
    assert "mean little" in caution


def test_one_fp32_file_with_two_times(report: SweepReport) -> None:
    """A machine that was faster for one cell than for another; the limit is 15 %."""
    fast, slow = measured("resnet18", "int8", 0.98, 0.5, 11.3), measured("resnet18", "fp16", 0.98, 0.6, 22.0)
    noisy = dataclasses.replace(slow, flags=("noisy",))
    text = " ".join(recommendations(dataclasses.replace(report, rows=[noisy, fast])))
    assert (
        "the same fp32 file took 1.00 ms beside resnet18 ptq int8 onnxruntime, and 1.20 ms beside resnet18 ptq fp16 "
        "onnxruntime."
    ) in text
    alike = measured("resnet18", "fp16", 0.98, 0.57, 22.0)
    flagged = dataclasses.replace(slow, flags=("noisy", "others use the cores"))
    another = dataclasses.replace(slow, cell={**slow.cell, "backend": "openvino"})
    for row in (alike, flagged, another):
        text = " ".join(recommendations(dataclasses.replace(report, rows=[row, fast])))
        assert "the same fp32 file" not in text


def test_times_that_others_decide_name_no_fastest(report: SweepReport) -> None:
    fast, slow = measured("lenet", "int8", 0.98, 0.5, 1.0), measured("lenet", "fp16", 0.98, 0.9, 2.0)
    crowded = dataclasses.replace(fast, flags=("noisy", "others use the cores"))
    text, *_ = recommendations(dataclasses.replace(report, rows=[crowded, slow]))
    assert "onnxruntime, perhaps the fastest of the " in text
    assert "Other processes used the cores while it was timed, so that no time is its own" in text
    assert "noisy" not in text.replace("remeasure=noisy", "")
    text, *_ = recommendations(dataclasses.replace(report, rows=[fast, slow]))
    assert "perhaps" not in text and "Other processes" not in text


def test_what_is_slower_than_its_own_fp32_is_not_recommended(report: SweepReport) -> None:
    slower = measured("lenet", "int8", 0.98, 0.5, 1.0)
    figures = slower.metrics | {"speedup": 0.7, "speedup_low": 0.65, "speedup_high": 0.75}
    slower = dataclasses.replace(slower, verdict="slower", metrics=figures)
    twin = dataclasses.replace(
        slower,
        cell=slower.cell | {"method": "none", "precision": "fp32"},
        verdict="",
        metrics=figures | {"latency_p50_ms": 0.6, "size_mb": 4.0, "size_ratio": 1.0},
    )
    text, *_ = recommendations(dataclasses.replace(report, rows=[slower, twin]))
    assert text.startswith("digits: deploy lenet none fp32 onnxruntime, the fastest of the 2 cells")
    assert "of the best top-1 (98.00 %) that is not slower than its own fp32" in text
    assert "Where size matters more, lenet ptq int8 onnxruntime has 1.00 MB" in text
    (alone,) = recommendations(dataclasses.replace(report, rows=[slower]))
    assert alone.startswith("digits: deploy lenet none fp32 onnxruntime, the fastest of the 2 cells within 1 point")
    assert "It is not in the grid: 98.20 % is its baseline's, 0.350 ms what it took" in alone
    assert "Compressed cells are slower there, the best is lenet ptq int8 onnxruntime (0.70x [0.65, 0.75])" in alone
    better = dataclasses.replace(slower, metrics=figures | {"top1_drop_pp": -3.0})
    (gained,) = recommendations(dataclasses.replace(report, rows=[better]))
    assert gained.startswith("digits: deploy lenet ptq int8 onnxruntime, the only timed cell within 1 point")


def test_a_faster_cell_that_loses_too_much_is_named(report: SweepReport) -> None:
    rows = [measured("resnet18", "int8", 0.98, 0.5, 11.3), measured("lenet", "int8", 0.96, 0.1, 1.0)]
    (text,) = recommendations(dataclasses.replace(report, rows=rows))
    assert "deploy resnet18 ptq int8 onnxruntime, the only timed cell within 1 point" in text
    assert "lenet ptq int8 onnxruntime takes 0.100 ms, and is left out: it is 2.20 points below the best." in text
    (text,) = recommendations(dataclasses.replace(report, rows=rows, require=Requirements(objective="size")))
    assert "left out" not in text


def test_names_tell_rows_apart_by_their_knobs(report: SweepReport) -> None:
    one = measured("resnet18", "fp32", 0.98, 137.2, 11.3)
    rows = [
        dataclasses.replace(
            one, cell=one.cell | {"train.lr": lr, "seed": "0"}, metrics=one.metrics | {"latency_p50_ms": ms}
        )
        for lr, ms in (("0.1", 137.2), ("0.2", 200.0))
    ]
    several = dataclasses.replace(report, rows=rows)
    (text,) = recommendations(several)
    assert "deploy resnet18 ptq fp32 onnxruntime (train.lr=0.1), the fastest of the 2 cells" in text
    assert "with 137 ms and" in text
    assert several.name_of(rows[1]) == "resnet18 ptq fp32 onnxruntime (train.lr=0.2)"
    assert report.name_of(report.rows[0]) == "resnet18 ptq int8 onnxruntime"


def test_a_speed_up_shows_that_it_is_not_one(report: SweepReport) -> None:
    close = dataclasses.replace(
        report.rows[0],
        metrics=report.rows[0].metrics | {"speedup": 1.0042, "speedup_low": 1.0013, "speedup_high": 1.009},
    )
    assert ratio(close) == "1.004x [1.001, 1.009]"
    assert ratio(report.rows[0]) == "2.00x [1.90, 2.10]"
    assert ratio(dataclasses.replace(close, verdict="not distinguishable")) == "1.00x [1.00, 1.01]"


def test_what_was_not_timed_is_recommended_without_a_time(report: SweepReport) -> None:
    timed = measured("resnet18", "int8", 0.98, 0.5, 11.3)
    speed = ("latency_p50_ms", "speedup", "speedup_low", "speedup_high")
    row = dataclasses.replace(
        timed, cell=timed.cell | {"backend": "reference"}, verdict="",
        metrics={name: value for name, value in timed.metrics.items() if name not in speed},
    )  # fmt: skip
    (text,) = recommendations(dataclasses.replace(report, rows=[row], require=Requirements(objective="accuracy")))
    assert "the only cell within 1 point of the best top-1" in text
    assert "It reaches 98.00 [97.00, 98.50] %, with 11.3 MB." in text


def test_a_gain_has_the_sign_that_the_table_has(report: SweepReport) -> None:
    gained = dataclasses.replace(report.rows[0], metrics=report.rows[0].metrics | {"top1_drop_pp": -0.45})
    (text,) = recommendations(dataclasses.replace(report, rows=[gained]))
    assert "The drop of -0.45 points against its baseline (it gained) is not significant" in text


def test_confidence_and_batch_are_those_of_the_protocol(report: SweepReport, tmp_path: Path) -> None:
    rows = [dataclasses.replace(each, confidence=0.9, batch=8) for each in report.rows]
    write(dataclasses.replace(report, rows=rows), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "top-1 % \\[90 %\\]" in text
    assert "Bars are 90 % intervals." in text
    assert "95 %" not in text
    mixed = dataclasses.replace(report, rows=[rows[0], *report.rows[1:]])
    write(mixed, tmp_path)
    assert "top-1 % \\[interval\\]" in (tmp_path / "report.md").read_text()


def test_knobs_that_the_method_implies_tell_nothing(report: SweepReport) -> None:
    cells = (
        {"method": "gpfq", "method.radius": "1.16", "seed": "0"},
        {"method": "factorize", "method.solver": "admm", "method.keep_first": "False", "seed": "0"},
        {"method": "factorize", "method.solver": "svd", "method.keep_first": "False", "seed": "1"},
    )
    one = report.rows[0]
    rows = [dataclasses.replace(one, cell=one.cell | cell) for cell in cells]
    assert distinguishing(rows) == ["method", "seed", "method.solver"]
    shown = dataclasses.replace(report, rows=rows).varying_choices
    assert shown == ["model", "method", "precision", "backend", "seed", "method.solver"]


def test_devices_are_told_apart(report: SweepReport, tmp_path: Path) -> None:
    """Beside the engine wherever it is named, with the figures that only a GPU has."""
    one = measured("resnet18", "fp16", 0.98, 0.5, 11.3)
    one = dataclasses.replace(one, shown=("backend.device",))
    on_cpu = dataclasses.replace(one, cell=one.cell | {"backend.device": "cpu"})
    on_gpu = dataclasses.replace(
        one,
        cell=one.cell | {"backend.device": "cuda"},
        metrics=one.metrics | {"latency_p50_ms": 0.2, "device_p50_ms": 0.125, "peak_device_mb": 31.0},
    )
    both = dataclasses.replace(report, rows=[on_cpu, on_gpu])
    text = "\n".join(recommendations(both))
    assert "deploy resnet18 ptq fp16 onnxruntime on cuda" in text
    assert "onnxruntime on cuda in fp16 (0.200 ms), onnxruntime on cpu in fp16 (0.500 ms)" in text
    write(both, tmp_path / "both")
    page = (tmp_path / "both" / "report.html").read_text()
    assert "<th>backend.device</th>" in page
    assert ">device ms</th>" in page
    assert ">0.125</td>" in page
    alone = dataclasses.replace(report, rows=[on_gpu])
    assert "backend.device" in alone.varying_choices
    write(report, tmp_path / "none")
    assert ">device ms<" not in (tmp_path / "none" / "report.html").read_text()


def test_nothing_believable_is_no_recommendation(report: SweepReport) -> None:
    (text,) = recommendations(dataclasses.replace(report, rows=[report.rows[2]]))
    assert text.startswith("digits: deploy mobilenetv3 none fp32 onnxruntime, the only timed cell")
    untimed = {name: value for name, value in report.rows[2].metrics.items() if "speedup" not in name}
    only = dataclasses.replace(report, rows=[dataclasses.replace(report.rows[2], metrics=untimed)])
    assert "nothing can be recommended" in recommendations(only)[0]
    skipped = dataclasses.replace(report.rows[2], status="skipped", metrics={})
    assert "no cell was measured" in recommendations(dataclasses.replace(report, rows=[skipped]))[0]


def test_findings_stand_beside_their_cells(report: SweepReport, tmp_path: Path) -> None:
    slower = dataclasses.replace(
        report.rows[0], verdict="slower", findings=("conversions take <half>", "layers/channels.png")
    )
    picture = tmp_path / "runs" / "1" / "pictures" / "layers" / "channels.png"
    slower = dataclasses.replace(slower, pictures=(picture,))
    write(dataclasses.replace(report, rows=[slower, *report.rows[1:]]), tmp_path)
    name = " ".join(slower.cell[group] for group in report.varying_choices)
    text, address = (tmp_path / "report.md").read_text(), "runs/1/pictures/layers/channels.png"
    assert f"- {name}: slower; conversions take \\<half\\>; [layers/channels.png]({address})" in text
    page, link = (tmp_path / "report.html").read_text(), f'<a href="{address}">layers/channels.png</a>'
    assert f"<li><b>{name}</b>: slower; conversions take &lt;half&gt;; {link}</li>" in page


def test_what_explains_many_cells_is_said_once(report: SweepReport) -> None:
    (row, *_) = report.rows
    rows = [
        dataclasses.replace(row, cell=row.cell | {"backend": f"engine{number}"}, findings=("others use the cores",))
        for number in range(9)
    ]
    ((name, text, _),) = findings(dataclasses.replace(report, rows=rows))
    assert text.endswith("; others use the cores")
    assert name.count("engine") == 6 and name.endswith(" and 3 more")


def test_only_what_has_no_time_is_called_not_timed(report: SweepReport) -> None:
    timed = dataclasses.replace(report.rows[0], verdict="", findings=("others use the cores",))
    untimed = dataclasses.replace(timed, metrics={"top1": 0.9})
    told = [text for _, text, _ in findings(dataclasses.replace(report, rows=[timed, untimed]))]
    assert told == ["others use the cores", "not timed; others use the cores"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminal_shows_one_line_a_cell(report: SweepReport, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(report, width=width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    figures = [line for line in lines if re.match(r" ?(resnet18|mobilenetv3) ", line)]
    assert len(figures) == 3
    assert all("98.0" in line or "98.5" in line or "60.0" in line for line in figures)
    assert "noisy" in "".join(figures)
    assert any(line.startswith("failed ") and "SIGSEGV" in line for line in lines)


def test_a_reason_that_several_cells_share_is_told_once(report: SweepReport) -> None:
    failed = next(row for row in report.rows if row.status == "failed")
    alike = dataclasses.replace(failed, cell={**failed.cell, "backend": "openvino"})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(dataclasses.replace(report, rows=[*report.rows, alike]), width=100))
    text = console.export_text()
    assert text.count("SIGSEGV") == 1
    assert re.search(r"^failed  .*: for the same reason$", text, re.MULTILINE)


def test_the_csv_has_every_cell_at_full_precision(report: SweepReport, tmp_path: Path) -> None:
    write(report, tmp_path)
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [line["status"] for line in rows] == [*["finished"] * 3, "failed", "skipped", "interrupted"]
    assert float(rows[0]["top1_low"]) == report.rows[0].metrics["top1_low"]
    assert rows[3]["top1"] == ""


def test_a_frame_has_the_usual_metrics_even_if_every_cell_failed(report: SweepReport) -> None:
    frame = dataclasses.replace(report, rows=[row for row in report.rows if row.status == "failed"]).frame()
    assert frame[["top1", "top1_low", "latency_p50_ms", "speedup_high", "size_mb", "peak_rss_mb"]].isna().all(axis=None)
    assert list(frame["status"]) == ["failed"] and frame["top1"].dtype == float
    assert {*frame.columns} <= {*report.frame().columns}


def test_markdown_is_escaped(report: SweepReport, tmp_path: Path) -> None:
    write(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "use backend=reference \\| 2" in text
    assert "````\n<b>Fatal</b> ```error```\n````" in text
    header, rule, *rows = text[text.index("| model") :].splitlines()[:5]
    assert {line.replace("\\|", "").count("|") for line in (header, rule, *rows)} == {header.count("|")}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.slow
def test_the_html_in_a_browser(report: SweepReport, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    write(report, tmp_path)
    troubles: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
        page.goto((tmp_path / "report.html").as_uri())
        assert page.locator("#cells tbody tr").count() == 3
        assert page.locator("p b").all_inner_texts() == ["deploy resnet18 ptq int8 onnxruntime"]
        images = page.locator("img")
        assert images.count() == 2
        assert all(images.nth(i).evaluate("image => image.naturalWidth") > 500 for i in range(2))
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        head = page.locator("#cells th", has_text="p50 ms")
        orders = []
        for _ in range(2):
            head.click()
            column = head.evaluate("head => head.cellIndex")
            orders.append(
                [float(text) for text in page.locator(f"#cells tbody td:nth-child({column + 1})").all_inner_texts()]
            )
        assert orders == [[0.1, 0.5, 1.5], [1.5, 0.5, 0.1]]
        assert "<b>Fatal</b>" in page.inner_text("body")
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert troubles == []


def test_pictures_have_a_size(report: SweepReport, tmp_path: Path) -> None:
    written = write(report, tmp_path)
    pictures = [path for path in written if path.suffix == ".png"]
    assert [path.name for path in pictures] == ["digits_latency.png", "digits_size.png"]
    assert all(path.stat().st_size > 10_000 for path in pictures)
    assert len(written) == 5


def test_pictures_are_drawn_anew_only_if_their_figures_change(report: SweepReport, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def written(name: str, rows: list[Row]) -> dict[str, bytes]:
        paths = write(dataclasses.replace(report, rows=rows), tmp_path / name, store)
        return {path.name: path.read_bytes() for path in paths if path.suffix == ".png"}

    def drawn() -> int:
        return len(list(store.root.glob("report/*/manifest.json")))

    first = written("first", report.rows)
    assert first and drawn() == 1
    again = [
        dataclasses.replace(each, status="reused", run_id="another") if each.measured else each for each in report.rows
    ]
    assert written("again", again) == first and drawn() == 1
    better = dataclasses.replace(again[0], metrics=again[0].metrics | {"top1": 0.5})
    assert written("better", [better, *again[1:]]) != first and drawn() == 2


def studied() -> list[Row]:
    """A study of calibration: five numbers of images with three seeds, by two methods."""
    rows = []
    for method in ("ptq", "gptq"):
        for count in (1, 4, 16, 64, 256):
            for seed in range(3):
                cell = {"method.calibration_images": str(count), "method.calibration_seed": str(seed), "method": method}
                plain = measured("resnet18", "int8", 0.98 - 0.1 / count - 0.01 * seed / count, 1, 2)
                rows.append(dataclasses.replace(plain, cell=plain.cell | cell))
    return rows


def illustrated(report: SweepReport, folder: Path) -> SweepReport:
    """The same report, with a picture of its first row and one of its baseline."""
    for picture in (folder / "runs" / "a b" / "confusion.png", folder / "runs" / "base" / "training.png"):
        picture.parent.mkdir(parents=True)
        Figure().savefig(picture)
    first = dataclasses.replace(report.rows[0], pictures=(folder / "runs" / "a b" / "confusion.png",))
    baseline = dataclasses.replace(report.baselines[0], pictures=(folder / "runs" / "base" / "training.png",))
    return dataclasses.replace(report, rows=[first, *report.rows[1:]], baselines=[baseline])


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.slow
def test_pictures_of_a_cell_are_loaded_when_they_are_opened(report: SweepReport, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    write(illustrated(report, tmp_path), tmp_path)
    loaded: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: loaded.append(request.url) if "/runs/" in request.url else None)
        page.goto((tmp_path / "report.html").as_uri())
        assert page.locator("summary").all_inner_texts() == [
            "resnet18 ptq int8 onnxruntime",
            "baseline resnet18 digits",
        ]
        assert loaded == []
        page.locator("summary").first.click()
        picture = page.locator("details img").first
        picture.scroll_into_view_if_needed()
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.naturalWidth") > 500
        assert [url.rpartition("/runs/")[2] for url in loaded] == ["a%20b/confusion.png"]
        browser.close()


def test_data_sets_side_by_side_and_accuracy_against_bits(report: SweepReport, tmp_path: Path) -> None:
    rows = []
    for dataset in ("digits", "mnist"):
        for precision, bits in (("int8", 8.2), ("int4", 4.3), ("fp32", 32.0)):
            plain = row("resnet18", precision, top1=0.9 + bits / 400, bits_per_parameter=bits)
            cell = plain.cell | {"dataset": dataset, "method": "none" if precision == "fp32" else "ptq"}
            rows.append(dataclasses.replace(plain, cell=cell))
    names = [path.name for path in write(dataclasses.replace(report, rows=rows), tmp_path)]
    assert {"datasets.png", "digits_bits.png", "mnist_bits.png"} <= set(names)
    assert "accuracy on each data set" in (tmp_path / "report.md").read_text()
    alone = [path.name for path in write(dataclasses.replace(report, rows=rows[:1]), tmp_path)]
    assert not {"datasets.png", "digits_bits.png"} & set(alone)


def test_numbers_that_were_swept_have_a_picture(report: SweepReport, tmp_path: Path) -> None:
    rows = studied()
    assert swept_numbers(rows) == ["method.calibration_images"]
    assert swept_numbers([row for row in rows if row.cell["method.calibration_images"] in ("1", "4")]) == []
    named = [dataclasses.replace(rows[0], cell=rows[0].cell | {"method.x": name}) for name in "abc"]
    assert swept_numbers(named) == []
    written = write(dataclasses.replace(report, rows=rows), tmp_path)
    (picture,) = [path for path in written if path.name == "digits_method.calibration_images.png"]
    assert picture.stat().st_size > 10_000
    assert picture.name in (tmp_path / "report.md").read_text()


def test_what_was_only_lowered_is_shown_with_its_size_and_why(report: SweepReport, tmp_path: Path) -> None:
    lowered = dataclasses.replace(row("resnet18", "int8", "lowered", flags=("not run",), size_mb=14.4), reason="no GPU")
    only = dataclasses.replace(report, rows=[lowered])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(only, width=100))
    figures, why, advice = (line for line in console.export_text().splitlines() if "resnet18" in line or ":" in line)
    assert "14.4" in figures
    assert "not run" in figures
    assert why == "lowered  resnet18 ptq int8 onnxruntime: no GPU"
    assert "nothing can be recommended" in advice
    write(only, tmp_path)
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "1 cell: 1 lowered." in markdown
    assert "- resnet18 ptq int8 onnxruntime: no GPU" in markdown
    assert ">14.4</td>" in page
    assert "<li><b>resnet18 ptq int8 onnxruntime</b>: no GPU</li>" in page


def test_a_knob_that_only_other_cells_set_is_shown_with_its_default(report: SweepReport, tmp_path: Path) -> None:
    one = report.rows[0]
    given = dataclasses.replace(one, cell=one.cell | {"method.weight_range": "mse"})
    usual = dataclasses.replace(one, settings={"method.weight_range": "minmax"})
    both = dataclasses.replace(report, rows=[given, usual])
    assert both.name_of(usual) == "resnet18 ptq int8 onnxruntime (method.weight_range=minmax)"
    assert [row["method.weight_range"] for row in both.records()] == ["mse", "minmax"]
    write(both, tmp_path)
    assert "<td>minmax</td>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("most", [0.11, 0.3, 0.9, 40.0])
def test_an_axis_of_latencies_has_several_numbers(most: float) -> None:
    rows = [measured("lenet", "int8", 0.9, ms, 0.1) for ms in (0.0236, most)]
    figure = against(rows, "digits", "latency_p50_ms", "latency")
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    low, high = axis.get_view_interval()
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    assert sum(low <= tick.get_loc() <= high and bool(tick.label1.get_text()) for tick in ticks) >= 2


def test_of_many_unequal_machines_the_worst_are_told_in_full(report: SweepReport) -> None:
    """Each network here was measured while the machine was slower by some more."""
    rows = [
        measured(f"net{number}", precision, 0.98, ms, 1)
        for number in range(7)
        for precision, ms in (("int8", 1.0), ("int4", 1.5 + number / 10))
    ]
    text = "\n".join(recommendations(dataclasses.replace(report, rows=rows)))
    assert re.findall(r"not equally fast for all cells of (\w+)", text) == ["net6", "net5", "net4"]
    assert "Nor was it for those of net3 on onnxruntime, net2 on onnxruntime, net1 on onnxruntime and 1 more" in text
