"""Chat templates, each rendered within a limit of time and of size, in a process that waits for the next one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipeline.common.children import Child, Died, Words, module_command

READY = "ready"  # asks whether all is imported
SECONDS = 5.0  # for one conversation; the templates of usual models take a few milliseconds
OPENING = 120.0  # for the process to import what it needs
PLAIN = [{"role": "user", "content": "Hello"}]


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
        self._child = Child(module_command("deploy.serve.bounds.rendering"), words, OPENING)
        self._ready = False

    def render(self, template: str, special: Mapping[str, str], messages: Sequence[Mapping[str, Any]], most: int) -> str:
        """A conversation as a text.

        Args:
            template: of the model.
            special: names of special tokens to what they are written as.
            messages: of the conversation.
            most: characters of the text.

        Raises:
            ValueError: the template refuses the conversation, fails on it, or takes too long or too much for it.
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
            raise ValueError(f"The model's chat template {reply['wrong']}.")
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
