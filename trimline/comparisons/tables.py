"""A comparison as tables: what the terminal and Markdown show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results.document import Results
from pipeline.common.files import write_json
from trimline.comparisons.comparison import MOST_PAIRS, Comparison
from trimline.comparisons.pairs import EQUAL, AtSpeed, Pair
from trimline.comparisons.result import HERE, Result
from trimline.reporting import formats, metrics
from trimline.reporting.accuracy.flips import COLUMN, flips_cell
from trimline.reporting.content import Cell, Column, Table
from trimline.reporting.data import Measure
from trimline.reporting.headline import UNRESOLVED
from trimline.reporting.markdown import table_lines
from trimline.reporting.tasks import DIFFERENCE, DIVERGENCE, SAME_BEST, difference, figure, metric_title, near_cells

RATIO = "exp of the mean difference in loss over the same windows; brackets: 95 % confidence interval"
FASTER = "of two runs: ratio of the speed-ups over dense, whose errors add in squares; of one: from the ratio of times round by round"
EQUAL_RULE = f"speeds are equal where the interval of their ratio lies within 1 ± {EQUAL:.2f}"
ALONG = "losses of the series go linearly with speed between its two neighbours, window by window; the speeds' own errors are not in it"


def tables(comparison: Comparison) -> Iterator[tuple[str, Table]]:
    """(title, table): results, pairs, and results against series; those that are empty are left out."""
    workload, phase = comparison.axis
    name = f"{phase.capitalize()} {workload}"
    yield f"{name}: the fastest first", _results(comparison)
    if any(len(result.by_text) > 1 for result in comparison.results):
        yield "Text by text, beside each result's dense model", _by_text(comparison.results)
    if any(result.tasks for result in comparison.results):
        yield "Tasks, beside each result's dense model", task_table(comparison.results)
    if comparison.pairs:
        yield f"{name}: two by two", _pairs(comparison.pairs)
    if comparison.at_speed:
        yield f"{name}: at equal latency, along each series", _series(comparison.at_speed)


def notes(compared: Sequence[Comparison]) -> Iterator[str]:
    """Sentences on what no table shows; they are the same on every workload."""
    if len(groups := _timed_together(compared[0])) > 1:
        first = compared[0].results[0].dense
        yield (
            f"Timed in {len(groups)} interleaved runs, {first} twice in each: {'; '.join(map(' beside '.join, groups))}. Only results of one run are "
            f"paired by round; of two runs, speed-ups over {first} are compared, and latencies in seconds do not compare."
        )
    if left_out := max(comparison.left_out for comparison in compared):
        yield f"Not compared two by two: {left_out} pairs, where at most {MOST_PAIRS} are listed. Name fewer results to see them."


def _timed_together(comparison: Comparison) -> list[list[str]]:
    """Who was timed with whom here, beside the first; nothing of runs of before."""
    groups: dict[str, list[str]] = {}
    for result in comparison.results:
        for run in result.speeds[comparison.axis].runs:
            if run.startswith(HERE) and result.name != result.dense:
                groups.setdefault(run, []).append(result.name)
    return [groups[run] for run in sorted(groups, key=lambda run: int(run.removeprefix(HERE)))]


def write_comparison(compared: Sequence[Comparison], documents: Sequence[Results], out: Path) -> None:
    """Writes compare.json, compare.md and, of every run that was made for it, the benchmark's results-1.json and so on into ``out``."""
    write_json(out / "compare.json", {"comparisons": [comparison.as_record() for comparison in compared]})
    lines = ["# Results side by side", ""]
    for note in notes(compared):
        lines += [note, ""]
    for comparison in compared:
        for title, table in tables(comparison):
            lines += [f"## {title}", "", *table_lines(table)]
    (out / "compare.md").write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    for number, document in enumerate(documents, start=1):
        document.write(out / f"results-{number}.json")


def _results(comparison: Comparison) -> Table:
    columns = (
        Column("Result"),
        Column("Perplexity", True, metrics.PERPLEXITY),
        Column(
            "Speed-up",
            True,
            f"over {comparison.results[0].dense}: from (its time / the result's) round by round; 95 % interval, from openings",
        ),
        Column("Latency", True, metrics.LATENCY),
        Column("Parameters", True, metrics.PARAMETERS),
    )
    return Table(columns, tuple(_row(result, comparison) for result in comparison.results))


def _row(result: Result, comparison: Comparison) -> tuple[Cell, ...]:
    speed = result.speeds[comparison.axis]
    doubt = "" if speed.resolved else f" {UNRESOLVED}"
    return (
        Cell(result.name),
        Cell(formats.perplexity(result.perplexity), detail=formats.error(result.perplexity)),
        Cell(formats.ratio(speed.speedup.value), "quiet" if doubt else "plain", detail=f"{formats.interval(speed.speedup)}{doubt}"),
        Cell(formats.duration(speed.latency)),
        Cell(formats.count(result.parameters)),
    )


def _by_text(results: Sequence[Result]) -> Table:
    columns = (
        Column("Text"),
        Column("Result"),
        Column("Perplexity", True, metrics.PERPLEXITY),
        Column("÷ dense", True),
        Column("KL to dense", True, DIVERGENCE),
        Column("Same best token", True, SAME_BEST),
    )
    names = dict.fromkeys(row.name for result in results for row in result.by_text)
    found = [(name, result.name, row) for name in names for result in results for row in result.by_text if row.name == name]
    return Table(columns, tuple((Cell(name), Cell(result), *near_cells(row)) for name, result, row in found))


def task_table(results: Sequence[Result]) -> Table:
    """Task by task, each result that was asked: its figure, the dense model's, their difference, and whose answers changed."""
    figures = (Column("Dense", True), Column("Result's", True), Column("Difference", True, DIFFERENCE), COLUMN)
    found = [(row, result.name) for result in results for row in result.tasks]
    order = list(dict.fromkeys((row.task, row.metric) for row, _ in found))
    found.sort(key=lambda one: order.index((one[0].task, one[0].metric)))
    cells = (
        (Cell(row.task), Cell(metric_title(row)), Cell(name), figure(row.dense), figure(row.pruned), difference(row), flips_cell(row))
        for row, name in found
    )
    return Table((Column("Task"), Column("Metric"), Column("Result"), *figures), tuple(cells))


def _pairs(pairs: tuple[Pair, ...]) -> Table:
    columns = (
        Column("First"),
        Column("Second"),
        Column("Second as fast", True, FASTER),
        Column("Second's perplexity", True, RATIO),
        Column("What follows", formula=EQUAL_RULE),
    )
    rows = tuple(
        (Cell(pair.first), Cell(pair.second), _ratio(pair.faster), _ratio(pair.perplexity, 3), Cell(pair.verdict)) for pair in pairs
    )
    return Table(columns, rows)


def _series(found: tuple[AtSpeed, ...]) -> Table:
    columns = (
        Column("Result"),
        Column("Speed-up", True),
        Column("Series"),
        Column("Its perplexity there", True, ALONG),
        Column("Result's over it", True, RATIO),
        Column("At equal latency"),
    )
    return Table(columns, tuple(_series_row(one) for one in found))


def _series_row(one: AtSpeed) -> tuple[Cell, ...]:
    between = f"between {one.between[0]} and {one.between[1]}"
    return (
        Cell(one.result),
        _ratio(one.speedup),
        Cell(one.series),
        Cell(formats.plain(one.perplexity), detail=between),
        _ratio(one.ratio, 3),
        Cell(_outcome(one)),
    )


def _outcome(one: AtSpeed) -> str:
    if not one.resolved:
        return UNRESOLVED
    if one.ratio is None or one.ratio.low is None or one.ratio.high is None:
        return "not of the same windows"
    if one.ratio.high < 1:
        return f"{one.result} predicts better"
    return f"{one.series} predicts better" if one.ratio.low > 1 else "no measurable difference"


def _ratio(measure: Measure | None, digits: int = 2) -> Cell:
    if measure is None:
        return Cell(formats.NONE, "quiet")
    return Cell(f"{measure.value:.{digits}f}×", detail=formats.interval(measure, digits))
