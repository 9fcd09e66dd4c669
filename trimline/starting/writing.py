"""The recipe as text: values and comments, aligned, from one template."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.sources.recipe import DEFAULT
from trimline.starting.choosing import Chosen, positions_of
from trimline.starting.clients import SERVERS
from trimline.starting.purpose import gib
from trimline.starting.ways import EXPERTS, Way, expert_counts, tile_of, with_experts

TEMPLATE = "recipe.yaml.jinja"
WIDTH = 34  # of what stands before a comment, where it is not longer
PROMPT, PAST, WINDOW, EVALUATION = 512, 128, 512, 1024  # tokens, of models that have positions for so many
METHOD_WORDS = {
    "trimline": "our own: error curves say which units go and from which blocks, and what stays is refitted",
    "cfsp": "activations say which channels go; it needs no gradients",
    "reap": "what experts add to the tokens that choose them says which go, the same number from every block",
    "cfsp_extended": "activations say which channels and groups go; it needs no gradients",
}
PROFILES = {
    Profile.DECILM: "widths may differ from block to block",
    Profile.FREE: "any shape",
    Profile.UNIFORM: "all blocks alike, as in the stock architecture",
}
BUILT_IN: dict[str, Any] = {"licence": "apache-2.0", "base": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def recipe_to_start_from(chosen: Chosen, source: str, file: Path, command: str) -> str:
    """The YAML text of a recipe, with a comment for every key.

    Args:
        chosen: what it does.
        source: the model, as the recipe is to name it.
        file: where it will be written.
        command: what was typed.
    """
    values = {
        "title": one_line(chosen.model.name),
        "aim": aim_words(chosen),
        "command": one_line(command),
        "next": one_line(run_command(file)),
    }
    values |= {"name": file.stem, "model": source}
    values |= _removal(chosen) | _sizes(chosen) | _shipping(chosen, source)
    return _aligned(_environment().get_template(TEMPLATE).render(**values))


def aim_words(chosen: Chosen) -> str:
    """What was asked for."""
    purpose = chosen.purpose
    if purpose.part is not None:
        return f"{purpose.part:.4g} of the decoder's linear parameters go"
    faster = [f"{purpose.speedup:g} times as fast in decoding"] if purpose.speedup else []
    return " and ".join([*faster, *([f"fits into {gib(purpose.fit)}"] if purpose.fit else [])])


def loads_words(chosen: Chosen) -> str:
    """Who loads the result, as ``trimline inspect`` will say."""
    return ", ".join(verdict.consumer for verdict in chosen.verdicts.values() if verdict.loads)


def run_command(file: Path) -> str:
    """What runs a recipe."""
    return shlex.join(["trimline", "run", str(file), "--output", f"runs/{file.stem}"])


def one_line(text: str) -> str:
    """Text for a comment, which the end of a line would end."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def slug(name: str) -> str:
    """A name that files and servers take: small letters, digits and dashes, at most 40 of them."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return found if found[:1].isalpha() else f"m-{found}"[:40].strip("-")


def _removal(chosen: Chosen) -> dict[str, Any]:
    way, purpose, dense = chosen.way, chosen.purpose, chosen.model.geometry
    heads = Space.KV_GROUP in way.spaces
    values: dict[str, Any] = {"part": purpose.part, "ffn": None, "keep": None}
    values["experts"] = _experts_left(chosen) if way is EXPERTS else None
    if purpose.part is not None and way is not EXPERTS:
        values["ffn"], values["keep"] = _budgets(way, dense, purpose.part)
    values |= {"method": chosen.method, "what_method": METHOD_WORDS[chosen.method], "even": way.is_even, "tile": tile_of(dense)}
    values |= {"spaces": ", ".join(way.spaces), "what_spaces": f"{way.words} go" + ("" if heads else "; attention stays as it is")}
    values |= {"speedup": purpose.speedup and f"{purpose.speedup:.12g}", "share": chosen.share and f"{chosen.share:f}"}
    values |= {"fit": purpose.fit and gib(purpose.fit), "context": chosen.footprint.context}
    values["dense_size"] = f"{gib(chosen.footprint.bytes(dense))} ({chosen.footprint.form} in {chosen.footprint.dtype})"
    return values


def _experts_left(chosen: Chosen) -> int:
    """The most experts of a block with which the purpose is reached."""
    dense, purpose = chosen.model.geometry, chosen.purpose
    for count in expert_counts(dense):
        left = with_experts(dense, count)
        gone = 1 - left.decoder_parameters() / dense.decoder_parameters()
        if (purpose.part is None or gone >= purpose.part - 1e-9) and (purpose.fit is None or chosen.footprint.bytes(left) <= purpose.fit):
            return count
    return expert_counts(dense)[-1]


def _budgets(way: Way, dense: Geometry, part: float) -> tuple[str, int | None]:
    """(share of the decoder that goes as FFN channels, KV groups that stay): both lose alike, as far as whole groups allow."""
    if Space.KV_GROUP not in way.spaces:
        return f"{part:.6g}", None
    whole, most = dense.decoder_parameters(), dense.most(Sublayer.ATTENTION)
    attention = dense.with_blocks(tuple(block.with_units(Sublayer.FFN, 0) for block in dense.blocks)).decoder_parameters() / whole
    of_ffn = 1 - Way((Space.FFN,), way.profile).smallest(dense).decoder_parameters() / whole
    gone = next((gone for gone in range(round(part * most), most) if part - gone / most * attention <= of_ffn), most - 1)
    return f"{part - gone / most * attention:.6g}", most - gone


def _sizes(chosen: Chosen) -> dict[str, Any]:
    """Windows and requests that the model has positions for."""
    positions = positions_of(chosen.model)
    prompt, past = (PROMPT, PAST) if positions >= PROMPT else (positions // 2, positions // 4)
    steps = min(17, positions - past)
    return {
        "window": min(WINDOW, positions),
        "evaluation": min(EVALUATION, positions),
        "workloads": f"{prompt}/1, {past}/{steps}",
    }


def _shipping(chosen: Chosen, source: str) -> dict[str, Any]:
    names = [name for name in chosen.clients if name in SERVERS]
    values: dict[str, Any] = {"profile": chosen.way.profile.value, "servers": ", ".join(names), "served": slug(chosen.model.name)}
    values |= {"what_profile": f"{PROFILES[chosen.way.profile]}; loads in {loads_words(chosen)}", "portable": "tensorrt" in chosen.clients}
    values["no_graph"] = chosen.no_graph
    own: dict[str, Any] = BUILT_IN if source == DEFAULT else {"licence": None, "base": source if chosen.model.kind == "hub" else None}
    return values | own


def _aligned(text: str) -> str:
    """Comments that follow a value, in one column."""
    return "".join(f"{_padded(line)}\n" for line in text.splitlines())


def _padded(line: str) -> str:
    value, mark, comment = line.rpartition(" # ")
    return f"{value:<{WIDTH}}{mark}{comment}" if mark and value.strip() else line


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["quoted"] = quoted
    return environment


def quoted(value: str) -> str:
    """A YAML string: bare where nothing in it means anything to YAML, else with JSON's escapes, which are YAML's too."""
    plain = re.fullmatch(r"[A-Za-z./][\w./-]*", value, flags=re.ASCII) and value.lower() not in {
        "null",
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
    }
    return value if plain else json.dumps(value, ensure_ascii=False)
