"""What a sweep found: a table for the terminal; a page, a text and a spreadsheet with pictures and a recommendation."""

from bitsweep.report.content import Baseline, Row, RowStatus, SweepReport
from bitsweep.report.files import write
from bitsweep.report.terminal import table

__all__ = ["Baseline", "Row", "RowStatus", "SweepReport", "table", "write"]
