"""A report of cells with names that would act on what shows them if they were let."""

import csv
import dataclasses
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from bitsweep.report import SweepReport, table, write
from bitsweep.report.templating import escaped
from bitsweep.text import plain
from tests.plots.test_odd_names import ODD
from tests.report.test_report import measured, report, row

__all__ = ["report"]
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def odd(report: SweepReport) -> SweepReport:
    """Every word that is not the program's own is odd."""
    rows = []
    for number, name in enumerate(ODD):
        cell = {"model": name, "model.arguments": name, "dataset": "digits" if number % 2 else name, f"a.{name}": "1"}
        plain_row = measured("m", "int8", 0.9 + number / 1000, 1.0 + number, 10.0 + number)
        rows.append(
            dataclasses.replace(
                plain_row, cell=plain_row.cell | cell, findings=(name,), scheme=name, command=f"run {name}",
                verdict="slower",
            )
        )  # fmt: skip
    failed = [dataclasses.replace(row(name, "int8", "failed"), reason=name, log_tail=name) for name in ODD]
    skipped = [dataclasses.replace(row(name, "int8", "skipped"), reason=name) for name in ODD]
    return dataclasses.replace(report, sweep_id=ODD[4], command=" ".join(ODD), rows=[*rows, *failed, *skipped])


@pytest.fixture(scope="module")
def folder(odd: SweepReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of that report."""
    made = tmp_path_factory.mktemp("odd")
    write(odd, made)
    return made


class _Elements(HTMLParser):
    """The elements of a page, and the text of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.elements[-1] == "td":
            self.cells[-1] += data


@pytest.mark.slow
def test_html_shows_names_as_they_are(folder: Path) -> None:
    page = _Elements()
    page.feed((folder / "report.html").read_text())
    assert page.elements.count("script") == 2  # the figures, and the program
    assert {plain(name) for name in ODD} <= set(page.cells)
    assert "\x1b" not in (folder / "report.html").read_text()


@pytest.mark.slow
def test_markdown_has_no_element_that_a_name_made(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    outside = re.sub(r"^(`{3,})\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^(`+) .* \1$", "", outside, flags=re.MULTILINE)  # the command
    free = re.sub(r"\\[\\`*_\[\]<>|~$&#]", "", outside)
    assert not re.search(r"[`<$~]", free)
    tables = [line for line in free.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1


def test_a_terminal_gets_no_control_characters(odd: SweepReport) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(odd, width=200))
    text = console.export_text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert "\\x1b[31mred" in text


@pytest.mark.slow
def test_files_have_plain_names_and_pictures_are_all_drawn(folder: Path) -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", path.name) for path in folder.iterdir())
    assert "could not be drawn" not in (folder / "report.md").read_text()
    with (folder / "cells.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 3 * len(ODD)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("- x", "\\- x"),
        ("1. x", "1\\. x"),
        ("2026-01", "2026-01"),
        ("-0.45", "-0.45"),
        ("80.1", "80.1"),
        ("===", "\\==="),
        ("$x$ <b> & `q`", "\\$x\\$ \\<b\\> \\& \\`q\\`"),
    ],
)
def test_markdown_is_escaped_where_it_would_mean_something(text: str, shown: str) -> None:
    assert escaped(text) == shown


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_runs_nothing_of_a_name(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto((folder / "report.html").as_uri())
        assert "<script>alert(1)</script>" in page.inner_text("#cells")
        assert page.locator("#chart .point").count() > 0
        assert "<script>alert(1)</script>" in page.inner_text("#legend")
        for head in page.locator("#cells thead th:not(.links)").all():  # wherever it is clicked
            head.click(position={"x": head.bounding_box()["width"] - 4, "y": 12})
            assert head.get_attribute("aria-sort") == "ascending"
        for point in page.locator("#chart g").all():
            point.dispatch_event("click")
        assert page.locator("script").count() == 2
        assert dialogs == []
        browser.close()
