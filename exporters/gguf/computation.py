"""What llama.cpp will compute by the keys of a GGUF, against the modules of the model that transformers loads.

Keys are read by gguf's reader. What they mean in llama.cpp is worked out here from the file alone; what they should mean is asked of the
modules: a norm by what it makes of two vectors, rotary embeddings by their frequencies, attention by its scale and window.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import torch

from exporters.gguf.mixtures import compare_mixtures
from exporters.gguf.tensors import XIELU, architecture
from exporters.held import Reference
from pipeline.architecture.families import Axis
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import GateError
from pipeline.rebuild.gguf_form import GgufForm

REPORT = "This is a fault of the conversion; please report it."
CLOSE = 1e-5  # relative: both sides are worked out in fp32
UNSCALED_IN_WINDOWS = ("gemma3", "olmo2")  # architectures whose blocks with a window are never stretched
BASE_OF_WINDOWS = ("gemma3",)  # and that read a base of their own for them
BY_HIDDEN = (("gemma2", 46), ("gemma3", 62))  # depths at which scores are divided by the root of hidden size / heads
RAMP = (32.0, 1.0)  # of YaRN in llama.cpp, where no key says


def compare_computation(geometry: Geometry, reference: Reference, form: GgufForm, reader: gguf.GGUFReader) -> None:
    """Compares norms, rotary embeddings, scales, caps and windows.

    Raises:
        GateError: one differs; it is named.
    """
    keys, family = Keys(reader, form.arch), geometry.family
    layers = [reference.model.get_submodule(f"{family.blocks}.{number}") for number in form.kept]
    attentions = [layer if family.attention is None else layer.get_submodule(family.attention) for layer in layers]
    _norms(geometry, reference, form, reader, keys)
    _angles(reference, reader, keys)
    _order(geometry, reference, form, reader, keys)
    for number, attention in enumerate(attentions):
        _scale(attention, number, len(layers), keys)
        _window(attention, number, keys)
    _settings(reference, form, keys)
    if family.mixture is not None:
        compare_mixtures(geometry, reference, form, reader, keys.own)
    for carried in (part for part in family.carried if part.name in XIELU):
        found = keys.plain(f"xielu.{XIELU[carried.name]}")
        expected = [float(reference.tensor(family.module(number, carried.name))) for number in form.kept]
        if not isinstance(found, list) or not np.allclose(found, expected, rtol=CLOSE, atol=0):
            raise GateError(f"The GGUF says {carried.name} = {found}, and the checkpoint {expected}.", REPORT)


class Keys:
    """Keys of a GGUF, as llama.cpp reads them."""

    def __init__(self, reader: gguf.GGUFReader, arch: str) -> None:
        self.reader, self.arch = reader, arch

    def plain(self, name: str) -> Any:
        """A key by its whole name; None where the file has none."""
        field = self.reader.get_field(name)
        return None if field is None else field.contents()

    def own(self, name: str, default: Any = None) -> Any:
        """A key of the architecture."""
        found = self.plain(f"{self.arch}.{name}")
        return default if found is None else found

    def demand(self, name: str, expected: float) -> None:
        """A number, in fp32.

        Raises:
            GateError: it differs.
        """
        if (found := self.own(name)) != float(np.float32(expected)):
            raise GateError(f"The GGUF says {name} = {found}, and the checkpoint {expected}.", REPORT)


def _norms(geometry: Geometry, reference: Reference, form: GgufForm, reader: gguf.GGUFReader, keys: Keys) -> None:
    held = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors if len(tensor.shape) == 1}
    names = gguf.get_tensor_name_map(architecture(form.arch), len(form.kept))
    rms = keys.own("attention.layer_norm_rms_epsilon")
    for place, module in _norm_places(geometry, form):
        norm = reference.model.get_submodule(module)
        epsilon = float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)  # type: ignore[arg-type]
        keys.demand(f"attention.layer_norm_{'' if rms is None else 'rms_'}epsilon", epsilon)
        named = names.get_name(place)
        stored = held.get(f"{named}.weight")
        if stored is None:  # a name of the row's own, which compare_tensors has compared
            continue
        weight, bias = norm_by_what_it_does(norm, len(stored), epsilon, rms is not None)
        if not torch.allclose(stored, weight, rtol=1e-3, atol=1e-4) or not _same_bias(held.get(f"{named}.bias"), bias):
            raise GateError(f"{named}.weight of the GGUF is not what {module} multiplies by.", REPORT)


def _norm_places(geometry: Geometry, form: GgufForm) -> Iterator[tuple[str, str]]:
    """Of every norm its module as the file counts blocks, and as the checkpoint does."""
    family = geometry.family
    for place, number in enumerate(form.kept):
        for norm in family.norms:
            if geometry.blocks[number].has(norm.sublayer):
                yield family.module(place, norm.name), family.module(number, norm.name)
    yield from ((name, name) for name in family.final_norms)


@torch.inference_mode()
def norm_by_what_it_does(norm: torch.nn.Module, width: int, epsilon: float, rms: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight, bias), shape (width,), from two opposite vectors whose mean is nothing and whose square has a mean of one."""
    probe = torch.ones(width)
    probe[1::2] = -1.0
    if width % 2:
        probe[-1] = 1.0 if rms else 0.0
    there, back = norm(probe[None, None])[0, 0].float(), norm(-probe[None, None])[0, 0].float()
    size = math.sqrt(float(probe.square().mean()) + epsilon)
    nonzero = torch.where(probe == 0, torch.ones_like(probe), probe)
    return (there - back) / 2 * size / nonzero, (there + back) / 2


def _same_bias(stored: torch.Tensor | None, bias: torch.Tensor) -> bool:
    return torch.allclose(torch.zeros_like(bias) if stored is None else stored, bias, rtol=1e-3, atol=1e-4)


def _angles(reference: Reference, reader: gguf.GGUFReader, keys: Keys) -> None:
    """Every table of frequencies of the model; its name says which blocks turn by it, where there are several."""
    for module in reference.model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or name.endswith("original_inv_freq"):
                continue
            kind = name.removesuffix("inv_freq").rstrip("_")
            in_windows = kind == "sliding_attention"
            if in_windows and keys.own("attention.sliding_window") is None:
                continue
            scaling = getattr(module, f"{kind}_attention_scaling" if kind else "attention_scaling", 1.0)
            found, softened = frequencies(reader, keys, in_windows)
            if found.shape != buffer.shape or not torch.allclose(found, buffer.float(), rtol=CLOSE, atol=0):
                base = keys.own("rope.freq_base_swa" if in_windows else "rope.freq_base")
                raise GateError(f"The GGUF says rope.freq_base = {base}, and turns by other angles than the checkpoint ({name}).", REPORT)
            if abs(softened - float(scaling)) > CLOSE * softened:
                raise GateError(f"The GGUF multiplies queries by {softened:.6g}, and the checkpoint by {float(scaling):.6g}.", REPORT)


def frequencies(reader: gguf.GGUFReader, keys: Keys, in_windows: bool) -> tuple[torch.Tensor, float]:
    """Angles per position, shape (turned / 2,), and what turned channels are multiplied by, as llama.cpp makes them of the keys."""
    turned, base = int(keys.own("rope.dimension_count")), float(keys.own("rope.freq_base"))
    stretched = not in_windows or keys.arch not in UNSCALED_IN_WINDOWS
    if in_windows and keys.arch in BASE_OF_WINDOWS:
        base = float(keys.own("rope.freq_base_swa", 10000.0))
    angles = base ** (-torch.arange(0, turned, 2, dtype=torch.float32) / turned)
    factors = next((np.array(tensor.data) for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    if factors is not None:
        angles = angles / torch.from_numpy(factors)
    factor = float(keys.own("rope.scaling.factor", 1.0)) if stretched else 1.0
    if keys.own("rope.scaling.type") != "yarn" or not stretched:
        return angles / factor, 1.0
    fast = float(keys.own("rope.scaling.yarn_beta_fast", RAMP[0]))
    slow = float(keys.own("rope.scaling.yarn_beta_slow", RAMP[1]))
    original = int(keys.own("rope.scaling.original_context_length"))
    ends = [turned * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (fast, slow)]
    first, last = max(0, math.floor(ends[0])), min(turned - 1, math.ceil(ends[1]))
    kept = 1 - ((torch.arange(turned // 2) - first) / max(0.001, last - first)).clamp(0, 1)
    softened = float(keys.own("rope.scaling.attn_factor", 1.0)) * (1 + 0.1 * math.log(factor) if factor > 1 else 1.0)
    return angles / factor * (1 - kept) + angles * kept, softened


def _order(geometry: Geometry, reference: Reference, form: GgufForm, reader: gguf.GGUFReader, keys: Keys) -> None:
    """Whether the channel that turns with a head's first one in the model is the one that does so in llama.cpp."""
    turned = int(keys.own("rope.dimension_count"))
    partner = turned_with_first(reference.model, turned)
    query = next((linear for linear in geometry.family.linears if linear.rows == (Axis.QUERY,)), None)
    if partner is None or query is None:
        return
    held = {tensor.name: tensor for tensor in reader.tensors if tensor.tensor_type is gguf.GGMLQuantizationType.F32}
    for place, number in enumerate(form.kept):
        file = held.get(f"blk.{place}.attn_q.weight")
        if file is None or not geometry.blocks[number].kv_groups:
            continue
        expected = reference.tensor(f"{geometry.family.module(number, query.name)}.weight")[partner]
        if not torch.equal(torch.from_numpy(np.array(file.data[1 if form.row.neighbours else turned // 2])), expected):
            raise GateError(f"{file.name} of the GGUF has channels of heads in another order than {form.arch} turns them.", REPORT)


@torch.inference_mode()
def turned_with_first(model: torch.nn.Module, turned: int) -> int | None:
    """The channel that the model's own function turns together with channel 0; None where its module has no such function."""
    turn = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
    if turn is None:
        return None
    first = torch.zeros(1, 1, 1, turned)
    first[..., 0] = 1.0
    for angles in (turned, turned // 2):  # gpt-oss's function has an angle per pair, all others have it twice
        quarter = torch.zeros(1, 1, angles), torch.ones(1, 1, angles)  # cosine and sine
        try:
            return int(turn(first, first, *quarter)[0].abs().argmax())
        except RuntimeError:  # sizes that do not fit
            continue
    return None


def _scale(attention: torch.nn.Module, number: int, blocks: int, keys: Keys) -> None:
    stated = getattr(attention, "scaling", None)
    divided = int(keys.own("attention.key_length"))
    if (keys.arch, blocks) in BY_HIDDEN:
        divided = int(keys.own("embedding_length")) // int(keys.own("attention.head_count"))
    found = float(keys.own("attention.scale", divided**-0.5))
    if stated is not None and abs(found - float(stated)) > CLOSE * found:
        raise GateError(f"Block {number} of the GGUF scales scores by {found:.6g}, and the checkpoint by {float(stated):.6g}.", REPORT)


def _window(attention: torch.nn.Module, number: int, keys: Keys) -> None:
    stated = getattr(attention, "sliding_window", None) if getattr(attention, "is_sliding", True) else None
    pattern = keys.own("attention.sliding_window_pattern")
    found = int(keys.own("attention.sliding_window")) if pattern is not None and pattern[number] else None
    if pattern is None and stated is not None and keys.own("context_length") <= stated:
        return
    if found != stated:
        raise GateError(f"Block {number} of the GGUF has the window {found}, and the checkpoint {stated}.", REPORT)


def _settings(reference: Reference, form: GgufForm, keys: Keys) -> None:
    config = reference.model.config
    rotary = getattr(config, "rope_parameters", None) or {}
    rotary = rotary.get("full_attention", rotary)
    if keys.own("rope.scaling.type") == "yarn":
        keys.demand("rope.scaling.original_context_length", float(rotary["original_max_position_embeddings"]))
    for name, key in form.row.keys.items():
        expected = getattr(config, key, rotary.get(key))
        if expected is None and keys.own(name) is None:
            continue
        keys.demand(name, math.nan if expected is None else float(expected))
