"""Which shapes a latency table is measured on, and models of them in the form that the runtime opens."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.latency.cut_models import Shape, export_shape, plan_of, shape_of
from benchmarks.recipe import BenchmarkSlice
from benchmarks.runtimes.names import FORMS, computes_on
from benchmarks.timing.subject import BYTES
from benchmarks.timing.timing import DENSE
from exporters.onnx.running.shapes import EngineRequest
from exporters.recipe import BuildSlice, ExportSlice
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.obstacles import check_timed
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import whole_folder
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild

WHOLE = "whole"  # all blocks of the dense model; ``dense`` has fewer of them
MOST_WIDTHS, MOST_GROUPS = 6, 8  # that are measured, above 0
LEAST_BLOCKS = 4
NO_BAR = 1e6  # a few blocks without the others predict nothing, in any precision
CACHES = "/sys/devices/system/cpu/cpu0/cache"
USUAL_CACHE = 32 * 2**20
QUIET = Events()


@dataclass(frozen=True)
class Alike:
    """A model whose blocks are all of one shape."""

    blocks: int
    width: int
    groups: int

    def shape(self, geometry: Geometry) -> Shape:
        return {"blocks": [[self.width, self.groups]] * self.blocks, "biases": sorted(geometry.biases)}


@dataclass(frozen=True)
class Form:
    """How models are written for the runtime that is measured.

    Attributes:
        export: into ONNX, or OpenVINO's form; None where the runtime opens checkpoints and the recipe makes no graph.
        build: into an engine; where the runtime runs engines.
        recipe: runtime and workloads.
        options: threads.
    """

    export: ExportSlice | None = ExportSlice()
    build: BuildSlice | None = None
    recipe: BenchmarkSlice = field(default_factory=BenchmarkSlice)
    options: RunOptions = RunOptions()

    @property
    def precision(self) -> str:
        """Of the weights: the graph's; without one what torch holds them in."""
        held = "fp16" if computes_on(self.recipe.runtime, self.options.device) == "cuda" else "fp32"
        return self.export.precision if self.export else held

    @property
    def weight_bytes(self) -> float:
        """Of one weight, as it is read from memory."""
        return BYTES[self.precision].weight

    def write(self, source: Path, shape: Shape, out: Path) -> Path:
        """A model of a shape, cut from the first units of the dense one; the folder that the runtime opens.

        Raises:
            TrimlineError: it cannot be exported or built.
        """
        form = FORMS[self.recipe.runtime]
        if form == "checkpoint":
            return _checkpoint(source, shape, self.options, out)
        assert self.export is not None, "the preflight asks for a graph"
        out.mkdir()
        export_shape(source, shape, self.options, out, self.export.model_copy(update={"perplexity_bar": NO_BAR}))
        if form in ("onnx", "openvino"):
            return out
        from exporters.tensorrt.stage import build

        assert self.build is not None, "the preflight asks for a builder"
        engine = out.with_name(f"{out.name}-engine")
        requests = [EngineRequest(workload.prompt, workload.output, workload.batch) for workload in self.recipe.workloads]
        with whole_folder(engine) as place:
            # int8 engines are timed in their own precision; which values they hold does not matter.
            build(out, self.build.model_copy(update={"precision": "graph"}), requests, self.options, place, QUIET)
        return engine


def shapes_to_time(geometry: Geometry, tile: int, weight_bytes: float, blocks: int | None = None) -> dict[str, Alike]:
    """What is timed, by name; ``dense`` is what the others are compared with in every round.

    From ``whole`` and ``dense`` follows what a block costs and what the rest does; from the others, what each size does.

    Args:
        geometry: the dense model.
        tile: FFN widths are multiples of it.
        weight_bytes: of one weight.
        blocks: how many blocks of the dense shape are timed; by default ``blocks_needed``. At most half, so that the
            whole model says what the rest costs. Smaller blocks are as many more as weigh the same, as far as the
            model has them: fewer of them would lie in the cache and seem cheaper than they are in a whole model.

    Raises:
        TrimlineError: the model's blocks differ already, or are of kinds that no table knows.
    """
    check_timed(geometry.family)
    if len(set(geometry.blocks)) > 1:
        raise TrimlineError("The model's blocks differ already, and a latency table is measured on blocks that are alike.",
                            "Give the dense model.")  # fmt: skip
    block, most = geometry.blocks[0], len(geometry.blocks)
    cut = max(1, min(blocks or blocks_needed(geometry, weight_bytes), most // 2))
    weight = cut * geometry.block_parameters(block)

    def as_heavy(width: int, groups: int) -> Alike:
        own = geometry.block_parameters(BlockShape(width, groups))
        return Alike(min(most, math.ceil(weight / own)), width, groups)

    shapes = {DENSE: as_heavy(block.ffn, block.kv_groups)}
    if cut < most:
        shapes[WHOLE] = Alike(most, block.ffn, block.kv_groups)
    for width in [0, *spread(block.ffn, tile, MOST_WIDTHS)]:
        if width < block.ffn:
            shapes[f"ffn {width}"] = as_heavy(width, block.kv_groups)
    for groups in spread(block.kv_groups, 1, MOST_GROUPS):
        if groups < block.kv_groups:
            shapes[f"groups {groups}"] = as_heavy(block.ffn, groups)
    return shapes


def spread(most: int, tile: int, count: int) -> list[int]:
    """About ``count`` sizes from one tile to ``most``, evenly: multiples of the tile, and ``most`` itself."""
    tiles = max(1, most // tile)
    count = max(1, min(count, tiles))
    steps = sorted({round(1 + (tiles - 1) * k / max(1, count - 1)) * tile for k in range(count)})
    return sorted({size for size in steps if size < most} | {most})


def blocks_needed(geometry: Geometry, weight_bytes: float) -> int:
    """Blocks whose weights are twice the last-level cache, and no less than those of the output head."""
    block = geometry.block_parameters(geometry.blocks[0]) * weight_bytes
    head = geometry.vocab * geometry.hidden * weight_bytes
    return max(LEAST_BLOCKS, math.ceil(max(2 * last_level_cache(), head) / block))


def last_level_cache() -> int:
    """Bytes of the largest cache that the system tells of."""
    sizes = [_bytes(path.read_text(encoding="utf-8").strip()) for path in Path(CACHES).glob("index*/size")]
    return max(sizes, default=USUAL_CACHE)


def batches(names: Sequence[str], together: int) -> list[list[str]]:
    """Names but ``dense``, in runs of so many: a process per model holds its weights."""
    others = [name for name in names if name != DENSE]
    return [others[start : start + together] for start in range(0, len(others), together)]


def _bytes(text: str) -> int:
    return int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)


def _checkpoint(source: Path, shape: Shape, options: RunOptions, out: Path) -> Path:
    dense = Checkpoint(source)
    if shape == shape_of(dense.geometry):
        return source
    plan = out.with_name(f"{out.name}-plan")
    with whole_folder(plan) as place:
        plan_of(dense.geometry, shape).write(place)
    with whole_folder(out) as place:
        rebuild(source, plan, RebuildSlice(profile=Profile.FREE), options, place, QUIET)
    shutil.rmtree(plan)
    return out
