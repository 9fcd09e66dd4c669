"""Chat templates, each rendered within a limit of time and of size, in a process that waits for the next one.

A template is a program of whoever made the checkpoint. A server renders one per conversation; an export renders a plain one once,
before it carries the template along.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.common.children import Child, Died, Words, module_command
from pipeline.common.errors import TrimlineError

READY = "ready"  # asks whether all is imported
SECONDS = 5.0  # for one conversation; the templates of usual models take a few milliseconds
OPENING = 120.0  # for the process to import what it needs
PLAIN = [{"role": "user", "content": "Hello"}]
ONCE, MOST = 30.0, 2**20  # seconds and characters for a plain conversation before an export, which may share its processor
REMEDY = "Mend chat_template in its tokenizer_config.json (or chat_template.jinja), or remove it: without one the model completes text."


class NotRendered(ValueError):
    """A template did not render; ``wrong`` says what it did instead, as the end of a sentence."""

    def __init__(self, wrong: str) -> None:
        super().__init__(f"The model's chat template {wrong}.")
        self.wrong = wrong


class Templates:
    """Renders in one child, which is started anew where a template had to be stopped.

    Args:
        seconds: that a conversation may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds, self._one_at_a_time = seconds, threading.Lock()
        self._child: Child | None = None
        self._ready = False

    def start(self) -> None:
        """Starts the process, and does not wait for it."""
        words = Words("renders chat templates")
        self._child = Child(module_command("exporters.text.rendering"), words, OPENING)
        self._ready = False

    def render(self, template: str, special: Mapping[str, str], messages: Sequence[Mapping[str, Any]], most: int) -> str:
        """A conversation as a text.

        Args:
            template: of the model.
            special: names of special tokens to what they are written as.
            messages: of the conversation.
            most: characters of the text.

        Raises:
            NotRendered: the template refuses the conversation, fails on it, or takes too long or too much for it.
        """
        with self._one_at_a_time:
            if self._child is None:
                self.start()
            assert self._child is not None
            if not self._ready:  # importing is not the template's time
                self._child.ask(READY)
                self._ready = True
            reply = self._within(self._child, template=template, special=dict(special), messages=list(messages), most=most)
        if "wrong" in reply:
            raise NotRendered(reply["wrong"])
        return str(reply["text"])

    def _within(self, child: Child, **what: Any) -> dict[str, Any]:
        timer = threading.Timer(self._seconds, _kill, [child.pid])
        timer.start()
        try:
            return child.reply("render", **what)
        except Died:
            with child:
                self.start()  # so that it is there when the next conversation comes
            return {"wrong": f"takes more than {self._seconds:g} s or too much memory for this conversation"}
        finally:
            timer.cancel()

    def kill(self) -> None:
        """Ends the process without waiting for anything."""
        if self._child is not None:
            _kill(self._child.pid)


def _kill(number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def check_template(tokenizer: Any, folder: Path) -> None:
    """Renders one plain conversation, as a server would; a tokenizer without a template passes.

    Args:
        tokenizer: as transformers opens it.
        folder: for messages.

    Raises:
        TrimlineError: the template fails, or takes more time or memory than any real one.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # of several, callers have to name one unless there is a default
        template = template.get("default")
    if not template:
        return
    templates = Templates(ONCE)
    try:
        templates.render(template, tokenizer.special_tokens_map, PLAIN, MOST)
    except NotRendered as error:
        raise TrimlineError(f"The chat template of {folder} does not render a plain conversation: it {error.wrong}.", REMEDY) from None
    finally:
        templates.kill()
