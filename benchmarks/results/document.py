"""What a benchmark found, as ``results.json`` holds it: one document, one reader, one word for each thing.

The file is older than these names: it says ``metric`` for a phase and ``speed_up`` for a speedup, and stays so. Records of older
versions lack some fields, and have others; what is read is written again byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StrictFloat, StrictInt, ValidationError

from benchmarks.formulas.statistics import Ratio, Summary
from benchmarks.recipe import BenchmarkSlice, Phase
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json

RESULTS, PAGE = "results.json", "results.md"
Number = StrictInt | StrictFloat


def _ratio_record(ratio: Ratio) -> dict[str, Any]:
    """Without openings where they were not written down."""
    return {name: value for name, value in ratio.as_record().items() if name != "openings" or value}


WrittenRatio = Annotated[Ratio, PlainSerializer(_ratio_record)]


class DocumentPart(BaseModel):
    """Base of all parts of the document."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    def as_record(self) -> dict[str, Any]:
        """As it stands in the file: what was not written down is left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Gain(DocumentPart):
    """A share with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class WholeRequests(DocumentPart):
    """Whole requests: seconds of each, and tokens per second of the median one."""

    seconds: Summary
    tokens_per_second: float


class Timing(DocumentPart):
    """One model on one workload in one phase. ``benchmarks.results.from_samples.FORMULAS`` says what every figure is.

    Attributes:
        seconds: per pass over the prompt, or per step.
        mbu, mfu: shares of the measured ceilings.
        others: cores that other processes kept busy.
        joules_per_token: by counter.
        parts, queries_per_second: of a TensorRT engine's calls.
        gaps, request: of decoding.
    """

    workload: str
    phase: Phase = Field(alias="metric")
    model: str
    seconds: Summary
    tokens_per_second: float
    time_bound: float | None = None
    mbu: float | None = None
    mfu: float | None = None
    others: Summary | None = None
    joules_per_token: dict[str, Summary] = Field(default_factory=dict)
    parts: dict[str, Summary] = Field(default_factory=dict)
    queries_per_second: float | None = None
    gaps: Summary | None = None
    request: WholeRequests | None = None


class PairedComparison(DocumentPart):
    """Dense against another model on one workload in one phase.

    Attributes:
        speedup: time of dense over the other's.
        control: the same of dense again.
        allowed: speedup that the roofline allows.
        realised_gain: speedup over ``allowed``.
    """

    workload: str
    phase: Phase = Field(alias="metric")
    model: str
    speedup: WrittenRatio = Field(alias="speed_up")
    control: WrittenRatio
    control_holds: bool
    verdict: str
    allowed: float
    realised_gain: Gain


class CeilingsRecord(DocumentPart):
    """What the machine can do: bytes and FLOPs per second, and the precision of these."""

    bandwidth: float
    rate: float
    multiplied: str = "fp32"
    samples: dict[str, list[float]] = Field(default_factory=dict)


class Energy(DocumentPart):
    """Parts of every counter that answered, and why the others did not."""

    counters: dict[str, list[str]]
    refused: dict[str, str]


class ModelRecord(DocumentPart):
    """A model's form, what a process of it took and held, and its perplexity where that is known."""

    precision: str
    lowering: str
    logits: str
    parameters: int
    weight_file_bytes: int
    engine_build: dict[str, float] | None = None
    engine_settings: dict[str, Any] | None = None
    kv_bytes_per_token: Number
    cold_start: dict[str, float]
    cold_start_samples: dict[str, list[float]] = Field(default_factory=dict)
    first_requests: dict[str, Any] = Field(default_factory=dict)
    energy: Energy | None = None
    memory: dict[str, int | None]
    perplexity: Number | None = None


class RawSamples(DocumentPart):
    """Seconds of one model on one workload, round by round: of the prompt pass, and of every step after it."""

    prefill: list[float]
    gaps: list[list[float]]
    others: list[float] = Field(default_factory=list)
    joules: list[Any] = Field(default_factory=list)
    parts: list[Any] = Field(default_factory=list)

    def seconds(self, phase: Phase) -> list[float]:
        """One number per round: the prompt pass, or the mean step after it."""
        return list(self.prefill) if phase == "prefill" else [sum(gaps) / len(gaps) for gaps in self.gaps]

    def whole_seconds(self) -> list[float]:
        """Of every request."""
        return [prefill + sum(gaps) for prefill, gaps in zip(self.prefill, self.gaps, strict=True)]


class Results(DocumentPart):
    """Everything that was measured and what follows from it; units are seconds, bytes and FLOPs throughout.

    Attributes:
        recipe: what was asked for, as that version wrote it.
        control_process: as of a model, of dense again.
        samples: by workload and model, ``dense again`` included.
    """

    formulas: dict[str, str] = Field(default_factory=dict)
    recipe: dict[str, Any]
    recipe_hash: str | None = None
    ceilings: CeilingsRecord
    models: dict[str, ModelRecord]
    control_process: dict[str, Any] = Field(default_factory=dict)
    timings: list[Timing]
    comparisons: list[PairedComparison]
    samples: dict[str, dict[str, RawSamples]]
    environment: dict[str, Any]

    @property
    def asked(self) -> BenchmarkSlice:
        """The recipe, as this version reads it."""
        return BenchmarkSlice.model_validate(self.recipe)

    def with_perplexities(self, accuracy: Mapping[str, float]) -> Self:
        """The same with every model's perplexity, None where it is not known."""
        models = {name: model.model_copy(update={"perplexity": accuracy.get(name)}) for name, model in self.models.items()}
        return self.model_copy(update={"models": models})

    def write(self, path: Path) -> None:
        """Writes the file that ``read_file`` reads."""
        write_json(path, self.as_record())


Document = TypeVar("Document", bound=Results)


def read(folder: Path) -> Results:
    """What the benchmark stage wrote into its folder.

    Raises:
        TrimlineError: there is no such file, or it holds something else; the first wrong field is named.
    """
    return read_file(folder / RESULTS, Results)


def read_file(path: Path, kind: type[Document]) -> Document:
    """The same of a file that a study named, and may have added to."""
    record = read_json(path)
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrimlineError(f"{path} holds no results of a benchmark: {place}: {first['msg']}.", "Measure again.") from None
