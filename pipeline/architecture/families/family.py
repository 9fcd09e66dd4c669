"""A model architecture described as data: which axis of which tensor belongs to which space.

Everything that removes units (surgery, masking, counting) walks these descriptions, so no other module knows
what a Llama looks like. Tensors follow ``torch.nn.Linear``: weight (rows = outputs, columns = inputs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.architecture.families.kinds import ATTENTION, DENSE, NONE, Adjusted, Kinds, Size


class Axis(StrEnum):
    """What an axis of a tensor counts. The first is the same in all blocks; the others belong to a block's spaces."""

    RESIDUAL = "residual"  # one index per channel of the residual stream: space residual
    FFN = "ffn"  # one index per intermediate channel: space ffn.{i}
    QUERY = "query"  # head_dim × queries-per-group indices per unit of kv_group.{i}
    GATED_QUERY = "gated_query"  # the same with a gate: 2 × head_dim indices per query head, its channels and then their gates
    KV = "kv"  # head_dim indices per unit of kv_group.{i}
    GROUPED = "grouped"  # (queries-per-group + 2) × head_dim indices per unit of kv_group.{i}: queries, key and value, group after group
    HEADS = "heads"  # one index per query head, queries-per-group per unit of kv_group.{i}
    HEAD = "head"  # head_dim indices, shared by all heads (q/k norms); never cut
    EXPERT = "expert"  # one index per routed expert: space expert.{i}
    EXPERT_CHANNEL = "expert_channel"  # one index per intermediate channel of each expert; never cut
    EXPERT_PAIR = "expert_pair"  # two of these: gate and up in one tensor; never cut


class Point(StrEnum):
    """Where projections read. Those of one point read the same values, so they share every statistic of them."""

    ATTENTION_INPUT = "attention_input"  # q, k, v
    HEADS = "heads"  # the output projection
    FFN_INPUT = "ffn_input"  # gate and up
    CHANNELS = "channels"  # down


class Sublayer(StrEnum):
    """The two that a block may have: what mixes tokens, attention or another kind of mixer, and the FFN."""

    ATTENTION = "attention"
    FFN = "ffn"

    @property
    def ordinary(self) -> str:
        """The kind of it that has units."""
        return ATTENTION if self is Sublayer.ATTENTION else DENSE

    @property
    def point(self) -> Point:
        """What the sublayer's reader reads: the sublayer's units."""
        return Point.HEADS if self is Sublayer.ATTENTION else Point.CHANNELS


@dataclass(frozen=True)
class Linear:
    """One projection of a block.

    Attributes:
        name: module path inside the block, such as ``self_attn.q_proj``.
        rows: what its outputs count; several entries where projections are fused, in order.
        columns: what its inputs count.
        bias: True, False, or the name of the boolean config key that decides.
    """

    name: str
    rows: tuple[Axis, ...]
    columns: Axis
    bias: bool | str = False

    def stands_in(self, kind: str) -> bool:
        """Whether it is there where its sublayer is of that kind: it has units, so in the ordinary kind alone."""
        return kind == self.sublayer.ordinary

    @property
    def sublayer(self) -> Sublayer:
        touched = {*self.rows, self.columns}
        return Sublayer.FFN if Axis.FFN in touched else Sublayer.ATTENTION

    @property
    def point(self) -> Point:
        """Where its inputs are."""
        if self.columns is not Axis.RESIDUAL:
            return self.sublayer.point
        return Point.ATTENTION_INPUT if self.sublayer is Sublayer.ATTENTION else Point.FFN_INPUT


@dataclass(frozen=True)
class Norm:
    """One normalisation of a block; it goes when its sublayer goes.

    Attributes:
        name: module path inside the block.
        axis: what its weight counts.
        sublayer: whose it is; None where parallel sublayers share it, and then it goes with the last of them.
        bias: whether it has one.
        of: of a norm over each head: whether it normalises queries or keys.
        behind: it stands behind the sublayer, so that the stream takes its output instead of what the sublayer's reader writes.
        kinds: of its sublayer, that it is there in; by default all where it is over the stream, and else the ordinary one.
    """

    name: str
    axis: Axis
    sublayer: Sublayer | None
    bias: bool = False
    of: Axis | None = None
    behind: bool = False
    kinds: tuple[str, ...] = ()

    def stands_in(self, kind: str) -> bool:
        """Whether it is there where its sublayer is of that kind."""
        if self.kinds:
            return kind in self.kinds
        return kind != NONE if self.axis is Axis.RESIDUAL or self.sublayer is None else kind == self.sublayer.ordinary


@dataclass(frozen=True)
class Carried:
    """A tensor of a block that is no projection and no norm: it has no units of its own, and goes when its sublayer goes.

    Attributes:
        name: stored name inside the block, such as ``mlp.act_fn.alpha_p``.
        shape: of any number of axes. What counts experts is there where they are.
        sublayer: whose it is.
        trained: whether it is a parameter; else a buffer.
        kinds: of its sublayer, that it is there in; by default the ordinary one.
        adds: what it gives is added to the residual stream, so that it is zero where its block adds nothing.
        when: config keys that say whether it is there, such as ``attention_bias and not q_lora_rank``; always where it is empty.
    """

    name: str
    shape: tuple[Size, ...]
    sublayer: Sublayer
    trained: bool = True
    kinds: tuple[str, ...] = ()
    adds: bool = False
    when: str = ""

    @property
    def of_experts(self) -> bool:
        """Whether it has an index per routed expert."""
        return Axis.EXPERT in self.shape

    def stands_in(self, kind: str) -> bool:
        """Whether it is there where its sublayer is of that kind."""
        return kind in self.kinds if self.kinds else kind == self.sublayer.ordinary


Part = Linear | Norm | Carried


@dataclass(frozen=True)
class Mixture:
    """The routed experts of a block's FFN, of which a router chooses some for every token.

    Their tensors are stacked, an index per expert along the first axis; they are among the family's ``carried``. A shared expert,
    which every token goes through, is an ordinary FFN beside them.

    Attributes:
        experts: module path inside the block of what is called with hidden states, indices of experts and their weights.
        router: module path of what has a weight with a row per expert.
        count_keys: config keys of the number of experts; of several that are stated the first counts, as transformers has it: an alias
            goes over the field of the config class.
        chosen_key: config key of how many are chosen for a token.
        width_key: config key of the width of each.
        correction: stored name inside the block of what is added to the scores where experts are chosen; None without.
        sums_to_one: scores sum to one over all experts before the correction is added, so that without some the others' are larger there.
        groups_key, chosen_groups_key: config keys of the number of groups of experts, and of how many a token's experts are from.
        group_best: as many experts of a group say how good it is, so that it needs as many.
        shared_keys: config keys whose product is the width of the shared expert, where it has none of its own that could change alone.
        shared_gate: a gate of every token weighs what the shared expert writes.
    """

    experts: str
    router: str
    count_keys: tuple[str, ...]
    chosen_key: str = "num_experts_per_tok"
    width_key: str = "moe_intermediate_size"
    correction: str | None = None
    sums_to_one: bool = False
    groups_key: str | None = None
    chosen_groups_key: str = "topk_group"
    group_best: int = 2
    shared_keys: tuple[str, ...] = ()
    shared_gate: bool = False

    @property
    def weights(self) -> tuple[str, ...]:
        """The experts' matrices inside the block, each expert's along the first axis."""
        return f"{self.experts}.gate_up_proj", f"{self.experts}.down_proj"


@dataclass(frozen=True)
class Family:
    """A decoder-only architecture.

    Attributes:
        model_type: ``config.model_type`` of transformers.
        class_prefix: transformers' class names are ``{prefix}Config`` and ``{prefix}ForCausalLM``.
        config_class: name of the config class, where it is not ``{prefix}Config``.
        linears, norms, carried: what blocks hold; each part says in which kinds of block.
        kinds: which block is of which kind; by default all have attention and a dense FFN.
        passed_over: names of stored tensors that the stock class has no place for, as a regular expression with what they are:
            heads that predict further tokens. They are left out, and that is said.
        blocks, embeddings, final_norms: paths below the model's root. ``embeddings`` starts with the token table.
        attention, ffn: module paths of the two sublayers inside a block; None where the block holds the
            projections itself.
        ffn_key, heads_key, kv_heads_key, layers_key: config keys. ``kv_heads_key`` None means one per query head.
        activation_key: config key of the FFN's activation.
        adjusted: the FFN is narrower than ``ffn_key`` says.
        root_of_depth: config key of a number that is divided by the root of how many blocks there are and then multiplies what each
            sublayer gives.
        multiplier_keys: where the sublayers have numbers of their own; a key may end in the place in a list, ``mlp_multipliers.1``.
        gives_tuple: a block gives a tuple whose first entry is the hidden states.
        body_fills: the class fills buffers of its blocks when its body is initialised.
        on_disk: what names in files start with, where the class's own start with ``model.``.
        old_keys: config keys of older folders, to what they are called today.
        head_bias: the output head has a bias.
        position_offset: rows that a learned position table has beyond ``max_position_embeddings``; None without one.
        defaults: values of config keys that config.json may leave out and that differ from "absent means false".
        requires: config keys that must have this value; other variants of the architecture are refused.
        decilm: what vLLM's DeciLM class can express of this family: ``llama`` (as it is), ``qkv_bias``
            (Llama with biases on q, k and v only), or None.
        onnx_builder: the class name in onnxruntime-genai's builder, or None where none computes what the family computes.
        onnx_obstacle: why the builder's class of the family does not, where it has one.
        gguf_arch: the llama.cpp architecture that computes it (``pipeline/architecture/gguf/archs.py``), or None.
        norms_less_one: the weights of its norms are stored less one.
        rotates_neighbours: its rotary embedding turns channels 2i and 2i + 1 together; else i and i + half of those that turn.
        norm_eps: config key of the epsilon of all norms, where all are RMSNorms over the residual stream: only then can
            channels of the stream go. None otherwise.
        multiplier_key: config key of the number that a sublayer's output is multiplied by before the stream takes it; None: by one.
        fixed_stream: why channels of the residual stream cannot go, where it is not for the norms.
        square_attention: the stock attention insists on heads × head_dim = hidden.
        mixture: the routed experts of its FFN, where it has some.
        stored: tensors inside a block whose names in files are not those in memory: to these, inside the block. ``{}`` in them stands for
            an expert's number; what is stacked in memory is each expert's, and of several names their rows follow each other.
        fixed_ffn: why FFN channels cannot go; they can where it is empty.
    """

    model_type: str
    class_prefix: str
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    carried: tuple[Carried, ...] = ()
    kinds: Kinds = field(default_factory=Kinds)
    passed_over: tuple[str, str] | None = None
    config_class: str = ""
    blocks: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    final_norms: tuple[str, ...] = ("model.norm",)
    norm_bias: bool = False
    head: str = "lm_head"
    attention: str = "self_attn"
    ffn: str | None = "mlp"
    ffn_key: str | None = "intermediate_size"
    heads_key: str = "num_attention_heads"
    kv_heads_key: str | None = "num_key_value_heads"
    layers_key: str = "num_hidden_layers"
    activation_key: str = "hidden_act"
    adjusted: Adjusted | None = None
    root_of_depth: str = ""
    multiplier_keys: Mapping[Sublayer, str] = field(default_factory=dict)
    gives_tuple: bool = False
    body_fills: bool = False
    on_disk: str = ""
    old_keys: Mapping[str, str] = field(default_factory=dict)
    head_bias: bool = False
    position_offset: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    decilm: str | None = None
    onnx_builder: str | None = None
    onnx_obstacle: str = ""
    gguf_arch: str | None = None
    norms_less_one: bool = False
    rotates_neighbours: bool = False
    norm_eps: str | None = None
    multiplier_key: str | None = None
    fixed_stream: str = ""
    square_attention: bool = False
    mixture: Mixture | None = None
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed_ffn: str = ""

    @property
    def cuttable(self) -> tuple[Sublayer, ...]:
        """The sublayers that have units in some kind of block."""
        columns = {linear.columns for linear in self.linears}
        return tuple(sublayer for sublayer in Sublayer if (Axis.FFN if sublayer is Sublayer.FFN else Axis.QUERY) in columns)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that blocks hold."""
        return (*self.linears, *self.norms, *self.carried)

    def reader(self, sublayer: Sublayer) -> Linear:
        """The projection whose *inputs* are the sublayer's units: ``down_proj``, ``o_proj``; only of those in ``cuttable``."""
        unit = Axis.FFN if sublayer is Sublayer.FFN else Axis.QUERY
        return next(linear for linear in self.linears if linear.columns is unit)

    def reading(self, point: Point) -> tuple[Linear, ...]:
        """The projections whose inputs are at ``point``."""
        return tuple(linear for linear in self.linears if linear.point is point)

    def writers(self, sublayer: Sublayer) -> tuple[Linear, ...]:
        """The projections whose *outputs* are the sublayer's units: ``gate_proj``, ``up_proj``; ``q_proj`` …"""
        return tuple(ln for ln in self.linears if ln.sublayer is sublayer and ln.columns is Axis.RESIDUAL)

    @property
    def config_name(self) -> str:
        """The config class of transformers."""
        return self.config_class or f"{self.class_prefix}Config"

    @property
    def norms_over_heads(self) -> tuple[Norm, ...]:
        """Norms that take the mean over all heads at once, so that a head that goes changes the others."""
        return tuple(norm for norm in self.norms if norm.axis in (Axis.QUERY, Axis.KV))

    def routes(self, feeds: str) -> bool:
        """Whether an FFN of that kind has routed experts: where some blocks have dense FFNs, only those of another kind have."""
        return self.mixture is not None and (self.kinds.ffns is None or feeds not in (DENSE, NONE))

    def adds(self, sublayer: Sublayer) -> bool:
        """Whether the stream takes what the sublayer's reader writes, or a multiple of it: no norm stands between, and no gate."""
        gated = sublayer is Sublayer.FFN and self.mixture is not None and self.mixture.shared_gate
        return not gated and not any(norm.behind for norm in self.norms if norm.sublayer is sublayer)

    def multiplier(self, sublayer: Sublayer, config: Mapping[str, Any]) -> float:
        """What the stream takes of what a sublayer's reader writes; one where the config says nothing."""
        if self.root_of_depth:
            return float(config[self.root_of_depth]) / math.sqrt(config[self.layers_key])
        key, _, place = str(self.multiplier_keys.get(sublayer) or self.multiplier_key).partition(".")
        found = config.get(key)
        if place:
            return float(found[int(place)]) if found else 1.0
        return 1.0 if found is None else float(found)

    @property
    def has_beside(self) -> bool:
        """Whether something that is carried adds to the stream beside the heads of an attention."""
        return any(part.adds and part.stands_in(ATTENTION) for part in self.carried)

    @property
    def is_parallel(self) -> bool:
        """Whether attention and FFN of a block read the same stream, through one norm."""
        return any(norm.sublayer is None for norm in self.norms)

    def module(self, block: int, name: str) -> str:
        """Full module path of ``name`` inside block ``block``."""
        return f"{self.blocks}.{block}.{name}"
