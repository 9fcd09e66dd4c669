"""Reads a folder without running what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporters.folder import CONFIG
from exporters.openvino.files import MODEL as OPENVINO
from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.profile import Profile
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.gguf_file import GgufFile, read_gguf
from pipeline.checkpoints.modelling import profile_of
from pipeline.checkpoints.weight_files import check_adapter_alone
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.plan.folder import PLAN
from pipeline.plan.plan import Plan
from pipeline.rebuild.biases import for_profile
from pipeline.rebuild.profiles import consumers
from trimline.inspect.data import BlockWidth, Inspection, Loading, TensorPattern
from trimline.inspect.graph import inspect_graph
from trimline.inspect.openvino_file import read_openvino

GGUF = ".gguf"
GIVE = "Give a checkpoint, plan, ONNX, OpenVINO or package folder, or a .gguf file."
PACKAGED = ("model", "checkpoint")  # where a package and a source artefact keep their checkpoint


def inspect_folder(folder: Path, source: Path | None = None) -> Inspection:
    """Reads a checkpoint folder, a plan folder, an ONNX or OpenVINO folder, a GGUF file or a package.

    Args:
        folder: what to look at.
        source: the dense checkpoint that a plan is for; with it a plan's parameters and consumers are known.

    Raises:
        TrimlineError: the folder is none of these, or what it holds is corrupt.
    """
    folder = Path(folder)
    if folder.is_file() and folder.suffix == GGUF:
        return _inspect_gguf(folder)
    if not folder.is_dir():
        what = f"{folder} is a file, and no .gguf" if folder.exists() else f"There is no folder {folder}"
        raise TrimlineError(f"{what}.", GIVE)
    if graph := graph_file(folder):
        return _inspect_onnx(graph)
    if (folder / OPENVINO).is_file():
        return _inspect_openvino(folder / OPENVINO)
    if place := checkpoint_place(folder):
        return _inspect_checkpoint(place)
    if (folder / PLAN).exists():
        return _inspect_plan(folder, source)
    check_adapter_alone(folder)
    if len(files := [path for path in sorted(folder.glob(f"*{GGUF}")) if path.is_file()]) == 1:
        return _inspect_gguf(files[0])
    raise TrimlineError(f"{folder} holds neither config.json, nor plan.json, nor an .onnx file, nor one .gguf file.", GIVE)


def graph_file(folder: Path) -> Path | None:
    """The first ONNX file that lies directly in a folder."""
    return next((path for path in sorted(folder.glob("*.onnx")) if path.is_file()), None)


def checkpoint_place(folder: Path) -> Path | None:
    """The folder, or the one inside it, that holds a checkpoint."""
    places = (folder, *(folder / name for name in PACKAGED))
    return next((place for place in places if (place / "config.json").exists()), None)


def _inspect_checkpoint(folder: Path) -> Inspection:
    checkpoint = Checkpoint(folder)
    geometry = checkpoint.geometry
    profile = profile_of(checkpoint.config)
    return Inspection(
        kind="checkpoint",
        folder=str(folder),
        title=f"{_named(geometry)}, {len(geometry.blocks)} blocks, hidden size {geometry.hidden}, profile {profile.value}",
        blocks=_widths(geometry.blocks),
        parameters=geometry.total_parameters(),
        decoder_parameters=geometry.decoder_parameters(),
        bytes=checkpoint.bytes,
        patterns=_patterns(checkpoint),
        consumers=_loadings(geometry, profile, checkpoint.config),
        active_parameters=None if geometry.family.mixture is None else geometry.active_parameters(),
        notes=(
            *(f"{doubt.problem} {doubt.read} {doubt.remedy}" for doubt in checkpoint.doubts),
            *((checkpoint.left_out,) if checkpoint.left_out else ()),
            *_kinds(geometry),
        ),
    )


def _kinds(geometry: Geometry) -> Iterator[str]:
    """A sentence per kind of mixer or FFN that is carried."""
    for sublayer, what in ((Sublayer.ATTENTION, "mixer"), (Sublayer.FFN, "FFN")):
        by_kind: dict[str, list[str]] = {}
        for number, block in enumerate(geometry.blocks):
            if block.has(sublayer) and not block.is_ordinary(sublayer):
                by_kind.setdefault(block.kind(sublayer), []).append(str(number))
        for kind, numbers in by_kind.items():
            yield f"The {what} of blocks {', '.join(numbers)} is of kind {kind}; it is carried as it is, and goes with its block."
    if geometry.family.has_beside:
        yield f"Beside the attention of every block stands a mixer that {geometry.family.model_type} carries as it is."


def _inspect_plan(folder: Path, source: Path | None) -> Inspection:
    plan = Plan.read(folder)
    selection = plan.selection
    kept = set(selection.blocks)
    pairs = enumerate(zip(selection.ffn, selection.kv_groups, strict=True))
    blocks = tuple(
        BlockWidth(i, len(ffn) if i in kept else 0, len(kv) if i in kept else 0, len(selection.experts_of(i)) if i in kept else 0)
        for i, (ffn, kv) in pairs
    )
    title = f"plan for {plan.family.model_type}: " + "; ".join(step.title for step in plan.steps)
    if source is None:
        note = "Name the dense checkpoint as well to see parameters and what loads the result."
        return Inspection("plan", str(folder), title, blocks, notes=(note,))
    checkpoint = Checkpoint(source)
    config, dense = checkpoint.config, checkpoint.geometry
    profile = narrowest_profile(plan.geometry(dense))
    result = for_profile(plan, dense, profile).geometry(dense)
    return Inspection(
        kind="plan",
        folder=str(folder),
        title=title,
        blocks=blocks,
        parameters=result.total_parameters(),
        decoder_parameters=result.decoder_parameters(),
        consumers=_loadings(result, profile, config),
        active_parameters=None if result.family.mixture is None else result.active_parameters(),
    )


def _inspect_onnx(graph: Path) -> Inspection:
    found = inspect_graph(graph)
    patterns = tuple(TensorPattern(name, fraction) for name, fraction in found.two_four.items())
    title = f"ONNX graph {graph.name}, opset {found.opset}, {found.nodes} nodes"
    return Inspection("onnx", str(graph.parent), title, bytes=found.file_bytes, patterns=patterns, graph=found)


def _inspect_openvino(path: Path) -> Inspection:
    found = read_openvino(path)
    stated = path.parent / CONFIG
    geometry = Geometry.from_config(read_json(stated)) if stated.is_file() else None
    return Inspection(
        kind="openvino",
        folder=str(path.parent),
        title=f"OpenVINO graph {path.name}, {sum(found.operators.values())} operators, {sum(found.states.values())} states",
        blocks=() if geometry is None else _widths(geometry.blocks),
        parameters=None if geometry is None else geometry.total_parameters(),
        bytes=found.file_bytes,
        openvino=found,
    )


def _inspect_gguf(path: Path) -> Inspection:
    found = read_gguf(path)
    ffn, groups = (found.per_block(key) for key in ("feed_forward_length", "attention.head_count_kv"))
    blocks = tuple(_gguf_width(found, number, *widths) for number, widths in enumerate(zip(ffn, groups, strict=False)))
    hidden, count = found.sizes.get("embedding_length", "unknown"), found.sizes.get("block_count", "unknown")
    return Inspection(
        kind="gguf",
        folder=str(path),
        title=f"GGUF {path.name}, {found.architecture}, {count} blocks, hidden size {hidden}",
        blocks=blocks,
        parameters=sum(kind.numbers for kind in found.types),
        bytes=found.bytes,
        gguf=found,
    )


def _gguf_width(found: GgufFile, number: int, ffn: int, groups: int) -> BlockWidth:
    """Of a block; where it has experts, channels are those of a shared expert, which every token goes through."""
    experts, dense = (found.sizes.get(key, 0) for key in ("expert_count", "leading_dense_block_count"))
    if not (isinstance(experts, int) and isinstance(dense, int) and experts and number >= dense):
        return BlockWidth(number, ffn, groups)
    shared = found.sizes.get("expert_shared_feed_forward_length", 0)
    return BlockWidth(number, shared if isinstance(shared, int) else 0, groups, experts)


def narrowest_profile(result: Geometry) -> Profile:
    """The profile that most programs load among those that fit ``result``, its block shapes and its biases."""
    if any(linear.bias is False for linear in result.family.linears if linear.name in result.biases):
        return Profile.FREE
    if result.is_uniform:
        return Profile.UNIFORM
    groups = {block.kv_groups for block in result.blocks if block.kv_groups}
    fits = result.family.decilm is not None and len(groups) == 1 and result.blocks[0].kv_groups > 0
    return Profile.DECILM if fits else Profile.FREE


def _named(geometry: Geometry) -> str:
    return geometry.family.model_type if geometry.within is None else f"{geometry.family.model_type} inside a {geometry.within.model_type}"


def _widths(blocks: tuple[BlockShape, ...]) -> tuple[BlockWidth, ...]:
    return tuple(BlockWidth(number, block.ffn, block.kv_groups, block.experts) for number, block in enumerate(blocks))


def _patterns(checkpoint: Checkpoint) -> tuple[TensorPattern, ...]:
    geometry = checkpoint.geometry
    names = [
        geometry.family.module(number, linear.name) + ".weight"
        for number, block in enumerate(geometry.blocks)
        for linear, _ in geometry.linears(block)
    ]
    return tuple(TensorPattern(name, two_four_fraction(checkpoint.tensor(name), axis=-1)) for name in names)


def _loadings(result: Geometry, profile: Profile, config: Mapping[str, Any]) -> tuple[Loading, ...]:
    verdicts = consumers(result, profile, config)
    return tuple(Loading(v.consumer, v.loads, v.why, v.change, v.checked) for v in verdicts)
