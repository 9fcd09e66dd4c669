"""Valid files, changed as a stranger might change them. The same seed makes the same file."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 4096, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), -(10**40))
FLOATS = (0.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "", " ", "a", "x" * 5000, "../../../etc/passwd", "/etc/passwd", "..", ".", "\x00", "\ud800", "‮", "{{ 7 * 7 }}", "{% for x in y %}",
    "__import__('os').system('true')", "evil.Model", "https://127.0.0.1:9/x", "float99", "nan", "0", "a" * 300 + "/" + "b" * 300,
)  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    """Something that is probably not what stood there."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(FLOATS),
        lambda: draw.choice(TEXTS),
        lambda: draw.choice((None, True, False)),
        lambda: draw.choice(([], {}, [[]], [None], {"": {}}, [1] * 1000, {"a": {"b": {"c": [1, 2, {"d": None}]}}})),
        lambda: draw.randint(-300, 300),
    ]
    if depth < 2:
        kinds.append(lambda: [value(draw, depth + 1) for _ in range(draw.randint(0, 4))])
        kinds.append(lambda: {str(draw.choice(TEXTS))[:20]: value(draw, depth + 1) for _ in range(draw.randint(0, 3))})
    return draw.choice(kinds)()


def document(draw: random.Random, given: Any) -> Any:
    """A copy of a JSON document with one to three places replaced, removed, renamed, exchanged or doubled."""
    changed = json.loads(json.dumps(given))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return value(draw)
        holder, key = draw.choice(places)
        _change(draw, holder, key, places)
    return changed if draw.random() > 0.02 else value(draw)


def _change(draw: random.Random, holder: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
    how = draw.choice(("replace", "replace", "replace", "near", "remove", "rename", "exchange", "deep"))
    if how == "remove":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[draw.choice((f"{key}_", str(key)[:-1], str(key).upper(), *TEXTS[:6]))] = holder.pop(key)
    elif how == "exchange":
        other, place = draw.choice(places)
        try:
            holder[key] = json.loads(json.dumps(other[place]))
        except (KeyError, IndexError):  # the other place went with an earlier change
            holder[key] = None
    elif how == "near" and isinstance(holder[key], (int, float)):
        holder[key] = draw.choice((-holder[key], holder[key] + 1, holder[key] * 2, holder[key] - 1, str(holder[key]), [holder[key]]))
    elif how == "deep":
        nested: Any = 1
        for _ in range(draw.choice((5, 50, 150))):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        holder[key] = nested
    else:
        holder[key] = value(draw)


def _places(document: Any) -> Any:
    parts = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, part in list(parts):
        yield document, key
        yield from _places(part)


def as_json(draw: random.Random, given: Any) -> bytes:
    """The document as text; now and then a key stands in it twice, or a byte is wrong."""
    text = json.dumps(given).encode("utf-8", "surrogatepass")
    if draw.random() < 0.05 and isinstance(given, dict) and given:
        text = b"{" + json.dumps(draw.choice(list(given))).encode() + b": " + json.dumps(value(draw)).encode() + b", " + text[1:]
    return raw(draw, text) if draw.random() < 0.1 else text


def raw(draw: random.Random, content: bytes, head: int = 0) -> bytes:
    """Bytes cut, flipped, overwritten, repeated or inserted; ``head`` bytes at the start are hit more often than the rest."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not data:
            return bytes(draw.randbytes(draw.randint(0, 64)))
        at = draw.randrange(min(head, len(data)) if head and draw.random() < 0.8 else len(data))
        how = draw.randrange(7)
        if how == 0:
            del data[at:]
        elif how == 1:
            data[at] ^= 1 << draw.randrange(8)
        elif how == 2:
            data[at : at + 8] = struct.pack("<Q", draw.choice(NUMBERS) % 2**64)
        elif how == 3:
            data[at : at + 4] = struct.pack("<I", draw.choice(NUMBERS) % 2**32)
        elif how == 4:
            data[at:at] = data[at : at + draw.randint(1, 64)]
        elif how == 5:
            data[at : at + draw.randint(1, 64)] = b""
        else:
            data[at:at] = draw.randbytes(draw.randint(1, 16))
    return bytes(data)


def safetensors(draw: random.Random, content: bytes) -> bytes:
    """A file whose header lies: offsets, shapes, dtypes, its own length; or bytes changed anywhere."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = draw.randrange(8)
    if how < 2:
        return raw(draw, content, head=8 + size)
    if how == 2:
        return struct.pack("<Q", draw.choice((*NUMBERS, 2 * 2**30, 100_000_001)) % 2**64) + content[8:]
    if how == 3:
        return content[: draw.randrange(len(content))]
    names = [name for name in header if name != "__metadata__"]
    name, other = draw.choice(names), draw.choice(names)
    if how == 4:
        header[name]["data_offsets"] = draw.choice((header[other]["data_offsets"], [0, draw.choice(NUMBERS)], [5, 1], [0.5, 1], "0", []))
    elif how == 5:
        header[name]["shape"] = draw.choice(([], [0], [-1, 4], [2**40, 2**40], [draw.choice(NUMBERS)], header[other]["shape"], "64"))
    elif how == 6:
        header[name]["dtype"] = draw.choice(("F64", "I64", "BOOL", "F8_E4M3", "BF16", "F16", "U8", "C64", "F4", "object", 7))
    else:
        header = document(draw, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1 and isinstance(header, dict):  # a name twice
        text = text[:-1] + b", " + json.dumps(name).encode() + b": " + json.dumps(header.get(name)).encode() + b"}"
    return struct.pack("<Q", len(text)) + text + body
