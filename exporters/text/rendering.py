"""The child process of ``exporters.text.template``: transformers' own renderer, without the tokenizer and torch, which take long to import."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from pipeline.common.answering import Record, answer_parent

ROOM = 2**30  # bytes beside those of an idle process


def main() -> None:
    """Answers the parent."""
    _render([], "", {})  # loads what it needs
    answer_parent(render)


def render(what: Record) -> Record:
    """``why`` the template does not render; empty where it does."""
    _bound(what["seconds"])
    try:
        _render(what["conversation"], what["template"], what["tokens"])
    except MemoryError:
        return {"why": f"it takes more than {ROOM >> 30} GiB of memory"}
    except Exception as error:  # jinja2's own, and whatever the template's arithmetic meets
        return {"why": " ".join(str(error).split())[:200].rstrip(" .") or type(error).__name__}
    return {"why": ""}


def _render(conversation: list[Any], template: str, tokens: dict[str, Any]) -> None:
    render_jinja_template(conversations=[conversation], chat_template=template, add_generation_prompt=True, **tokens)


def _bound(most: int) -> None:
    """No more computing and memory for this process than a template may take."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + most
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    size = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
