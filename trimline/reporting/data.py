"""What a report says, as plain values. The stages' outputs fill it; ``report.json`` holds it; every rendering reads only it.

A part that was not run stays None or empty, and its section says so in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from benchmarks.recipe import Phase
from pipeline.common.errors import TrimlineError

STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

Role = Literal["dense", "pruned"]


@dataclass(frozen=True)
class Measure:
    """A measured value with what is known of its uncertainty.

    Attributes:
        value: in the unit of the field that holds it; a median for timings.
        low, high: ends of its 95 % confidence interval, where one was computed.
        error: its standard error, where one was computed.
    """

    value: float
    low: float | None = None
    high: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """One form of the model.

    Attributes:
        role: ``dense`` or ``pruned``; the report compares the first of each.
        name: what people call it.
        parameters: every number in the checkpoint, a tied head counted once.
        decoder_parameters: weights of the linear projections inside the blocks, of all experts.
        active_parameters: of a mixture, those of them that one token is multiplied with.
        decoder_flops: of the blocks, for one token that sees ``ReportData.flops_context`` tokens.
        checkpoint_bytes, onnx_bytes: on disk, weights and graph.
        perplexity: on ``ReportData.evaluation``.
        peak_memory_bytes: largest resident size of the process that ran the model.
        cold_start_seconds: load and first request.
        window_losses: of the evaluation text, nats per predicted token, so that two models can be paired.
    """

    role: Role
    name: str
    parameters: int
    decoder_parameters: int
    decoder_flops: int
    checkpoint_bytes: int | None = None
    onnx_bytes: int | None = None
    perplexity: Measure | None = None
    peak_memory_bytes: int | None = None
    cold_start_seconds: float | None = None
    window_losses: tuple[float, ...] = ()
    active_parameters: int | None = None


@dataclass(frozen=True)
class WorkloadRow:
    """One timed task, dense and pruned interleaved.

    Attributes:
        name: such as ``512 tokens, nothing cached``.
        phase: ``prefill`` or ``decode``; the first workload of each phase is the headline.
        batch, tokens, past: sequences, new tokens per sequence and call, tokens already in the cache.
        dense, pruned: median latency of one call, seconds.
        dense_samples, pruned_samples: raw seconds, in the order they were taken.
        speedup: dense over pruned latency, round by round and opening by opening; its interval is of that, the latencies' own are not known.
        control: dense against itself in the same run (A/A), a ratio.
        allowed: speed-up that the roofline allows for these shapes.
        realised_gain: speedup over ``allowed``.
        verdict: what the comparison shows, as the benchmark words it; starts with ``not resolved`` where its control
            did not hold.
        dense_parts, pruned_parts: median seconds of what a call of a TensorRT engine is made of, by the benchmark's names; else empty.
    """

    name: str
    phase: Phase
    tokens: int
    dense: Measure
    pruned: Measure
    batch: int = 1
    past: int = 0
    dense_samples: tuple[float, ...] = ()
    pruned_samples: tuple[float, ...] = ()
    speedup: Measure | None = None
    control: Measure | None = None
    allowed: float | None = None
    realised_gain: Annotated[Measure | None, Field(alias="realised")] = None  # the file's word
    verdict: str = ""
    dense_parts: dict[str, float] = field(default_factory=dict)
    pruned_parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Removed:
    """What share of the dense model went, 0 to 1, in every definition that people use."""

    ffn_channels: float
    kv_groups: float
    blocks: float
    decoder_parameters: float
    decoder_flops: float
    parameters: float
    residual_channels: float = 0.0
    experts: float | None = None  # of a mixture


@dataclass(frozen=True)
class BlockRow:
    """One original block: units before and after (0: the sublayer is gone), and how much the block matters."""

    number: int
    dense_ffn: int
    dense_kv_groups: int
    ffn: int
    kv_groups: int
    importance: float | None = None
    dense_experts: int = 0
    experts: int = 0


@dataclass(frozen=True)
class GateRow:
    """A check between two forms. ``passed`` None means that it was not run, and ``detail`` says why."""

    name: str
    passed: bool | None
    figure: float | None = None
    bar: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class SpeedPoint:
    """One model in the plot of perplexity against speed (tokens/s)."""

    name: str
    perplexity: float
    tokens_per_second: float


@dataclass(frozen=True)
class TextRow:
    """A text and what it was used for."""

    role: str
    name: str
    characters: int
    sha256: str
    tokens: int | None = None


@dataclass(frozen=True)
class Positions:
    """Both models' losses on one text by position in the window, nats per predicted token.

    Attributes:
        window: tokens of a window.
        dense, pruned: mean over windows of each eighth, in order.
        later: how much more the pruned model lost in the last eighth than in the first; the interval pairs windows. None of one window.
    """

    window: int
    dense: tuple[float, ...]
    pruned: tuple[float, ...]
    later: Measure | None = None


@dataclass(frozen=True)
class RetrievalRow:
    """Both models asked for what stands far back in texts of one length.

    Attributes:
        length: tokens of the longest text.
        texts: how many were asked about.
        chance: share that guessing finds.
        dense, pruned: share that was found.
        same: share of texts to which both gave one answer, right or wrong.
        lost, gained: found by dense alone, by pruned alone.
        p: of McNemar's exact test of these two.
        counts: whether the dense model beats chance by three standard errors.
    """

    length: int
    texts: int
    chance: float
    dense: float
    pruned: float
    same: float
    lost: int
    gained: int
    p: float
    counts: bool


@dataclass(frozen=True)
class ByText:
    """Both models on one text.

    Attributes:
        name: of the text.
        dense, pruned: perplexity of the checkpoints.
        divergence: mean KL of the pruned model's predictions from the dense model's, nats per token; None where they were not compared.
        same_best: share of positions at which both hold the same token for the likeliest; None likewise.
        positions: losses early and late in the windows; None where windows are too short, or the model was not read that way.
    """

    name: str
    dense: Measure
    pruned: Measure
    divergence: float | None = None
    same_best: float | None = None
    positions: Positions | None = None

    @property
    def ratio(self) -> float:
        """The pruned model's perplexity over the dense one's."""
        return self.pruned.value / self.dense.value


@dataclass(frozen=True)
class StageTime:
    """How long a stage took; None where it was skipped because its artefact was there."""

    stage: str
    seconds: float | None


@dataclass(frozen=True)
class ConsumerRow:
    """Whether a program loads the result (None: nobody has looked); ``checked`` says how that is known."""

    consumer: str
    loads: bool | None
    why: str = ""
    change: str = ""
    checked: str = ""


@dataclass(frozen=True)
class Recovery:
    """Training after pruning.

    Attributes:
        what: how it was trained, in words.
        tokens: that it was trained on, repetitions counted.
        before: perplexity of the pruned model that it started from, on ``ReportData.evaluation``.
        losses: (optimiser step, mean loss since the point before).
        held_out: (optimiser step, loss on windows that are not trained on), the first before any step.
        written: the step whose state is the result; None where no windows were held out and it is the last.
    """

    what: str
    tokens: int
    before: Measure
    losses: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()
    written: int | None = None


@dataclass(frozen=True)
class ExpertPoint:
    """The model with some number of routed experts in every block.

    Attributes:
        kept: so many.
        perplexity: on the text that ``ExpertCurve`` names.
        divergence: mean KL of its predictions from the dense model's, nats per token; None where they were not compared.
        same_best: share of positions at which both hold the same token for the likeliest; None likewise.
        planned: it is the count of this run, with the experts that its plan keeps.
    """

    kept: int
    perplexity: Measure
    divergence: float | None = None
    same_best: float | None = None
    planned: bool = False


@dataclass(frozen=True)
class ExpertCurve:
    """What other counts of experts would have cost.

    Attributes:
        experts: that a block of the dense model has.
        text: that was read, and how much of it.
        points: the largest count first.
        ruled_out: a sentence for every count that routers cannot choose among.
        ranked: the run's own choice is what the scores behind the other points would have chosen.
        others: the plan removes other units too, which all points do without.
    """

    experts: int
    text: str
    points: tuple[ExpertPoint, ...]
    ruled_out: tuple[str, ...] = ()
    ranked: bool = True
    others: bool = False


@dataclass(frozen=True)
class RoutedRow:
    """How a block's router spread the calibration tokens.

    Attributes:
        block: its number in the dense model.
        shares: of what was routed, that each expert got; they add up to 1, or are all 0.
        kept: experts that stay.
    """

    block: int
    shares: tuple[float, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True)
class TargetRow:
    """One thing that the recipe asked of the result, what came out, and ``met``, ``missed: …`` or ``not resolved: …``."""

    asked: str
    reached: str
    outcome: str


@dataclass(frozen=True)
class RoundRow:
    """One round of pruning and measuring towards a speed.

    Attributes:
        given: the speed that the allocation was given, which makes up for what the round before missed by.
        predicted: by the latency table, for the sizes that were chosen.
        measured: with its interval.
        counts: this round's model is the result.
    """

    number: int
    given: str
    predicted: str
    measured: str
    counts: bool


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task of the lm-eval harness.

    Attributes:
        task, metric: as the harness calls them; a filter that is not the usual one stands behind the metric.
        documents: that were asked about; 0 for a group of tasks.
        dense, pruned: by the checkpoints.
        onnx: by the pruned model's graph; None where no graph was made.
        difference: pruned minus dense, its error from the same documents in pairs where there is a formula.
        higher_is_better: None where the task does not say.
        chance: share of right answers by guessing, of a task of choices.
        lost, gained: answers that were right in dense alone, and in pruned alone; None where documents have no right and wrong.
        p: of McNemar's exact test of these two.
        counts: whether the dense model beats chance by three standard errors; None where chance is not known.
    """

    task: str
    metric: str
    documents: int
    dense: Measure
    pruned: Measure
    onnx: Measure | None
    difference: Measure
    higher_is_better: bool | None = None
    chance: float | None = None
    lost: int | None = None
    gained: int | None = None
    p: float | None = None
    counts: bool | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: heading of the report.
        command: what was typed, exactly.
        model_source: where the dense model came from.
        recipe: its YAML text.
        models: dense and pruned; more rows of either role are shown in the plot of points only.
        flops_context: tokens that a token sees, for FLOPs.
        evaluation: text, window and stride behind the perplexities, in words.
        decode_points: perplexity against decode speed.
        overlap: share of the evaluation text, by long lines or sentences, that also stands in the calibration text, 0 to 1.
        importance_name: what ``BlockRow.importance`` is.
        recovery: how the pruned model was trained; None where it was not.
        targets, rounds: what a recipe with a target asked for, and how it was come to.
        tasks: of the lm-eval harness, where the recipe names some.
        by_text: both checkpoints on every text that evaluates; the first is that of the perplexities above.
        retrieval: both checkpoints asked for what stands far back, by length, where the recipe wants it.
        expert_curve: of a mixture that lost experts, what other counts would have cost.
        routed: of such a mixture, block by block, how often each expert was chosen.
    """

    title: str
    command: str
    model_source: str
    recipe: str
    models: tuple[ModelRow, ...]
    removed: Removed | None = None
    blocks: tuple[BlockRow, ...] = ()
    importance_name: str = "importance"
    flops_context: int = 512
    evaluation: str = ""
    workloads: tuple[WorkloadRow, ...] = ()
    decode_points: tuple[SpeedPoint, ...] = ()
    gates: tuple[GateRow, ...] = ()
    consumers: tuple[ConsumerRow, ...] = ()
    texts: tuple[TextRow, ...] = ()
    overlap: float | None = None
    warnings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    recovery: Recovery | None = None
    targets: tuple[TargetRow, ...] = ()
    rounds: tuple[RoundRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    by_text: tuple[ByText, ...] = ()
    retrieval: tuple[RetrievalRow, ...] = ()
    expert_curve: ExpertCurve | None = None
    routed: tuple[RoutedRow, ...] = ()
    format: Literal[1] = 1

    def model(self, role: Role) -> ModelRow | None:
        """The first model of that role."""
        return next((model for model in self.models if model.role == role), None)

    def workload(self, phase: Phase) -> WorkloadRow | None:
        """The headline workload of that phase."""
        return next((workload for workload in self.workloads if workload.phase == phase), None)

    @property
    def has_accuracy(self) -> bool:
        """Speed is only shown beside perplexity; this says whether both models have one."""
        rows = self.model("dense"), self.model("pruned")
        return all(row is not None and row.perplexity is not None for row in rows)

    def write(self, path: Path) -> None:
        """Writes ``report.json``; the same data gives the same bytes."""
        path.write_bytes(_adapter(type(self)).dump_json(self, indent=2, by_alias=True) + b"\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what ``write`` wrote.

        Raises:
            TrimlineError: no such file, or not a report of this format; the first wrong field is named.
        """
        try:
            return _adapter(cls).validate_json(path.read_bytes())
        except FileNotFoundError:
            raise TrimlineError(f"{path} does not exist.", "Give a folder that holds a report.json.") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise TrimlineError(f"{path} is not a report: {place}: {first['msg']}.", "Run `trimline report` again.") from None


for _part in (
    Measure,
    ModelRow,
    WorkloadRow,
    Removed,
    BlockRow,
    GateRow,
    SpeedPoint,
    TextRow,
    Positions,
    RetrievalRow,
    ByText,
    StageTime,
    ConsumerRow,
    Recovery,
    TargetRow,
    RoundRow,
    TaskRow,
    ExpertPoint,
    ExpertCurve,
    RoutedRow,
    ReportData,
):
    setattr(_part, "__pydantic_config__", STRICT)  # noqa: B010 - mypy knows no such attribute of a dataclass


def _adapter(kind: type[ReportData]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
