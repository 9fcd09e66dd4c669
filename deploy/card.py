"""The model card of a package: what it is, what was removed from what, how that was measured, how to load it.

It holds nothing that changes from run to run on the same machine; timings stand in the report and in run.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deploy.recipe import PackageSlice
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.nested import nested
from pipeline.common.markdown import escape
from pipeline.common.plain_yaml import read_plain_yaml

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ONLY_PACKAGE = ("<!-- of the package alone -->", "<!-- -->")  # around what is not in a hub's folder
SHARES = {
    "ffn_channels": "FFN channels",
    "kv_groups": "KV groups (a key/value head and its query heads)",
    "blocks": "whole blocks",
    "residual_channels": "channels of the residual stream",
    "decoder_parameters": "linear parameters of the decoder",
    "decoder_flops": "FLOPs of the decoder",
    "parameters": "all parameters",
}


def model_card(
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    plan: Mapping[str, Any],
    recipe_text: str,
    slice_: PackageSlice,
    *,
    onnx: bool,
    licence_files: tuple[str, ...] = (),
) -> str:
    """The text of README.md.

    Args:
        report: a report.json (``trimline.reporting.ReportData``).
        config: the smaller checkpoint's config.json.
        plan: a plan.json.
        recipe_text: the recipe's YAML.
        slice_: licence and base model.
        onnx: an ONNX export is in the package.
        licence_files: licence files in the package, relative to it.
    """
    inside = nested(config)
    page = _environment().get_template("card.md.jinja")
    dense, pruned = (next((row for row in report["models"] if row["role"] == role), None) for role in ("dense", "pruned"))
    return page.render(
        front_matter=front_matter(report, recipe_text, slice_, onnx=onnx),
        report=report,
        removed=[(SHARES[key], share) for key, share in (report["removed"] or {}).items() if key in SHARES],
        steps=[step["title"] for step in plan["steps"]],
        blocks=Geometry.from_config(config if inside is None else inside.text).blocks,
        auto_class="AutoModelForCausalLM" if inside is None else "AutoModelForImageTextToText",
        comparison=list(_comparison(dense, pruned, report.get("recovery"))) if dense and pruned else [],
        by_text=list(_by_text(report.get("by_text", ()))),
        tasks=list(_tasks(report.get("tasks", ()))),
        retrieval=list(_retrieval(report.get("retrieval", ()))),
        remote_code="auto_map" in config,
        onnx=onnx,
        licence=slice_.licence,
        licence_files=licence_files,
        only_package=ONLY_PACKAGE,
    )


def hub_card(card: str) -> str:
    """A package's card for a folder in which the checkpoint lies at the top, as model hubs have it."""
    begin, end = map(re.escape, ONLY_PACKAGE)
    shorter = re.sub(rf"{begin}\n.*?{end}\n", "", card, flags=re.DOTALL)
    return (
        shorter.replace('from_pretrained("model"', 'from_pretrained("."').replace("in `model/`", "in this folder").replace("`model/", "`")
    )


def front_matter(report: Mapping[str, Any], recipe_text: str, slice_: PackageSlice, *, onnx: bool) -> str:
    """The YAML that model hubs read, without its fences."""
    source = str((read_plain_yaml(recipe_text, "the recipe") or {}).get("model", {}).get("source", ""))
    base = slice_.base_model or (source if HUB_ID.fullmatch(source) and not Path(source).exists() else None)
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields |= {"license": slice_.licence} if slice_.licence else {}
    fields |= {"base_model": base} if base else {}
    fields["tags"] = ["trimline", "pruned", "structured-pruning", *(["onnx"] if onnx else [])]
    return yaml.safe_dump(fields | _results(report), sort_keys=False, allow_unicode=True).rstrip("\n")


def _results(report: Mapping[str, Any]) -> dict[str, Any]:
    pruned = next((row for row in report["models"] if row["role"] == "pruned"), None)
    if not pruned or not pruned["perplexity"]:
        return {}
    text = next((text["name"] for text in report["texts"] if text["role"] == "evaluation"), "evaluation text")
    measured = {
        "task": {"type": "text-generation"},
        "dataset": {"name": text, "type": "text"},
        "metrics": [{"type": "perplexity", "value": float(pruned["perplexity"]["value"])}],
    }
    return {"model-index": [{"name": report["title"], "results": [measured]}]}


def _comparison(dense: Mapping[str, Any], pruned: Mapping[str, Any], recovery: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    sizes = {
        "Parameters": "parameters",
        "Linear parameters of the decoder": "decoder_parameters",
        "FLOPs of the decoder per token": "decoder_flops",
        "Checkpoint, bytes": "checkpoint_bytes",
        "ONNX, bytes": "onnx_bytes",
    }
    for name, key in sizes.items():
        if dense[key] is not None and pruned[key] is not None:
            yield name, f"{dense[key]:,}", f"{pruned[key]:,}"
    if recovery and dense["perplexity"]:
        yield "Perplexity before training", _perplexity(dense["perplexity"]), _perplexity(recovery["before"])
    if dense["perplexity"] and pruned["perplexity"]:
        yield "Perplexity", _perplexity(dense["perplexity"]), _perplexity(pruned["perplexity"])


def _by_text(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Name, perplexities, their ratio, and how near the predictions are to the dense model's."""
    for row in rows:
        dense, pruned = row["dense"], row["pruned"]
        near = [
            shown.format(row[key]) if row[key] is not None else "–" for key, shown in (("divergence", "{:.3f}"), ("same_best", "{:.1%}"))
        ]
        yield row["name"], _perplexity(dense), _perplexity(pruned), f"{float(pruned['value']) / float(dense['value']):.3f}", *near


def _tasks(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Task, metric, questions, figures of both, and whose answers changed; of a task that the dense model cannot do, that it does not count."""
    for row in rows:
        figures = (f"{float(row[side]['value']):.4g}" for side in ("dense", "pruned"))
        changed = "–" if row.get("lost") is None else f"{row['lost']}, {row['gained']} (p = {row['p']:.2g})"
        said = "not counted: dense is within three standard errors of guessing" if row.get("counts") is False else changed
        yield row["task"], row["metric"], str(row["documents"] or "–"), *figures, said


def _retrieval(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Tokens, what each finds, and how often both answer alike; the last two are dashes where the dense model only guesses."""
    for row in rows:
        after = (f"{row['pruned']:.0%}", f"{row['same']:.0%}") if row["counts"] else ("—", "—")
        yield f"{row['length']:,}", f"{row['dense']:.0%}", *after


def _perplexity(measure: Mapping[str, Any]) -> str:
    # report.json spells an infinite value as a string.
    text = f"{float(measure['value']):.2f}"
    return text if measure["error"] is None else f"{text} ± {float(measure['error']):.2f}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, not HTML: the filter below escapes both
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = lambda value: escape(str(value))
    return environment
