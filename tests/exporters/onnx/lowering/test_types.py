"""Every described architecture as an ONNX graph of blocks that differ: fused where onnxruntime-genai's builder has a class, and portable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from exporters.onnx.gate.attention import compare_attention
from exporters.onnx.lowering import fused
from exporters.onnx.lowering.fused import fused_obstacle
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.architecture.families import FAMILIES
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from tests.exporters.models import OPTIONS
from tests.pipeline.rebuild.cases import Choice, rebuilt_tiny
from tests.tiny import TINY_TYPES, tiny_model

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
WIDE = {"head_dim": 32, "hidden_size": 128}  # half of such a head is as much as GroupQueryAttention turns
OF_HALF_HEADS = {"glm", "nemotron", "phi"}
FUSED = sorted(name for name in TINY_TYPES if FAMILIES[name].onnx_builder)
# A rotary embedding per kind of block, multipliers, left-out rotary embeddings, norms after turning, one norm for both sublayers.
KINDS = ("gemma3_text", "granite", "smollm3", "hunyuan_v1_dense", "phi")
IN_FEWER_BITS = ("gemma3_text", "granite", "phi", "hunyuan_v1_dense")
PORTABLE_IN_FEWER_BITS = ("gemma3_text", "cohere2", "apertus", "phi")


def sizes(name: str) -> dict[str, int]:
    return WIDE if name in OF_HALF_HEADS else {}


def uneven(tmp: Path, name: str, **overrides: object) -> Path:
    """The first block empty, the second without FFN, the last without attention: where the builder keeps account of the stream."""

    def choose(choice: Choice) -> None:
        choice.ffn[0] = choice.kv[0] = choice.ffn[1] = choice.kv[3] = ()
        choice.ffn[2] = tuple(range(5, 37))
        if not FAMILIES[name].norms_over_heads:
            choice.kv[2] = choice.kv[2][1:]

    return rebuilt_tiny(tmp, name, choose, Profile.FREE, **overrides)


def gated(checkpoint: Path, out: Path, lowering: str, precision: str = "fp32") -> dict[str, dict[str, object]]:
    """What the gate found; it raises where the graph computes anything else."""
    out.mkdir()
    export(checkpoint, ExportSlice(lowering=lowering, precision=precision), OPTIONS, out, Events())
    record: dict[str, dict[str, object]] = json.loads((out / "gate.json").read_text())
    return record


def check_fused(checkpoint: Path, out: Path, precision: str = "fp32") -> None:
    record = gated(checkpoint, out, "fused", precision)
    assert record["genai"]["run"]
    assert record["attention"]["blocks"] == sum(bool(block.kv_groups) for block in Checkpoint(checkpoint).geometry.blocks)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The uneven checkpoint of a type and its fused export, made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def of(name: str) -> tuple[Path, Path]:
        if name not in made:
            tmp = tmp_path_factory.mktemp(name)
            checkpoint = uneven(tmp, name, **sizes(name))
            check_fused(checkpoint, tmp / "export")
            made[name] = checkpoint, tmp / "export"
        return made[name]

    return of


@pytest.mark.parametrize("name", KINDS)
def test_fused_of_each_kind(exported: Callable[[str], tuple[Path, Path]], name: str) -> None:
    _, folder = exported(name)
    stated = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["inputs"]
    assert ("position_ids" in stated) == (name == "hunyuan_v1_dense")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FUSED if name not in KINDS])
def test_fused(tmp_path: Path, name: str) -> None:
    check_fused(uneven(tmp_path, name, **sizes(name)), tmp_path / "export")


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSED)
def test_fused_of_blocks_alike(tmp_path: Path, name: str) -> None:
    check_fused(tiny_model(name, tmp_path / "dense", **sizes(name)), tmp_path / "export")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("name", IN_FEWER_BITS)
def test_fused_in_fewer_bits(tmp_path: Path, name: str, precision: str) -> None:
    check_fused(uneven(tmp_path, name, **sizes(name)), tmp_path / "export", precision)


def check_portable(checkpoint: Path, out: Path, precision: str = "fp32") -> None:
    assert gated(checkpoint, out, "portable", precision)["genai"]["run"]


def test_portable_of_a_shared_norm_scaled_logits_and_left_out_rotary_embeddings(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention"]
    check_portable(tiny_model("cohere2", tmp_path / "dense", num_hidden_layers=2, layer_types=types), tmp_path / "export")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_TYPES)
def test_portable(tmp_path: Path, name: str) -> None:
    check_portable(uneven(tmp_path, name), tmp_path / "export")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("name", PORTABLE_IN_FEWER_BITS)
def test_portable_in_fewer_bits(tmp_path: Path, name: str, precision: str) -> None:
    check_portable(uneven(tmp_path, name), tmp_path / "export", precision)


@pytest.mark.parametrize("name", sorted(set(TINY_TYPES) - set(FUSED)))
def test_a_type_without_a_class_says_so(tmp_path: Path, name: str) -> None:
    said = fused_obstacle(Checkpoint(tiny_model(name, tmp_path, num_hidden_layers=4)))
    assert said
    assert said == (FAMILIES[name].onnx_obstacle or f"onnxruntime-genai's builder knows no {name}")


def test_a_class_that_the_installed_builder_lacks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fused.builder_classes(), "GraniteModel")
    said = fused_obstacle(Checkpoint(tiny_model("granite", tmp_path)))
    assert said == "the installed onnxruntime-genai's builder has no class GraniteModel"


def test_an_ffn_with_biases_that_the_class_leaves_out(tmp_path: Path) -> None:
    said = fused_obstacle(Checkpoint(tiny_model("nemotron", tmp_path, mlp_bias=True, **WIDE)))
    assert said == "its FFN has biases, which the builder's NemotronModel leaves out"


def other_table(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "GroupQueryAttention" and node.input[7] == "cos_cache_full_attention")
    node.input[7] = "cos_cache_sliding_attention"


def turned(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "GroupQueryAttention" and not node.input[7])
    whole = next(node for node in graph.node if node.op_type == "GroupQueryAttention" and node.input[7])
    node.input[7:9] = whole.input[7:9]
    next(one for one in node.attribute if one.name == "do_rotary").i = 1


def swapped(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "RotaryEmbedding")
    node.input[2], node.input[3] = node.input[3], node.input[2]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("gemma3_text", other_table, "cosine table of full_attention"),
        ("smollm3", turned, "turns queries and keys in block 1"),
        ("hunyuan_v1_dense", swapped, "cosine table in"),
    ],
)
def test_the_gate_catches_other_angles(
    exported: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str, damage: Callable[[onnx.GraphProto], None], said: str
) -> None:
    checkpoint, folder = exported(name)
    model = load_model(checkpoint, dtype=torch.float32)
    assert compare_attention(model, folder, 256, "fp32")["table positions"] == 256
    graph = onnx.load(folder / "model.onnx")
    damage(graph.graph)
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(GateError, match=said):
        compare_attention(model, tmp_path, 256, "fp32")
