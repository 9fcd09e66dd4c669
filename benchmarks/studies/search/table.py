"""The study's rows as a table, each beside the row that it is compared with, paired by window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.studies.pages import markdown_table
from benchmarks.studies.search.rows import COMPARED

COLUMNS = ["row", "decoder removed", "perplexity", "÷ its own without", "what it found", "measuring, deciding (CPU s)"]
Record = Mapping[str, Any]


def table(records: Mapping[str, Record]) -> str:
    """Markdown, with the setting below it."""
    rows = [_row(name, record, records) for name, record in records.items()]
    settings = sorted({(*record["calibration"], *record["evaluation"]) for record in records.values()})
    made = sorted(
        {
            f"{record['processor']}, {record['threads']} thread, commit {record['commit'][:12]}{record['commit'][40:]}"
            for record in records.values()
        }
    )
    said = [
        f"Calibrated on {count} windows of {length} tokens, perplexity on {read} windows of {long} tokens ± its standard error."
        for count, length, read, long in settings
    ]
    return markdown_table(COLUMNS, rows) + "\n\n" + " ".join([*said, "Made on:", "; ".join(made) + "."])


def _row(name: str, record: Record, records: Mapping[str, Record]) -> list[str]:
    cost, removed = record.get("processor_seconds"), record.get("removed")
    error = "" if record["standard_error"] is None else f" ± {record['standard_error']:.2f}"
    return [
        name,
        f"{removed['decoder_parameters']:.1%}" if removed else "–",
        f"{record['perplexity']:.2f}{error}",
        ratio(record, records[COMPARED[name]]) if COMPARED.get(name) in records else "–",
        _found(record.get("facts", {})),
        f"{cost['measure']:.0f}, {cost['decide']:.0f}" if cost else "–",
    ]


def ratio(record: Record, other: Record) -> str:
    """Of two perplexities, with a 95 % interval over paired windows."""
    differences = torch.tensor(record["window_losses"], dtype=torch.float64) - torch.tensor(other["window_losses"], dtype=torch.float64)
    mean, spread = differences.mean().item(), 1.96 * differences.std().item() / math.sqrt(len(differences))
    return f"{math.exp(mean):.3f} [{math.exp(mean - spread):.3f}, {math.exp(mean + spread):.3f}]"


def _found(facts: Mapping[str, Any]) -> str:
    if search := facts.get("search"):
        first, last = search["divergence"][0], search["divergence"][-1]
        return (
            f"{search['evaluations']} choices on {search['tokens']:,} tokens, {search['generations']} generations: "
            f"{first:.3f} to {last:.3f} nats from dense"
        )
    if maps := facts.get("maps"):
        return "; ".join(
            f"{_blocks(found['stands for'])} into {before}, {found['error left']:.2f} of the squared error left"
            for before, found in maps.items()
        )
    return "–"


def _blocks(numbers: Sequence[int]) -> str:
    return f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]}–{numbers[-1]}"
