"""What words on the command line stand for: folders by name, workloads, requests, perplexities."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.recipe import NAMED, NAMED_WORKLOADS, BenchmarkSlice
from exporters.onnx.running.shapes import EngineRequest
from pipeline.common.errors import TrimlineError
from trimline.recipe import checked_slice, read_recipe


def by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their own names, which results are listed under.

    Raises:
        TrimlineError: two have the same name.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in named:
            raise TrimlineError(f"{named[name]} and {folder} are both called {name!r}.", "Rename one: results are listed by name.")
        named[name] = folder
    return named


def parse_request(text: str) -> EngineRequest:
    """``512/128x4`` to a prompt of 512 tokens, 128 tokens to make, four requests at once.

    Raises:
        TrimlineError: it is something else.
    """
    found = re.fullmatch(r"([1-9]\d{0,8})(?:/([1-9]\d{0,8}))?(?:x([1-9]\d{0,4}))?", text, flags=re.ASCII)
    if not found:
        raise TrimlineError(f"{text!r} is no request.", "Write PROMPT/OUTPUT or PROMPT/OUTPUTxBATCH, such as 512/128x4.")
    return EngineRequest(int(found[1]), int(found[2] or 1), int(found[3] or 1))


def benchmark_slice(
    recipe: Path | None,
    rounds: int | None,
    workloads: Sequence[str] = (),
    batches: Sequence[int] = (),
    runtime: str | None = None,
    most_seconds: float | None = None,
) -> BenchmarkSlice:
    """The benchmark part of a recipe file, or the default one, with what else is given in place of its own.

    Args:
        recipe: the file.
        rounds: interleaved.
        workloads: names such as ``512/128``, or ``named`` for all that other tools time too.
        batches: of every workload, one after the other: a sweep.
        runtime: what runs the models.
        most_seconds: of timing; by default the recipe's, and more in proportion where there are more workloads than it has.

    Raises:
        TrimlineError: no such workload or runtime.
    """
    found = (BenchmarkSlice() if recipe is None else read_recipe(recipe).benchmark).model_dump(mode="json")
    given, own = {"rounds": rounds, "runtime": runtime, "most_seconds": most_seconds}, len(found["workloads"])
    found |= {key: value for key, value in given.items() if value is not None}
    if workloads:
        found["workloads"] = [name for some in workloads for name in (NAMED_WORKLOADS if some == NAMED else (some,))]
    timed = checked_slice("benchmark", found)
    swept = [workload.model_copy(update={"batch": batch}) for workload in timed.workloads for batch in batches]
    names = tuple(dict.fromkeys(swept)) or timed.workloads
    longer = 1.0 if most_seconds is not None else max(1.0, len(names) / own)
    return timed.model_copy(update={"workloads": names, "most_seconds": timed.most_seconds * longer})


def parse_accuracy(pairs: list[str], needed: list[str]) -> dict[str, float]:
    """``["dense=25.9"]`` to ``{"dense": 25.9}``.

    Raises:
        TrimlineError: something else, a name that is not among ``needed``, or one of them lacks its perplexity.
    """
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise TrimlineError(f"{pair!r} is not NAME=VALUE with a number.", "Write --perplexity dense=25.9.")
        if name not in needed:
            raise TrimlineError(f"No model is called {name!r}; they are {', '.join(needed)}.", "Name each after its folder.")
    lacking = [name for name in needed if name not in found]
    if lacking:
        example = " ".join(f"--perplexity {name}=…" for name in lacking)
        raise TrimlineError(
            "No speed is shown without the accuracy that it cost.",
            f"Measure it with `trimline evaluate`, and add {example} to this command.",
        )
    return found
