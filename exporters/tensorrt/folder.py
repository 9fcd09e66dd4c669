"""File names of an engine's folder, beside those of the export that it was built from."""

from __future__ import annotations

ENGINE, RECORD, INSPECTOR, TIMINGS, SECONDS = "model.engine", "build.json", "layers.json", "timing.cache", "seconds.json"
LOG = "build.log"
QDQ = "qdq"  # folder of the quantised graph
