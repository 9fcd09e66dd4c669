"""A chat template is a program of whoever made the checkpoint: it is run once, in a child process with bounds, before it is carried along."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from pipeline.common.children import Child, Died, Words, ask_once, module_command
from pipeline.common.errors import TrimlineError

MODULE = "exporters.text.rendering"
SECONDS = 5  # of computing; real templates take thousandths
PATIENCE = 300.0  # seconds, for a child that has to wait for a processor
CONVERSATION = [{"role": "user", "content": "Good morning."}]
REMEDY = "Mend chat_template in its tokenizer_config.json (or chat_template.jinja), or remove it: without one the model completes text."


def check_template(tokenizer: Any, folder: Path) -> None:
    """Has transformers render one plain conversation, as a server would; a tokenizer without a template passes.

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
    child = Child(module_command(MODULE), Words("renders the chat template"), PATIENCE)
    try:
        reply = ask_once(child, "render", template=template, conversation=CONVERSATION, tokens=_tokens(tokenizer), seconds=SECONDS)
    except Died as died:
        if died.code not in (-signal.SIGXCPU, -signal.SIGKILL):
            raise
        reply = {"why": f"it takes more than {SECONDS} s"}
    if reply["why"]:
        raise TrimlineError(f"The chat template of {folder} does not render a plain conversation: {reply['why']}.", REMEDY)


def _tokens(tokenizer: Any) -> dict[str, str]:
    """What a template may name, such as ``bos_token``."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
