"""What a gate tells those who watch it: JUnit XML for servers that run tests, and a summary for GitHub."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal

from bitsweep.comparison.content import Comparison
from bitsweep.comparison.showing import markdown
from bitsweep.errors import UsageError
from bitsweep.report.templating import escaped
from bitsweep.text import plain


def write_junit(comparison: Comparison, file: Path, *, strict: bool) -> None:
    """Write a test case a cell; one that became worse has failed, one that nothing was learned of is skipped."""
    suite = ElementTree.Element("testsuite", name="bitsweep gate", tests=str(len(comparison.cells)))
    failures = skipped = 0
    for cell in comparison.cells:
        case = ElementTree.SubElement(suite, "testcase", classname="bitsweep", name=plain(cell.name))
        lines = cell.regressions or (cell.doubts if strict else ())
        failures += bool(lines)
        if lines:  # in one element: of several, most servers show the first
            ElementTree.SubElement(case, "failure", message=plain("; ".join(lines)))
        elif cell.doubts:
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=plain("; ".join(cell.doubts)))
    suite.set("failures", str(failures))
    suite.set("skipped", str(skipped))
    ElementTree.indent(suite)
    write(ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n", file)


def write_summary(comparison: Comparison, file: Path) -> None:
    """Add the comparison, with the regressions first, to a summary of GitHub's."""
    lines = [f"- {escaped(name)}: {escaped(line)}" for name, line in comparison.regressions]
    verdict = f"**{len(lines)} regression{'s' * (len(lines) != 1)}**" if lines else "No regressions."
    write("\n".join([markdown(comparison), verdict, "", *lines, ""]), file, mode="a")


def write(text: str, file: Path, *, mode: Literal["w", "a"] = "w") -> None:
    """Write a text, or add it with mode ``a``.

    Raises:
        UsageError: that cannot be.
    """
    try:
        with file.open(mode, encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror}); name another file") from error
