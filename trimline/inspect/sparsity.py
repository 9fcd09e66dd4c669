"""``trimline inspect --sparsity``: of every weight that a product reads, whether it is 2:4, in a checkpoint or an ONNX folder."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporters.onnx.sparsity import WeightPattern, weight_patterns
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from trimline.inspect.read import checkpoint_place, graph_file
from trimline.reporting import formats


def inspect_sparsity(folder: Path) -> tuple[WeightPattern, ...]:
    """Every weight of a checkpoint's projections, or of an ONNX graph's products.

    Raises:
        TrimlineError: the folder holds neither, or what it holds cannot be read.
    """
    folder = Path(folder)
    if graph := graph_file(folder):
        return tuple(weight_patterns(graph))
    if place := checkpoint_place(folder):
        return _of_checkpoint(Checkpoint(place))
    raise TrimlineError(f"{folder} holds neither config.json nor an .onnx file.", "Give a checkpoint, ONNX or package folder.")


def render_sparsity(weights: tuple[WeightPattern, ...], console: Console) -> None:
    """One row per weight, and how many comply."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Weight", overflow="fold")
    for title in ("Read by", "Axis", "Shape", "Zeros", "Groups with two zeros", "2:4"):
        table.add_column(title, justify="right" if title not in ("Read by", "2:4") else "left")
    for weight in weights:
        verdict = Text("yes", "green") if weight.complies else Text("no", "" if weight.head else "red")
        numbers = ("–" if weight.axis is None else str(weight.axis), " × ".join(map(str, weight.shape)))
        shares = (formats.percent(weight.zeros), formats.percent(weight.two_four, 2))
        table.add_row(Text(weight.name), Text(weight.operator + (" (head)" if weight.head else "")), *numbers, *shares, verdict)
    console.print(table)
    judged = [weight for weight in weights if not weight.head]
    console.print(Text(f"{sum(weight.complies for weight in judged)} of {len(judged)} weights are 2:4, the output head not counted."))


def _of_checkpoint(checkpoint: Checkpoint) -> tuple[WeightPattern, ...]:
    geometry = checkpoint.geometry
    names = [
        geometry.family.module(number, linear.name) + ".weight"
        for number, block in enumerate(geometry.blocks)
        for linear, _ in geometry.linears(block)
    ]
    found = []
    for name in names:
        weight = checkpoint.tensor(name)
        zeros = (weight == 0).double().mean().item()
        found.append(WeightPattern(name, "Linear", name.removesuffix(".weight"), 1, tuple(weight.shape), two_four_fraction(weight), zeros))
    return tuple(found)
