"""The process that renders chat templates; ``templates`` is the parent's end.

A template is a program that comes with a checkpoint. transformers' sandbox keeps it from the system, but not from endless loops
or from texts of gigabytes. Here it can be killed, and has little memory.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from exporters.text.templates import READY
from pipeline.common.answering import answer_parent

MEMORY = 2**28  # bytes that a template may take beside what Python and the libraries have


def main() -> None:
    """Answers ``do: ready`` and ``do: render``."""
    with suppress(OSError, ValueError):  # a system without such a limit, or a lower one; the limit of time stays
        with open("/proc/self/statm", encoding="ascii") as sizes:
            pages = int(sizes.read().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    answer_parent(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    return {} if request["do"] == READY else render(**{key: value for key, value in request.items() if key != "do"})


def render(template: str, special: dict[str, Any], messages: list[dict[str, Any]], most: int) -> dict[str, str]:
    """A conversation as a text, up to where the assistant speaks.

    Args:
        template: of the model.
        special: names of special tokens to what they are written as.
        messages: of the conversation.
        most: characters of the text.

    Returns:
        ``text``, or ``wrong``: what the template did instead, as the end of a sentence.
    """
    try:
        rendered = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **special)
    except TemplateError as error:
        return {"wrong": f"refuses this conversation: {str(error)[:300]}"}
    except MemoryError:
        return {"wrong": "takes too much memory for this conversation"}
    except Exception as error:  # a template can do anything
        return {"wrong": f"fails on this conversation ({type(error).__name__}: {str(error)[:300]})"}
    text = str(rendered[0][0])  # of the first conversation
    return {"text": text} if len(text) <= most else {"wrong": f"makes more than {most:,} characters of this conversation"}


if __name__ == "__main__":
    main()
