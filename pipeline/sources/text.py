"""Texts by name, and the check that the text which evaluates is not the text which calibrated."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Literal

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.sources.folder import TEXT_OF, TEXTS
from pipeline.sources.overlap import LONG, shared_share
from pipeline.sources.places import typed_path
from pipeline.sources.reading import SUFFIXES, read_data_set, read_file
from pipeline.sources.recipe import DEFAULT, TextSlice, TextSource

Role = Literal["calibration", "evaluation"]
SHARED_BAR = 0.01


def texts(recipe: TextSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes calibration.txt, evaluation.txt and text.json (names, SHA-256, share of the evaluation text that calibration saw).

    Raises:
        TrimlineError: a text cannot be read or is empty, or both are the same text (unless allowed).
    """
    calibration = load_text(recipe.calibration, "calibration")
    evaluation = load_text(recipe.evaluation, "evaluation")
    overlap = shared_share(calibration, evaluation)
    if overlap > SHARED_BAR and not recipe.allow_overlap:
        raise TrimlineError(
            f"{overlap:.0%} of the evaluation text also stands in the calibration text, so its perplexity would prove nothing.",
            "Name two different texts, or set text.allow_overlap: true, which the report will state.",
        )
    write_json(
        out / TEXTS,
        {
            "overlap": overlap,
            "calibration": _write(out, recipe.calibration, "calibration", calibration),
            "evaluation": _write(out, recipe.evaluation, "evaluation", evaluation),
        },
    )
    events.note(f"{len(calibration):,} characters to calibrate, {len(evaluation):,} to evaluate, {overlap:.1%} shared")


def identify(recipe: TextSlice) -> dict[str, str]:
    """What the texts depend on: content hashes of local files and of the built-in prose."""
    return {"calibration": _identify(recipe.calibration, "calibration"), "evaluation": _identify(recipe.evaluation, "evaluation")}


def describe(named: TextSource, role: Role) -> str:
    """How people call a text."""
    if named.source == DEFAULT:
        return f"Python's language reference (pydoc topics), {named.split or role} half"
    return " ".join(part for part in (Path(named.source).name, named.config, named.split) if part)


def load_text(named: TextSource, role: Role) -> str:
    """The whole text behind a name.

    Raises:
        TrimlineError: unreadable, of an unknown kind, lacking the column, or empty.
    """
    path = typed_path(named.source)
    if named.source == DEFAULT:
        text = _builtin_half(named.split or role)
    elif path.is_file():
        text = read_file(path, named.column)
    else:
        _demand_there(named)
        text = read_data_set(named)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot hold
        raise TrimlineError(
            f"The {role} text {named.source!r} holds half of a surrogate pair, {text[error.start]!r}.", "Mend that escape."
        ) from None
    if not text.strip():
        raise TrimlineError(f"The {role} text {named.source!r} is empty.", "Name a text with words in it.")
    return text


def demand_texts(recipe: TextSlice) -> None:
    """What can be said of the texts without reading them or a network.

    Raises:
        TrimlineError: one that can only be a file is not there.
    """
    for named in (recipe.calibration, recipe.evaluation):
        _demand_there(named)


def _demand_there(named: TextSource) -> None:
    """A name is the built-in text's, a file's, or such as a hub data set may have."""
    path = typed_path(named.source)
    if named.source == DEFAULT or path.is_file():
        return
    if path.suffix in SUFFIXES or path.is_dir() or named.source.startswith((".", "/", "~")):
        raise TrimlineError(f"There is no text file {named.source}.", f"Give a {', '.join(SUFFIXES)} file or the id of a hub data set.")


def builtin_halves() -> dict[str, str]:
    """English prose that every CPython carries, split by topic into two halves that share no paragraph.

    Topics that quote each other stay together; the groups are dealt out, largest first, to the shorter half.
    """
    from pydoc_data.topics import topics

    halves: dict[str, list[str]] = {"calibration": [], "evaluation": []}
    filled = dict.fromkeys(halves, 0)
    for group in _groups_sharing_paragraphs(topics):
        half = min(filled, key=lambda name: filled[name])
        halves[half].extend(group)
        filled[half] += sum(len(topics[topic]) for topic in group)
    return {half: "\n\n".join(topics[topic].strip() for topic in sorted(names)) + "\n" for half, names in halves.items()}


def _builtin_half(name: str) -> str:
    halves = builtin_halves()
    if name not in halves:
        raise TrimlineError(f"The default text has no split {name!r}.", f"Use one of {', '.join(halves)}, or leave split out.")
    return halves[name]


def _identify(named: TextSource, role: Role) -> str:
    local = named.source == DEFAULT or Path(named.source).is_file()
    return _sha256(load_text(named, role)) if local else named.model_dump_json()


def _write(out: Path, named: TextSource, role: Role, text: str) -> dict[str, str | int]:
    (out / TEXT_OF[role]).write_text(text, encoding="utf-8", newline="")
    return {"name": describe(named, role), "characters": len(text), "sha256": _sha256(text)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _groups_sharing_paragraphs(topics: dict[str, str]) -> list[list[str]]:
    """Connected components of 'these two topics share a paragraph', largest text first."""
    holders: dict[str, list[str]] = defaultdict(list)
    for topic in sorted(topics):
        for paragraph in {" ".join(p.split()) for p in re.split(r"\n\s*\n", topics[topic])}:
            if len(paragraph) >= LONG:
                holders[paragraph].append(topic)
    group = {topic: {topic} for topic in topics}
    for sharing in holders.values():
        merged = set().union(*(group[topic] for topic in sharing))
        group |= dict.fromkeys(merged, merged)
    distinct = {tuple(sorted(members)) for members in group.values()}
    return [list(members) for members in sorted(distinct, key=lambda m: (-sum(len(topics[t]) for t in m), m))]
