"""An inspection in the terminal: widths as a picture, sizes, patterns, and the table of programs that load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.checkpoints.gguf_file import GgufFile
from pipeline.common.errors import shortened
from trimline.inspect.data import BlockWidth, Inspection, Loading, TensorPattern
from trimline.inspect.graph import Graph
from trimline.inspect.openvino_file import OpenvinoGraph
from trimline.reporting import formats

FFN_BAR = 36  # characters of the widest bar
KV_BAR = 12
LOADS_STYLES = {True: "green", False: "red", None: "dim"}
EIGHTHS = " ▏▎▍▌▋▊▉"
BLOCK_NUMBER = re.compile(r"\.\d+\.")


def render_inspection(inspection: Inspection, console: Console) -> None:
    """Prints everything that the inspection found."""
    console.print(Text(inspection.title, style="bold"))
    for name, value in _sizes(inspection):
        console.print(Text(f"{name:<27}{value:>12}"))
    if inspection.blocks:
        console.print(_widths(inspection.blocks))
    if inspection.graph:
        for table in _graph_tables(inspection.graph):
            console.print(table)
    if inspection.gguf:
        for table in _gguf_tables(inspection.gguf):
            console.print(table)
    if inspection.openvino:
        for table in _openvino_tables(inspection.openvino):
            console.print(table)
    if inspection.patterns:
        console.print(_patterns(inspection.patterns))
    if inspection.consumers:
        console.print(_consumers(inspection.consumers))
    for note in inspection.notes:
        console.print(Text(note, style="dim"))


def bar(value: int, largest: int, width: int) -> str:
    """A horizontal bar of ``value / largest`` times ``width`` characters, to an eighth of a character."""
    eighths = round(value / largest * width * 8) if largest else 0
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def _sizes(inspection: Inspection) -> Iterator[tuple[str, str]]:
    if inspection.parameters is not None:
        yield "Parameters", formats.count(inspection.parameters)
    if inspection.decoder_parameters is not None:
        yield "Decoder linear parameters", formats.count(inspection.decoder_parameters)
    if inspection.active_parameters is not None:
        yield "Active decoder parameters", formats.count(inspection.active_parameters)
    if inspection.graph is not None:
        yield "Initialisers", formats.size(inspection.graph.initialiser_bytes)
    if inspection.bytes is not None:
        yield "On disk", formats.size(inspection.bytes)


def _widths(blocks: tuple[BlockWidth, ...]) -> Table:
    table = _table("Width per block")
    table.add_column("Block", justify="right")
    experts, ffn, groups = (max(getattr(block, kind) for block in blocks) for kind in ("experts", "ffn", "kv_groups"))
    # A mixture may have no channels that every token goes through, and most models have no experts.
    shown = [("FFN channels", "ffn", ffn, FFN_BAR)] * bool(ffn or not experts) + [("KV groups", "kv_groups", groups, KV_BAR)]
    shown = [("Experts", "experts", experts, KV_BAR)] * bool(experts) + shown
    for name, *_ in shown:
        table.add_column(name, no_wrap=True)
        table.add_column("", justify="right")
    for block in blocks:
        table.add_row(str(block.number), *(cell for _, kind, most, width in shown for cell in _bar(getattr(block, kind), most, width)))
    return table


def _bar(value: int, largest: int, width: int) -> tuple[Text, Text]:
    if not value:
        return Text("absent", style="red"), Text("0", style="red")
    return Text(bar(value, largest, width), style="cyan"), Text(f"{value:,}")


def _patterns(patterns: tuple[TensorPattern, ...]) -> Table:
    """One row per kind of projection; every single tensor stands in the JSON."""
    kinds: dict[str, list[float]] = {}
    for pattern in patterns:
        kinds.setdefault(BLOCK_NUMBER.sub(".*.", pattern.name), []).append(pattern.two_four)
    table = _table("2:4 pattern along the axis that the product sums over")
    table.add_column("Weights", overflow="fold")
    for name in ("Comply", "Lowest", "Highest"):
        table.add_column(name, justify="right")
    for kind, shares in kinds.items():
        comply = sum(share == 1.0 for share in shares)
        style = "green" if comply == len(shares) else ""
        table.add_row(Text(kind), Text(f"{comply} of {len(shares)}", style), formats.percent(min(shares)), formats.percent(max(shares)))
    return table


def _consumers(loadings: tuple[Loading, ...]) -> Table:
    table = _table("What loads it")
    for name in ("Program", "Loads", "Why", "What to change", "Known from"):
        table.add_column(name, overflow="fold")
    for row in loadings:
        loads = Text(formats.loads(row.loads), LOADS_STYLES[row.loads])
        table.add_row(Text(row.consumer), loads, Text(row.why), Text(row.change), Text(row.checked))
    return table


def _graph_tables(graph: Graph) -> Iterator[Table]:
    for title, values in (("Inputs", graph.inputs), ("Outputs", graph.outputs)):
        table = _table(title)
        table.add_column("Name", overflow="fold")
        table.add_column("Type", overflow="fold")
        for name, kind in _grouped(values):
            table.add_row(Text(name), Text(kind))
        yield table
    table = _table("Operators")
    table.add_column("Domain")
    table.add_column("Operators", overflow="fold")
    for domain, counts in graph.operators.items():
        table.add_row(Text(domain), Text(", ".join(f"{name} × {count}" for name, count in counts.items())))
    yield table


def _gguf_tables(file: GgufFile) -> Iterator[Table]:
    table = _table("Tensors")
    table.add_column("Type")
    for title in ("Tensors", "Numbers", "On disk"):
        table.add_column(title, justify="right")
    for row in file.types:
        table.add_row(row.type, str(row.tensors), formats.count(row.numbers), formats.size(row.bytes))
    yield table
    table = _table("Keys")
    for title in ("Key", "Value"):
        table.add_column(title, overflow="fold")
    for key, value in (file.sizes | {f"tokenizer {key}": value for key, value in file.tokenizer.items()}).items():
        if not isinstance(value, list):  # which is drawn, as widths per block
            table.add_row(
                Text(key), Text(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else shortened(str(value)))
            )
    yield table


def _openvino_tables(graph: OpenvinoGraph) -> Iterator[Table]:
    table = _table("Inputs and states")
    for title in ("Name", "Type"):
        table.add_column(title, overflow="fold")
    for name, kind in (*graph.inputs.items(), *((f"state × {count}", kind) for kind, count in graph.states.items())):
        table.add_row(Text(name), Text(kind))
    yield table
    table = _table("Weights")
    table.add_column("Type")
    for title in ("Tensors", "On disk"):
        table.add_column(title, justify="right")
    for kind, (tensors, size) in graph.weights.items():
        table.add_row(kind, str(tensors), formats.size(size))
    yield table
    table = _table("Operators")
    table.add_column("Operators", overflow="fold")
    table.add_row(Text(", ".join(f"{name} × {count}" for name, count in graph.operators.items())))
    yield table


def _grouped(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Values that differ only in their block's number become one row: a cache has two per block."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, kind in values.items():
        kinds.setdefault((BLOCK_NUMBER.sub(".*.", name), kind), []).append(name)
    for (pattern, kind), names in kinds.items():
        yield (names[0] if len(names) == 1 else f"{pattern} ({len(names)})"), kind


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
