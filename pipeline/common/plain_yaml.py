"""YAML that a stranger may have written: plain values of YAML 1.2's core schema, every key once, no aliases, no tags.

PyYAML resolves values by YAML 1.1, where ``010`` is eight, ``1:30`` is ninety and ``no`` is false. Here its parser gives the events, and
values are what section 10.3 of the YAML 1.2.2 specification says, so they mean what today's readers take them for. A whole number that
begins with a zero is refused, since both versions are still read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.common.errors import TrimlineError, shortened

DEEPEST = 64  # lists and mappings inside each other
MOST_ENTRIES = 1000  # of a list of anything but numbers: steps, workloads, targets, windows of token ids
MOST_VALUES = 500_000  # in all: token ids of 128 windows of 2048 are half of it

NULL = re.compile(r"~|null|Null|NULL|")
TRUTH = re.compile(r"(?P<true>true|True|TRUE)|false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
NO_NUMBER = re.compile(r"\.(nan|NaN|NAN)")
OLD_ENDS = frozenset("\x85\u2028\u2029")
ZERO_FIRST = re.compile(r"[-+]?0[0-9_]+")

# libyaml's, where PyYAML was built with it, is ten times as fast and gives the same events.
PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_plain_yaml(text: str, name: str) -> Any:
    """The value that a YAML text holds; ``name`` is what errors call it.

    Raises:
        TrimlineError: it is not YAML, uses what no recipe needs (aliases, tags, a key twice, keys that are no words), or is larger
            than any recipe.
    """
    try:
        return _PlainReader(text).document()
    except _NotRead as error:
        raise TrimlineError(f"{name} {error.problem}.", error.remedy) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise TrimlineError(f"{name} is not valid YAML: {_one_line(error, text)}.", _mend(error, text)) from None


def write_plain_yaml(value: Mapping[str, Any]) -> str:
    """Text that ``read_plain_yaml`` and readers of YAML 1.1 read as the same value; keys in the order given."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True)


def plain_value(text: str) -> Any:
    """What an unquoted word is by the core schema; whatever is nothing else is text.

    Raises:
        ValueError: a number with more digits than Python reads.
    """
    if NULL.fullmatch(text):
        return None
    if found := TRUTH.fullmatch(text):
        return found["true"] is not None
    if INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if DECIMAL.fullmatch(text):
        return float(text)
    if INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return float("nan") if NO_NUMBER.fullmatch(text) else text


class _NotRead(yaml.YAMLError):
    """Valid YAML that no recipe needs."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


class _PlainReader:
    """Makes values of the parser's events, so that what is too large is noticed where it grows too large."""

    def __init__(self, text: str) -> None:
        self._events, self._values, self._depth = yaml.parse(text, Loader=PARSER), 0, 0

    def document(self) -> Any:
        """The value of the one document."""
        next(self._events)  # the stream's start
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            return None
        version = getattr(start, "version", None)
        if version and tuple(version) < (1, 2):
            raise _NotRead("says that it is YAML 1.1, and is read as YAML 1.2", "Leave that line out, and look at its numbers.")
        found = self._value(next(self._events))
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _NotRead(f"holds a second document, from {_line(after)} on", "Give one.")
        return found

    def _value(self, event: Any) -> Any:
        self._demand_plain(event)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        self._depth += 1
        found = self._list(event) if isinstance(event, yaml.SequenceStartEvent) else self._mapping()
        self._depth -= 1
        return found

    def _demand_plain(self, event: Any) -> None:
        self._values += 1
        if isinstance(event, yaml.AliasEvent):  # they can grow a small file without bound
            raise _NotRead(f"uses YAML aliases, which are not read ({_line(event)})", "Write the value out where it is used.")
        if event.tag is not None:
            raise _NotRead(f"has the tag {shortened(event.tag)!r} in {_line(event)}, and tags are not read", "Leave it out.")
        if self._depth > DEEPEST:
            raise _NotRead(f"nests more than {DEEPEST} lists and mappings ({_line(event)})", "Give a recipe.")
        if self._values > MOST_VALUES:
            raise _NotRead(f"holds more than {MOST_VALUES:,} values ({_line(event)})", "Leave some out.")

    def _list(self, start: Any) -> list[Any]:
        found: list[Any] = []
        counted = 0
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self._value(event))
            counted += not isinstance(found[-1], int | float)
            if counted > MOST_ENTRIES:
                raise _NotRead(f"has a list of more than {MOST_ENTRIES:,} entries in {_line(start)}", "Leave some out.")
        return found

    def _mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            self._demand_plain(event)
            key = _scalar(event) if isinstance(event, yaml.ScalarEvent) else None
            if not isinstance(key, str):
                shown = shortened(repr(event.value)) if isinstance(event, yaml.ScalarEvent) else "'…'"
                raise _NotRead(f"has the key {shown} in {_line(event)}, which is no word", "Name a key of the recipe.")
            if key in found:
                raise _NotRead(f"names {shortened(repr(key))} twice ({_line(event)})", "Leave one of the two.")
            found[key] = self._value(next(self._events))
        return found


def _scalar(event: Any) -> Any:
    event.value.encode()  # an escape can spell half of a surrogate pair, which no file can hold
    if not event.implicit[0]:  # quoted, or a block of text
        return event.value
    if ZERO_FIRST.fullmatch(event.value):
        read = shortened(str(int(event.value)))
        raise _NotRead(
            f"has the number {shortened(event.value)} in {_line(event)}, which YAML 1.2 reads as {read} and YAML 1.1 as octal",
            f"Write {read}, or put it into quotes if it is a word.",
        )
    return plain_value(event.value)


class _Writer(yaml.SafeDumper):
    """Quotes text that a reader of either version would take for something else."""


def _text(writer: _Writer, value: str) -> yaml.ScalarNode:
    """Ends of lines that only YAML 1.1 knows are folded into spaces unless they are escaped."""
    return writer.represent_scalar("tag:yaml.org,2002:str", value, style='"' if OLD_ENDS & set(value) else None)


_Writer.add_representer(str, _text)
_Writer.yaml_implicit_resolvers = {first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _tag, _pattern in (("int", INTEGER), ("float", DECIMAL)):
    _Writer.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})$"), list("-+.0123456789"))


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"


def _one_line(error: Exception, text: str) -> str:
    """What the parser says, with the line; how it calls the text is of no use to whoever wrote it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        # Of what is never closed the end of the text says nothing; where it begins does.
        mark = error.context_mark if error.context_mark and error.problem_mark.line >= len(text.splitlines()) else error.problem_mark
        return shortened(f"line {mark.line + 1}: {' '.join(error.problem.split())}", 200).rstrip(".")
    return shortened(" ".join(str(error).split()), 200).rstrip(".")


def _mend(error: Exception, text: str) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line][: len(lines[mark.line]) - len(lines[mark.line].lstrip())]:
        return "Indent that line with spaces: it begins with a tab, which YAML does not take."
    return "Mend that place."
