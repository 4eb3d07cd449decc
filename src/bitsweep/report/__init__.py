"""What a sweep found: a table for the terminal; a page, a text and a spreadsheet with pictures and a recommendation."""

from bitsweep.report.advice import unmet
from bitsweep.report.content import SweepReport
from bitsweep.report.files import write
from bitsweep.report.row import Baseline, Race, Row, RowStatus
from bitsweep.report.terminal import table

__all__ = ["Baseline", "Race", "Row", "RowStatus", "SweepReport", "table", "unmet", "write"]
