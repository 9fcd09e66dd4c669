"""The table of types: a row each, marks for its cells, and the reasons behind the marks, each written once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.studies.pages import markdown_table
from benchmarks.studies.types.cells import CELLS, FAILS, NOTHING, PASSES, PROFILES, REFUSED, SPACES

Record = Mapping[str, Any]
PASSED, NONE, NOT_YET = "✓", "·", "?"
LETTERS = {REFUSED: "r", FAILS: "f"}
COLUMNS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect",),
    **{
        title: tuple(f"{space}/{profile}" for profile in PROFILES)
        for title, space in zip(("FFN", "KV groups", "blocks", "residual"), SPACES, strict=True)
    },
    "ONNX": ("onnx/portable", "onnx/fused"),
    "GGUF": ("gguf/alike", "gguf/different"),
}
LEGEND = (
    f"Marks of FFN, KV groups, blocks and residual: profiles {', '.join(f'`{profile}`' for profile in PROFILES)}, in this order; of ONNX: portable, "
    "fused, of blocks that differ; of GGUF: blocks alike, blocks that differ. "
    f"{PASSED}: it passes its gate; r: refused with the sentence of that number; f: it fails; {NONE}: there is nothing to export; {NOT_YET}: not tried yet."
)


class Reasons:
    """Sentences, numbered as they come; those of one kind that differ in the type's name alone are one."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], int] = {}

    def mark(self, model_type: str, found: Record | None) -> str:
        """What stands in a cell."""
        if found is None:
            return NOT_YET
        outcome = str(found["outcome"])
        if outcome not in LETTERS:
            return {PASSES: PASSED, NOTHING: NONE}[outcome]
        named = re.compile(rf"(?<![\w.-]){re.escape(model_type)}(?![\w-]|\.\w)")  # llama, but not llama.cpp
        text = named.sub("TYPE", str(found["why"])).replace("|", "\\|")
        number = self.numbers.setdefault((outcome, text), 1 + sum(kind == outcome for kind, _ in self.numbers))
        return f"{LETTERS[outcome]}{number}"

    def lines(self) -> list[str]:
        """A line per reason, the refusals first."""
        ordered = sorted(self.numbers.items(), key=lambda item: (item[0][0] != REFUSED, item[1]))
        return [f"- {LETTERS[outcome]}{number}: {text}" for (outcome, text), number in ordered]


def table(records: Sequence[Record]) -> str:
    """The table in Markdown, with its legend and reasons."""
    reasons = Reasons()
    rows = [
        [
            f"`{record['type']}`",
            *(" ".join(reasons.mark(record["type"], record["cells"].get(name)) for name in names) for names in COLUMNS.values()),
        ]
        for record in records
    ]
    parts = [summary(records), markdown_table(["type", *COLUMNS], rows), LEGEND, "\n".join(reasons.lines())]
    return "\n\n".join(part for part in parts if part)


def summary(records: Sequence[Record]) -> str:
    """How many cells came to what, and with which versions."""
    outcomes = [cell["outcome"] for record in records for cell in record["cells"].values()]
    versions = sorted({", ".join(f"{name} {number}" for name, number in record["versions"].items()) for record in records})
    counted = {"pass": PASSES, "are refused": REFUSED, "fail": FAILS, "have nothing to export": NOTHING}
    counts = ", ".join(f"{outcomes.count(outcome)} {verb}" for verb, outcome in counted.items())
    return f"{len(records)} types, {len(CELLS)} cells each: {counts}. With {'; '.join(versions)}."
