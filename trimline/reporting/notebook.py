"""The report as a notebook shows it: the result in a sentence, dense against pruned, and the plots.

It holds no script and no address: what a notebook does not trust it takes out, and a notebook is sent to people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from trimline.reporting.data import ReportData
from trimline.reporting.headline import all_warnings, headline
from trimline.reporting.page import plots_of, templates
from trimline.reporting.plots import figure
from trimline.reporting.sections import sections
from trimline.reporting.still import still
from trimline.reporting.tables import comparison_table


@dataclass(frozen=True)
class Report(ReportData):
    """Everything that a report shows; in a notebook it is drawn."""

    def _repr_html_(self) -> str:
        return render_notebook(self)


def render_notebook(data: ReportData, places: Sequence[tuple[str, Path]] = ()) -> str:
    """A piece of HTML; everything from the data is escaped.

    Args:
        data: what is shown.
        places: names and paths that stand below the table.
    """
    drawn = [(item.caption, Markup(still(figure(item.key, data), item.caption))) for item in plots_of(sections(data))]
    return (
        templates()
        .get_template("notebook.html.jinja")
        .render(
            headline=headline(data),
            comparison=comparison_table(data),
            targets=data.targets,
            warnings=all_warnings(data),
            places=places,
            plots=drawn,
        )
    )
