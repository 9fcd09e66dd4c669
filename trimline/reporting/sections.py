"""From report data to sections, in the order of a reader's questions: what came out, what went, is it faster, is it right."""

from __future__ import annotations

from collections.abc import Iterator

from trimline.reporting import formats, metrics
from trimline.reporting.accuracy.positions import position_items
from trimline.reporting.accuracy.retrieval import retrieval_items
from trimline.reporting.content import Cell, Code, Column, Item, Note, Plot, Section, Table, Tone, outcome_cell, text_row
from trimline.reporting.data import ReportData, Role
from trimline.reporting.mixture.section import expert_items
from trimline.reporting.speed import speed_section
from trimline.reporting.tables import comparison_table
from trimline.reporting.tasks import by_text_items, task_items

BAND = 0.03  # as benchmarks.results.target judges
ROLES: tuple[Role, Role] = ("dense", "pruned")
LOADS_TONES: dict[bool | None, Tone] = {True: "good", False: "bad", None: "quiet"}


def sections(data: ReportData) -> tuple[Section, ...]:
    """Every section, in order; a part that was not run says so instead of showing nothing."""
    return (
        Section("result", "Dense against pruned", _result(data)),
        *([Section("by-text", "Text by text", (*by_text_items(data.by_text), *position_items(data.by_text)))] if data.by_text else []),
        *([Section("retrieval", "What it finds in long texts", tuple(retrieval_items(data.retrieval)))] if data.retrieval else []),
        *([Section("target", "Is it what was asked for?", tuple(_targets(data)))] if data.targets else []),
        Section("removed", "What was removed", tuple(_removed(data))),
        *([Section("experts", "How many experts it can lose", items)] if (items := tuple(expert_items(data))) else []),
        Section("recovery", "What training gave back", tuple(_recovery(data))),
        *([Section("tasks", "What it still can do", tuple(task_items(data.tasks)))] if data.tasks else []),
        speed_section(data),
        Section("gates", "Is it the same model?", _gates(data)),
        Section("consumers", "What loads it", _consumers(data)),
        Section("texts", "Texts", tuple(_texts(data))),
        Section("made", "How it was made", _made(data)),
        Section("machine", "Machine and time", tuple(_machine(data))),
    )


def _result(data: ReportData) -> tuple[Item, ...]:
    table = comparison_table(data)
    if table is None:
        return (Note("There is no pruned model beside a dense one, so nothing is compared.", "quiet"),)
    names = [f"{role}: {row.name}" for role in ROLES if (row := data.model(role)) and row.name != role]
    about = [*names, *([f"perplexity: {data.evaluation}"] if data.evaluation else [])]
    evaluated = Note(f"{'; '.join(about)}.", "quiet") if about else None
    missing = None if data.has_accuracy else Note("Perplexity was not evaluated for both models.", "quiet")
    return tuple(item for item in (table, evaluated, missing) if item)


def _targets(data: ReportData) -> Iterator[Item]:
    rows = tuple((*text_row(row.asked, row.reached), outcome_cell(row.outcome)) for row in data.targets)
    yield Table((Column("Target"), Column("Reached", numeric=True), Column("Outcome")), rows)
    if data.rounds:
        columns = (Column("Round", numeric=True), Column("Asked of the allocation", numeric=True), Column("Predicted", numeric=True))
        yield Table(
            (*columns, Column("Measured", numeric=True), Column("")),
            tuple(
                text_row(str(row.number), row.given, row.predicted, row.measured, "this model" if row.counts else "") for row in data.rounds
            ),
        )
        yield Note(f"Met means that the whole 95 % interval is within {BAND:.0%} of the target.", "quiet")


def _removed(data: ReportData) -> Iterator[Item]:
    if data.removed is None:
        yield Note("Nothing was removed yet: the prune stage was not run.", "quiet")
    else:
        flops = metrics.FLOPS.format(context=data.flops_context)
        experts = () if data.removed.experts is None else (("Experts", data.removed.experts, metrics.EXPERTS),)
        parts = (
            *experts,
            ("FFN channels", data.removed.ffn_channels, metrics.FFN_CHANNELS),
            ("KV groups", data.removed.kv_groups, metrics.KV_GROUPS),
            ("Blocks", data.removed.blocks, metrics.BLOCKS),
            ("Residual channels", data.removed.residual_channels, metrics.RESIDUAL_CHANNELS),
            ("Decoder linear parameters", data.removed.decoder_parameters, metrics.DECODER_PARAMETERS),
            ("Decoder FLOPs", data.removed.decoder_flops, flops),
            ("All parameters", data.removed.parameters, metrics.PARAMETERS),
        )
        rows = tuple((Cell(name, formula=formula), Cell(formats.percent(share))) for name, share, formula in parts)
        yield Table((Column("Share of"), Column("Removed", numeric=True)), rows)
    if data.blocks:
        yield Plot("widths", "Kept width per block")
        yield from _importance(data)
        yield _block_table(data)


def _recovery(data: ReportData) -> Iterator[Item]:
    recovery, dense, pruned = data.recovery, data.model("dense"), data.model("pruned")
    if recovery is None:
        yield Note("The pruned model was not trained.", "quiet")
        return
    before, after = dense.perplexity if dense else None, pruned.perplexity if pruned else None
    figures = (("dense", before), ("pruned", recovery.before), ("recovered", after))
    columns = (Column("Model"), Column("Perplexity", True, metrics.PERPLEXITY))
    yield Table(columns, tuple((Cell(name), Cell(formats.perplexity(found), detail=formats.error(found))) for name, found in figures))
    yield Note(f"{recovery.what[:1].upper()}{recovery.what[1:]}: {recovery.tokens:,} tokens.")
    if recovery.held_out:
        losses = dict(recovery.held_out)
        written = (
            "the model as it was pruned, since training made it no better" if not recovery.written else f"that of step {recovery.written:,}"
        )
        yield Note(
            f"Held-out loss {losses[0]:.4f} before, {min(losses.values()):.4f} at best, {recovery.held_out[-1][1]:.4f} at the end; written is {written}."
        )
    if recovery.losses:
        yield Plot("losses", "Training loss")
        points = tuple(text_row(f"{step:,}", f"{loss:.4f}") for step, loss in recovery.losses)
        yield Table((Column("Optimiser step", numeric=True), Column("Loss", True, metrics.LOSS)), points, "Every point", folded=True)
    if recovery.held_out:
        points = tuple(text_row(f"{step:,}", f"{loss:.4f}") for step, loss in recovery.held_out)
        yield Table((Column("Optimiser step", numeric=True), Column("Held-out loss", True)), points, "Every held-out loss", folded=True)


def _importance(data: ReportData) -> Iterator[Item]:
    if any(block.importance is not None for block in data.blocks):
        yield Plot("importance", f"Block importance: {data.importance_name}")
    else:
        yield Note("Block importance was not measured by this recipe's method.", "quiet")


def _block_table(data: ReportData) -> Table:
    mixture = any(block.dense_experts for block in data.blocks)
    names = ("Block", *(("Experts",) if mixture else ()), "FFN channels", "KV groups")
    columns = [Column(name, numeric=True) for name in names]
    rows = [
        text_row(
            str(block.number),
            *((_kept(block.dense_experts, block.experts),) if mixture else ()),
            _kept(block.dense_ffn, block.ffn),
            _kept(block.dense_kv_groups, block.kv_groups),
        )
        + (Cell(formats.NONE if block.importance is None else f"{block.importance:.4g}"),)
        for block in data.blocks
    ]
    columns.append(Column("Importance", True, data.importance_name))
    return Table(tuple(columns), tuple(rows), "Every block", folded=True)


def _kept(before: int, after: int) -> str:
    if before and not after:
        return f"absent (was {before:,})"
    return f"{before:,} → {after:,}" if before != after else f"{before:,}"


def _gates(data: ReportData) -> tuple[Item, ...]:
    if not data.gates:
        return (Note("No gate was run.", "quiet"),)
    columns = (Column("Gate"), Column("Figure", numeric=True), Column("Bar", numeric=True), Column("Outcome"), Column("Detail"))
    outcome = {True: Cell("passed", "good"), False: Cell("failed", "bad"), None: Cell("not run", "quiet")}
    rows = tuple(
        (*text_row(gate.name, formats.figure(gate.figure), formats.figure(gate.bar)), outcome[gate.passed], Cell(gate.detail))
        for gate in data.gates
    )
    return (Table(columns, rows),)


def _consumers(data: ReportData) -> tuple[Item, ...]:
    if not data.consumers:
        return (Note("It was not judged which programs load the result.", "quiet"),)
    columns = (Column("Program"), Column("Loads it"), Column("Why"), Column("What to change"), Column("Known from"))
    rows = tuple(
        (Cell(row.consumer), Cell(formats.loads(row.loads), LOADS_TONES[row.loads]), *text_row(row.why, row.change, row.checked))
        for row in data.consumers
    )
    return (Table(columns, rows),)


def _texts(data: ReportData) -> Iterator[Item]:
    if not data.texts:
        yield Note("No text was used.", "quiet")
        return
    columns = (
        Column("Role"),
        Column("Text"),
        Column("Characters", numeric=True),
        Column("Tokens used", numeric=True),
        Column("SHA-256"),
    )
    rows = tuple(
        text_row(
            text.role, text.name, f"{text.characters:,}", formats.NONE if text.tokens is None else f"{text.tokens:,}", text.sha256[:16]
        )
        for text in data.texts
    )
    yield Table(columns, rows)
    if data.overlap is not None:
        yield Note(f"Shared between calibration and evaluation: {formats.percent(data.overlap, 2)} ({metrics.OVERLAP}).", "quiet")


def _made(data: ReportData) -> tuple[Item, ...]:
    return (
        Note(f"Dense model: {data.model_source}"),
        Code(data.command, "console", "Command"),
        Code(data.recipe.rstrip("\n"), "yaml", "Recipe"),
    )


def _machine(data: ReportData) -> Iterator[Item]:
    if data.environment:
        rows = tuple(text_row(name, value) for name, value in data.environment.items())
        yield Table((Column("Environment"), Column("")), rows)
    else:
        yield Note("The environment was not recorded.", "quiet")
    if data.stages:
        times = [stage.seconds for stage in data.stages if stage.seconds is not None]
        rows = tuple(
            text_row(stage.stage, "was there already" if stage.seconds is None else formats.duration(stage.seconds))
            for stage in data.stages
        )
        total = (Cell("together"), Cell(formats.duration(sum(times)) if times else formats.NONE))
        yield Table((Column("Stage"), Column("Time", numeric=True)), (*rows, total))
