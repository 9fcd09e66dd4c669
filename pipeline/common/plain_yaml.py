"""YAML that a stranger may have written: plain values, every key once, no aliases."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.common.errors import TrimlineError, shortened


def read_plain_yaml(text: str, name: str) -> Any:
    """The value that a YAML text holds; ``name`` is what errors call it.

    Raises:
        TrimlineError: it is not YAML, or uses what no recipe needs: aliases, tags, a key twice, keys that are no words.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except _NotRead as error:
        raise TrimlineError(f"{name} {error.problem}.", error.remedy) from None
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:  # the last: YAML's own types of a wrong value
        raise TrimlineError(f"{name} is not valid YAML: {_one_line(error)}.", "Mend that place.") from None


class _NotRead(yaml.YAMLError):
    """Valid YAML that no recipe needs."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


class _PlainLoader(yaml.SafeLoader):
    """Plain values only, every key once."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # Aliases can grow a small file without bound.
        if self.check_event(yaml.AliasEvent):
            raise _NotRead("uses YAML aliases, which are not read", "Write the value out where it is used.")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        str(value).encode()  # an escape can spell half of a surrogate pair, which no file can hold
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            shown = shortened(repr(key.value)) if isinstance(key, yaml.ScalarNode) else "'…'"
            if key.tag != "tag:yaml.org,2002:str":
                raise _NotRead(f"has the key {shown} in {line}, which is no word", "Name a key of the recipe.")
            if key.value in seen:
                raise _NotRead(f"names {shown} twice ({line})", "Leave one of the two.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _one_line(error: Exception) -> str:
    return shortened(" ".join(str(error).split()), 200).rstrip(".")
