"""The part of the page that a reader can change, in a browser: filters, axes, and what is said of a point."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitsweep.config.requirement import Requirements
from bitsweep.report import Row, SweepReport, write
from bitsweep.report.interactive import plotted
from tests.report.test_report import illustrated, measured, report

__all__ = ["report"]
CHROMIUM = shutil.which("chromium")
FOREIGN = "</script><script>alert(1)</script>"


def cells() -> Iterator[Row]:
    """Five hundred, as a large grid has them: the first is the fastest, the last the most accurate."""
    choices = itertools.product(
        ("resnet18", "mobilenetv3", "alexnet", "vgg16", FOREIGN),
        ("none", "ptq", "gptq", "adaround"),
        ("fp32", "fp16", "int8", "int4", "ternary"),
        ("onnxruntime", "openvino", "executorch", "fbgemm", "inductor"),
    )
    for number, (model, method, precision, backend) in enumerate(choices):
        flags = ("diverges",) if number % 50 == 7 else ()
        plain = measured(model, precision, 0.7 + 0.0005 * number, 1 + 0.02 * number, 100 - 0.1 * number, *flags)
        metrics = plain.metrics | {
            "test_images": 449, "throughput_ips": 1000 / (1 + 0.02 * number), "latency_p50_ms_low": 0.9,
            "latency_p50_ms_high": 1.1, "latency_p50_ms_b8": 50 - 0.02 * number,
        }  # fmt: skip
        yield dataclasses.replace(
            plain, cell=plain.cell | {"model": model, "method": method, "backend": backend}, metrics=metrics,
            run_id=f"{number:032x}", scheme="weights s8 per-channel symmetric", findings=(f"limited by {model}",),
        )  # fmt: skip


def test_what_is_plotted_has_the_units_of_the_table(report: SweepReport) -> None:
    found = plotted(dataclasses.replace(report, require=Requirements(top1=0.9, p50_ms=5)))
    assert [cell["values"]["top1"] for cell in found["cells"]] == [98.0, 98.5, 60.0]
    assert [cell["believable"] for cell in found["cells"]] == [True, True, False]
    assert [(limit["metric"], limit["value"]) for limit in found["limits"]] == [("top1", 90), ("latency_p50_ms", 5)]
    assert [axis["name"] for axis in found["axes"] if axis["better"] == "more"] == ["speedup", "top1"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_five_hundred_cells_in_a_browser(report: SweepReport, tmp_path: Path) -> None:
    from playwright.sync_api import Page, sync_playwright

    rows = list(cells())
    large = dataclasses.replace(report, rows=rows, require=Requirements(p50_ms=5, top1=0.8))
    write(illustrated(large, tmp_path), tmp_path)
    file = tmp_path / "report.html"
    assert file.stat().st_size < 5_000_000
    troubles: list[str] = []

    def opened(width: int, *, scripts: bool = True) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, java_script_enabled=scripts)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append("a name was run"), dialog.dismiss()))
        page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
        page.goto(file.as_uri())
        return page

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = opened(1400)
        points, shown = page.locator("#chart .point"), page.locator("#cells tbody tr:visible")
        assert points.count() == shown.count() == 500
        # The front is drawn of what is believed: accuracy rises with the latency here.
        assert page.locator("#chart .point.best").count() == 490
        assert page.locator("#chart .limit").count() == 2

        # A filter applies to the table and to the points.
        page.get_by_label("filter by precision").fill("int8|fp16")
        page.get_by_label("filter by p50 ms").fill("<= 2")
        expected = [
            row for row in rows if row.cell["precision"] in ("int8", "fp16") and row.metrics["latency_p50_ms"] <= 2
        ]
        page.wait_for_function(f"document.querySelectorAll('#chart .point').length === {len(expected)}")
        assert shown.count() == len(expected)
        assert page.inner_text("#count span") == f"{len(expected)} of 500 cells"
        page.get_by_role("button", name="show all").click()
        assert points.count() == 500

        # Where all values are the same, the axis reaches as far as their intervals, here from 69 to 70.5 %.
        page.get_by_label("filter by p50 ms").fill("1..1")
        page.wait_for_function("document.querySelectorAll('#chart .point').length === 1")
        numbers = page.locator("#chart text[text-anchor=end]:not(.limit-name)").all_text_contents()
        assert len(numbers) > 2 and all(68.9 < float(number) < 70.6 for number in numbers)
        page.get_by_role("button", name="show all").click()

        # Any axis, and any batch size.
        page.locator("select[name=x]").select_option("size_mb")
        assert "size (MB)" in page.locator("#chart svg").get_attribute("aria-label")
        assert page.locator("#chart .point.best").count() == 1  # the last is the smallest and the most accurate
        page.locator("select[name=x]").select_option("latency_p50_ms")
        page.locator("select[name=batch]").select_option("8")
        assert page.locator("#chart .point.best").count() == 1

        # A point says what the table does, with links, where it can be read.
        page.evaluate("window.scrollTo(0, document.querySelector('#chart').offsetTop - 500)")
        page.locator("#chart g").first.dispatch_event("click")
        box = page.locator("#tip").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 900
        said = page.inner_text("#tip")
        assert "resnet18" in said and "onnxruntime" in said
        run = page.locator("#tip a", has_text="MLflow").get_attribute("href")
        assert run == "http://127.0.0.1:5000/#/experiments/1/runs/" + "0" * 32
        page.locator("#tip a", has_text="pictures").click()
        assert page.locator("details[open] summary").all_inner_texts() == ["resnet18 none fp32 onnxruntime"]
        assert FOREIGN in page.inner_text("#legend")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("(table => table.scrollWidth <= table.clientWidth)(document.querySelector('.scroll'))")

        narrow = opened(400)
        assert narrow.locator("#chart .point").count() == 500
        assert narrow.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

        # A sheet of paper has room for every column.
        sheet = opened(720)
        sheet.emulate_media(media="print")
        assert sheet.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        sheet.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert sheet.locator("#chart svg").bounding_box()["width"] == 700
        assert sheet.locator("summary:visible").count() == 0  # what is folded stays away, with its title
        assert sheet.get_by_role("heading", name="Pictures of each cell").count() == 0

        # Without scripts it is the static report.
        static = opened(1400, scripts=False)
        assert static.locator("#cells tbody tr:visible").count() == 500
        assert static.locator(".interactive:visible").count() == 0
        assert static.locator("figure > img:visible").count() >= 2
        browser.close()
    assert troubles == []
