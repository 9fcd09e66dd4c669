"""File names of a package; those of the report are what the folder that it is given holds."""

from __future__ import annotations

MANIFEST, CARD, RUN, RECIPE = "manifest.json", "README.md", "run.json", "recipe.yaml"
REPORT, HTML, MARKDOWN = "report.json", "report.html", "report.md"
