"""Texts by name, and the check that the text which evaluates is not the text which calibrated."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.sources.folder import TEXTS
from pipeline.sources.overlap import LONG, shared_share
from pipeline.sources.places import typed_path
from pipeline.sources.reading import SUFFIXES, read_data_set, read_file
from pipeline.sources.recipe import DEFAULT, Role, TextSlice, TextSource
from pipeline.sources.roles import file_of

ROLES: tuple[Role, ...] = ("calibration", "recovery", "evaluation")
SHARED_BAR = 0.01


def texts(recipe: TextSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes every text into a file, and text.json: names, shares, SHA-256, and of every pair how much of the text that evaluates
    also stands in the one that calibrates or trains; the largest of them is ``overlap``.

    Raises:
        TrimlineError: a text cannot be read or is empty, or one that evaluates is one that calibrates or trains (unless allowed).
    """
    loaded = {role: [load_text(named, role) for named in recipe.of(role)] for role in ROLES}
    pairs: list[dict[str, Any]] = [
        {"role": role, "seen": describe(seen, role), "evaluation": describe(judge, "evaluation"), "share": shared_share(text, judged)}
        for role in ROLES[:2]
        for (seen, text), (judge, judged) in product(_beside(recipe, role, loaded), _beside(recipe, "evaluation", loaded))
    ]
    worst = max(pairs, key=lambda pair: pair["share"])
    if worst["share"] > SHARED_BAR and not recipe.allow_overlap:
        which = f" ({worst['evaluation']}; {worst['seen']})" if len(pairs) > 1 else ""
        raise TrimlineError(
            f"{worst['share']:.0%} of the evaluation text also stands in the {worst['role']} text{which}, so its perplexity would prove nothing.",
            "Name two different texts, or set text.allow_overlap: true, which the report will state.",
        )
    written = {
        role: [_write(out, named, role, number, text) for number, (named, text) in enumerate(_beside(recipe, role, loaded))]
        for role in ROLES
    }
    write_json(out / TEXTS, {"overlap": worst["share"], "pairs": pairs} | written)
    counts = {role: sum(map(len, found)) for role, found in loaded.items()}
    trained = f"{counts['recovery']:,} to train, " if recipe.recovery else ""
    said = f"{counts['calibration']:,} characters to calibrate, {trained}{counts['evaluation']:,} to evaluate"
    events.note(f"{said}, {worst['share']:.1%} shared")


def _beside(recipe: TextSlice, role: Role, loaded: dict[Role, list[str]]) -> list[tuple[TextSource, str]]:
    return list(zip(recipe.of(role), loaded[role], strict=True))


def identify(recipe: TextSlice) -> dict[str, list[str]]:
    """What the texts depend on: content hashes of local files and of the built-in prose."""
    return {role: [_identify(named, role) for named in recipe.of(role)] for role in ROLES}


def describe(named: TextSource, role: Role) -> str:
    """How people call a text."""
    if named.source == DEFAULT:
        return f"Python's language reference (pydoc topics), {named.split or _half(role)} half"
    return " ".join(part for part in (Path(named.source).name, named.config, named.split) if part)


def load_text(named: TextSource, role: Role) -> str:
    """The whole text behind a name.

    Raises:
        TrimlineError: unreadable, of an unknown kind, lacking the column, or empty.
    """
    path = typed_path(named.source)
    if named.source == DEFAULT:
        text = _builtin_half(named.split or _half(role))
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
    for named in recipe.every:
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


def _half(role: Role) -> str:
    """Of the built-in prose, what a role reads."""
    return "evaluation" if role == "evaluation" else "calibration"


def _builtin_half(name: str) -> str:
    halves = builtin_halves()
    if name not in halves:
        raise TrimlineError(f"The default text has no split {name!r}.", f"Use one of {', '.join(halves)}, or leave split out.")
    return halves[name]


def _identify(named: TextSource, role: Role) -> str:
    local = named.source == DEFAULT or Path(named.source).is_file()
    return _sha256(load_text(named, role)) if local else named.model_dump_json()


def _write(out: Path, named: TextSource, role: Role, number: int, text: str) -> dict[str, Any]:
    (out / file_of(role, number)).write_text(text, encoding="utf-8", newline="")
    return {"name": describe(named, role), "share": named.share, "characters": len(text), "sha256": _sha256(text)}


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
