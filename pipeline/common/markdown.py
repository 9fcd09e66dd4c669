"""Text into Markdown, for whatever writes pages about a run."""

from __future__ import annotations

import re

# Brackets only where they would make a link, so that intervals stay readable.
SPECIAL = re.compile(r"([\\`*_|~]|\](?=[(\[:])|^[#>+-])")


def escape(text: str) -> str:
    """Text with no character left that Markdown, or HTML inside it, would interpret; on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", text).replace("\r", " ").replace("\n", " ")


def fence(text: str) -> str:
    """A run of backticks that nothing in ``text`` can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)
