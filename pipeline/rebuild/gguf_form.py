"""As which of llama.cpp's architectures a model can be written, or why as none: read by its exporter and by the consumers table.

Most of llama.cpp's architectures create every block alike, and compute on without a word where a config says more than they
know. ``deci`` has sizes per block and computes as Llama does, but for two traps: it skips the attention of a block without
FFN, and does not load where the first block has no attention. Both are avoided exactly, by a sublayer of zeros, which adds
nothing to the stream. What an architecture computes stands in ``gguf/archs.py``; docs/gguf.md says what was run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.gguf.arch import FACTORS, GgufArch, GgufWindows
from pipeline.architecture.gguf.archs import GGUF_ARCHS
from pipeline.common.errors import TrimlineError, shown
from pipeline.rebuild.gguf.mixtures import NOT_ALIKE, other_experts
from pipeline.rebuild.gguf.settings import EVERYTHING, NEUTRAL, RAMP, GgufRotary, GgufSettings, gguf_settings

DECI = "deci"
PAD_FFN = 32  # channels of an FFN of zeros: the block size of llama.cpp's simplest quantisers
USE_OTHER = "Serve it with another runtime."
CLOSE = 1e-6  # of a number that a config states in decimals


@dataclass(frozen=True)
class GgufForm:
    """How a model is written for llama.cpp.

    Attributes:
        row: the architecture.
        kept: numbers of the blocks that are written; one without attention and FFN computes nothing and is left out.
        blocks: their sizes in the file; a sublayer that the model lacks there is written as zeros.
        settings: what the model computes beside its projections.
        permuted: llama.cpp turns neighbouring channels together where the model does not, and wants q and k in that order.
    """

    row: GgufArch
    kept: tuple[int, ...]
    blocks: tuple[BlockShape, ...]
    settings: GgufSettings
    permuted: bool

    @property
    def arch(self) -> str:
        """The architecture's name."""
        return self.row.name

    @property
    def windowed(self) -> bool:
        """Whether the file says which blocks attend to a window; else its context ends where the window does."""
        windows = self.row.windows
        return windows is not None and self.settings.window > 0 and windows.depth in (None, len(self.kept))


class NoGgufForm(TrimlineError):
    """llama.cpp has no architecture that computes this model."""


def gguf_form(result: Geometry, config: Mapping[str, Any]) -> GgufForm:
    """The architecture that computes the model.

    Raises:
        NoGgufForm: there is none, or it would load the file and compute something else; says what to change.
    """
    family = result.family
    if family.kinds.costs:  # whatever llama.cpp has for it
        raise NoGgufForm(f"The mixers that {family.model_type} carries are not written for llama.cpp here.", USE_OTHER)
    if family.model_type in NOT_ALIKE:
        raise NoGgufForm(NOT_ALIKE[family.model_type], USE_OTHER)
    row = GGUF_ARCHS.get(family.gguf_arch or "")
    if row is None:
        raise NoGgufForm(f"llama.cpp has no architecture for {family.model_type}.", USE_OTHER)
    if rope_type(config) not in (*FACTORS, "dynamic"):  # before its class is asked, which may refuse it in other words
        raise _no_rotary(rope_type(config))
    settings = gguf_settings(result, config)
    kept = tuple(number for number, block in enumerate(result.blocks) if any(block.has(sublayer) for sublayer in Sublayer))
    blocks = tuple(result.blocks[number] for number in kept)
    form = GgufForm(row, kept, blocks, settings, row.neighbours and not family.rotates_neighbours)
    for why in _other_computation(result, form):
        raise NoGgufForm(why, USE_OTHER)
    for why, remedy in other_experts(result, row, blocks, settings.values):
        raise NoGgufForm(why, remedy or USE_OTHER)
    obstacle = _own_obstacle(result, form)
    if obstacle is None:
        return form
    if family.decilm is None:
        raise obstacle
    padded = tuple(_padded(block, first=number == 0) for number, block in enumerate(blocks))
    return GgufForm(GGUF_ARCHS[DECI], kept, padded, settings, not family.rotates_neighbours)


def _own_obstacle(result: Geometry, form: GgufForm) -> NoGgufForm | None:
    """Why the family's own architecture does not hold the result; None where it does."""
    family, row, blocks = result.family, form.row, form.blocks
    if family.mixture is None and (len(set(blocks)) != 1 or not (blocks[0].ffn and blocks[0].kv_groups)):
        why = f"llama.cpp's {row.name} has one size for all blocks; its deci has sizes per block, and computes as Llama, not as {family.model_type}."
        return NoGgufForm(why, "Use profile 'uniform', with all blocks alike.")
    heads = blocks[0].kv_groups * result.queries_per_group
    if row.square and heads * result.head_dim != result.hidden:
        why = f"llama.cpp's {row.name} takes hidden size / heads for head_dim, and this model has {heads} heads of {result.head_dim}."
        return NoGgufForm(why, "Keep all KV groups.")
    if row.ungrouped and result.queries_per_group > 1:
        why = f"llama.cpp's {row.name} has a key head for every query head, and here {result.queries_per_group} query heads share one."
        return NoGgufForm(why, USE_OTHER)
    for linear in family.linears:
        biased = result.has_bias(linear)
        if biased and linear.point not in row.biases:
            remedy = "Compensate by least squares, which needs no new bias." if linear.name in result.biases else USE_OTHER
            return NoGgufForm(f"llama.cpp's {row.name} has no bias on {linear.name}.", remedy)
        if not biased and linear.point in row.needs:
            return NoGgufForm(f"llama.cpp's {row.name} needs a bias on {linear.name}, and this model has none.", USE_OTHER)
    return None


def _padded(block: BlockShape, first: bool) -> BlockShape:
    """The sizes that deci computes rightly."""
    if block.kv_groups:
        return BlockShape(block.ffn or PAD_FFN, block.kv_groups)
    return BlockShape(block.ffn, 1 if first else 0)


def _other_computation(result: Geometry, form: GgufForm) -> Iterator[str]:
    """What llama.cpp would compute differently, whatever the sizes are."""
    row, settings = form.row, form.settings
    activation = settings.values.get(result.family.activation_key)
    if activation not in row.activation:
        known = sorted(row.activation)[0]
        named = "SiLU" if known == "silu" else known
        yield f"llama.cpp computes {result.family.model_type} with {named}, and this model's activation is {activation}."
    for key, neutral in NEUTRAL.items():
        value = settings.setting(key)
        if value != neutral and key not in row.keys.values():
            yield f"llama.cpp's {row.name} has no {key}, and this model's is {shown(value)}."
        if value is None and key in row.insists:
            yield f"llama.cpp's {row.name} always has a {key}, and this model has none."
    if row.head == "table" and not result.tied:
        yield f"llama.cpp's {row.name} takes the token table for the output head, and this model has a head of its own."
    yield from _other_scale(result, form)
    yield from _other_windows(form)
    yield from _other_rotary(result, form)


def _other_scale(result: Geometry, form: GgufForm) -> Iterator[str]:
    if "attention_multiplier" in form.row.keys.values() or not form.blocks:
        return
    divided = result.head_dim
    if form.row.unlike == len(form.kept):
        divided = result.hidden // max(1, form.blocks[0].kv_groups * result.queries_per_group)
    if abs(form.settings.scale - divided**-0.5) > CLOSE * form.settings.scale:
        wanted = f"{form.settings.scale**-2:.6g}"
        yield f"llama.cpp's {form.row.name} divides scores by the root of {divided} at {len(form.kept)} blocks, and this model by that of {wanted}."


def _other_windows(form: GgufForm) -> Iterator[str]:
    settings, windows = form.settings, form.row.windows
    if windows is None:
        return
    depths = "" if windows.depth is None else f" of {windows.depth} blocks"
    deep = windows.depth in (None, len(form.kept))
    if windows.always and deep and not settings.window:
        yield f"llama.cpp's {form.row.name}{depths} has blocks that attend to a window, and this model has none."
    if not deep and (settings.window or settings.values.get("sliding_window")):
        yield f"llama.cpp's {form.row.name} has windows at {windows.depth} blocks only, and this model has {len(form.kept)}."


def _other_rotary(result: Geometry, form: GgufForm) -> Iterator[str]:
    row, settings = form.row, form.settings
    plain, inside, windows = settings.rotary, settings.in_windows, row.windows
    if plain.kind not in row.rotary:
        yield _no_rotary(plain.kind, row.name).problem
    if plain.turned != result.head_dim and not row.part:
        yield f"llama.cpp's {row.name} turns whole heads, and this model turns {plain.turned} of {result.head_dim} channels."
    if plain.exact:
        yield f"llama.cpp's {row.name} begins and ends the ramp of YaRN at whole channels, and this model does not (truncate: false)."
    if plain.ramp != RAMP and not row.betas:
        yield f"llama.cpp's {row.name} has no keys for the ramp of this model's YaRN."
    if settings.window:
        yield from _other_in_windows(row, plain, inside, windows if form.windowed else None)
    expected = tuple(not row.unrotated or (place + 1) % row.unrotated != 0 for place in range(len(form.kept)))
    if _turning(settings.turning, form.kept, len(result.blocks)) != expected:
        every = f"every block but each {row.unrotated}th" if row.unrotated else "every block"
        yield f"llama.cpp's {row.name} has a rotary embedding in {every}, and this model has it in other blocks."


def _other_in_windows(row: GgufArch, plain: GgufRotary, inside: GgufRotary, windows: GgufWindows | None) -> Iterator[str]:
    """What a rotary embedding of blocks with a window says that the file would not."""
    if windows is None or windows.stretched:
        expected = plain
    elif plain.kind == "yarn" and windows.own_base:
        yield f"llama.cpp's {row.name} softens blocks with a window too where the others have YaRN."
        return
    else:
        expected = replace(GgufRotary("default", plain.base, plain.turned), base=inside.base if windows.own_base else plain.base)
    if inside != expected:
        yield f"llama.cpp's {row.name} gives blocks with a window another rotary embedding than this model does ({inside.kind}, base {inside.base:g})."


def _turning(turning: tuple[bool, ...], kept: tuple[int, ...], blocks: int) -> tuple[bool, ...]:
    """For every block that is written whether it turns; empty where the config is that of a deeper model, which does not say who stays."""
    if all(turning):
        return (True,) * len(kept)
    return tuple(turning[number] for number in kept) if len(turning) == blocks else ()


def _no_rotary(kind: str, arch: str = "") -> NoGgufForm:
    at = f" in its {arch}" if arch else ""
    return NoGgufForm(f"Rotary embeddings of type {kind!r} are not written for llama.cpp{at} here.", USE_OTHER)


def rope_type(config: Mapping[str, Any]) -> str:
    """The kind of rotary embedding that a config.json names, in the old spelling or the new; that of blocks that attend to everything."""
    named = config.get("rope_parameters") or config.get("rope_scaling") or {}
    named = named.get(EVERYTHING, named) if isinstance(named, Mapping) else named
    if not isinstance(named, Mapping):
        raise TrimlineError(f"config.json has an unusable rope_parameters: {shown(named)}.", "Correct the config.")
    return str(named.get("rope_type") or named.get("type") or "default")
