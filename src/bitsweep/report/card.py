"""The card of a model that is to be deployed: what it is, what was measured, where, and how it was made."""

from pathlib import Path

from bitsweep.report.advice import recommendations
from bitsweep.report.columns import columns
from bitsweep.report.content import SweepReport, environment_lines
from bitsweep.report.row import Row
from bitsweep.report.templating import markdown

_USAGE = """import mlflow
model = mlflow.pyfunc.load_model("{address}")
model.predict(["picture.jpg"])  # paths, bytes, images of Pillow's, or uint8 arrays [H, W, C]"""


def model_card(report: SweepReport, row: Row, *, address: str) -> str:
    """The card of a row of a report, in Markdown.

    Args:
        address: by which MLflow loads the model.
    """
    about = dict(environment_lines(report))
    return (
        markdown(Path())
        .get_template("card.md.jinja")
        .render(
            name=report.name_of(row),
            choices=list(row.cell.items()),
            figures=[(column.title, text) for column in columns(report) if (text := column.text(row))],
            recommended=recommendations(report)[0],
            findings=row.findings,
            scheme=row.scheme,
            measured_on=about["CPU"],
            versions=about["versions"],
            commit=about["commit"],
            command=row.command,
            sweep=report.sweep_id,
            usage=_USAGE.format(address=address),
        )
    )
