"""The gate between a checkpoint and its ONNX form: the same perplexity, and the same logits along every path.

Each check runs another path through the graph: no past, a past grown token by token, a past grown by chunks, ragged
rows, the graph's own text, and onnxruntime-genai. fp32 is compared with torch, logit by logit. A badly hurt model
amplifies rounding beyond any fixed bar (the rebuild gate meets the same), so where a check fails, the bar is set against
what rounding alone does to torch's logits of the same tokens.

In fewer bits no logit is torch's. There, perplexity says what the bits cost, and the paths are compared with the same
graph read without a past, by KL divergence: a cache that is filled wrongly is off by nats, rounding by thousandths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from exporters.folder import GATE, GENAI_CONFIG
from exporters.held import is_mapped, open_reference
from exporters.onnx.gate.divergence import Divergence, compare_distributions
from exporters.onnx.gate.paths import GraphPath, at_once, through_genai, walks
from exporters.onnx.gate.perplexity import NO_TOKENIZER, compared, demand_perplexity, fixed_windows, graph_losses
from exporters.onnx.running.genai import promised_positions
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.runtime import has_genai
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import LogitDifference, compare_logits, demand, gate_tokens
from pipeline.evaluate.perplexity import paged_losses, window_losses
from pipeline.live.paging import Paging

BAR = 1e-3
ROUNDINGS = 4  # of torch's own: two programs that round differently, each off by as much, and as much again for luck
TEXT = "The river had been frozen for three weeks when the first boats of the year came up from the harbour, and"
NO_GENAI = "onnxruntime-genai is not installed"
BF16_IN_GENAI = "onnxruntime-genai computes bf16 on GPUs only, and is run on the processor here"

Found = LogitDifference | Divergence


@dataclass(frozen=True)
class Judge:
    """What the graph should say.

    Attributes:
        reference: token ids (rows, tokens) to logits of all positions, read without a past.
        compare: a path's reference and candidate logits into what was found.
        name: of the reference, for messages.
    """

    reference: Callable[[torch.Tensor], torch.Tensor]
    compare: Callable[[torch.Tensor, torch.Tensor, GraphPath], Found]
    name: str


def gate_onnx(checkpoint: Path, folder: Path, recipe: ExportSlice, options: RunOptions, events: Events) -> dict[str, Any]:
    """As ``compare_onnx``, and writes gate.json into ``folder``."""
    record = compare_onnx(checkpoint, folder, recipe, options, events)
    write_json(folder / GATE, record)
    return record


def compare_onnx(checkpoint: Path, folder: Path, recipe: ExportSlice, options: RunOptions, events: Events) -> dict[str, Any]:
    """Compares the checkpoint in torch with the graph in ``folder``, and writes nothing.

    Returns:
        What gate.json holds: perplexities, and per check the largest difference, the bar and agreed tokens.

    Raises:
        GateError: a check failed; which one, and where first, is said.
        TrimlineError: there is no tokenizer, without which only fp32 can be judged.
    """
    source, exact = Checkpoint(checkpoint), recipe.precision == "fp32"
    room = promised_positions(folder, source)
    windows = fixed_windows(source, options.trust_remote_code, room)
    if windows is None and not exact:
        raise TrimlineError(
            f"{checkpoint} has no tokenizer, without which {recipe.precision} cannot be judged by perplexity.",
            "Put the tokenizer's files beside it, or export in fp32.",
        )
    ids = gate_tokens(source.geometry.vocab, rows=2, length=min(48, room // 4))
    mapped = is_mapped(source, options)
    lowering, walked, losses = _walk(folder, ids, _prompt(source, ids), windows, recipe.precision, mapped, options, events)
    model, paging = open_reference(source.folder, options, mapped)
    record: dict[str, Any] = {"lowering": lowering, "precision": recipe.precision, "perplexity": {"run": False, "why": NO_TOKENIZER}}
    if windows is not None:
        expected = window_losses(model, windows, events) if paging is None else paged_losses(model, paging.family, windows, events)
        record["perplexity"] = compared(expected, losses, recipe.most_perplexity)
    if exact:
        found, name, rounding = _against_torch(model, walked, lambda failed: _roundings(model, paging, failed))
        record["rounding of torch"] = rounding
    else:
        del model, paging  # before the graph is opened again
        view = OnnxDecoder(folder, options.threads, options.device, every_position=True, mapped=mapped)
        judge = Judge(lambda tokens: torch.from_numpy(view.logits(tokens.numpy())), _by_divergence, "the graph without a past")
        found, name = _judged(walked, judge), judge.name
    _demand_all(found, name, folder, events)
    if windows is not None:
        demand_perplexity(record["perplexity"], folder, recipe.precision, events)
    if mapped:
        record["weights"] = "mapped: torch had one block in memory, ONNX Runtime packed none"
    record |= {"reference": name, "genai": {"run": False, "why": _not_in_genai(folder, recipe.precision)}}
    for path, comparison in found.items():
        if path == "onnxruntime-genai":
            record["genai"] = {"run": True} | comparison.as_record()
    record["checks"] = {path: comparison.as_record() for path, comparison in found.items() if path != "onnxruntime-genai"}
    return record


def _walk(
    folder: Path,
    ids: torch.Tensor,
    prompt: torch.Tensor,
    windows: torch.Tensor | None,
    precision: str,
    mapped: bool,
    options: RunOptions,
    events: Events,
) -> tuple[str, list[GraphPath], list[float]]:
    """Lowering, every path's logits, and the windows' losses. One session at a time: each packs its own copy of the weights."""
    walked, losses = list[GraphPath](), list[float]()
    decoder = OnnxDecoder(folder, options.threads, options.device, every_position=True, mapped=mapped)
    if windows is not None:
        losses = graph_losses(decoder, windows, events)
    if precision == "fp32":
        walked.append(at_once(decoder, ids))
    del decoder
    decoder = OnnxDecoder(folder, options.threads, options.device, mapped=mapped)
    lowering = decoder.lowering
    with events.progress("running the ONNX graph along every path", 4) as advance:
        for walk in walks(decoder, ids, prompt):
            walked.append(walk)
            advance(1)
    del decoder
    if why := _not_in_genai(folder, precision):
        events.note(f"{why}; the graph was not run in it")
    else:
        walked.append(through_genai(folder, ids[0], mapped))
    return lowering, walked, losses


def _not_in_genai(folder: Path, precision: str) -> str:
    """Why onnxruntime-genai does not run the graph here; empty where it does."""
    if not has_genai() or not (folder / GENAI_CONFIG).is_file():
        return NO_GENAI
    # The folder's configuration names no GPU, and processors have no kernels for it.
    return BF16_IN_GENAI if precision == "bf16" else ""


def _judged(walked: Iterable[GraphPath], judge: Judge) -> dict[str, Found]:
    found = {}
    for walk in walked:
        pairs = [(judge.reference(part.ids)[:, list(part.positions)], part.logits) for part in walk.parts]
        reference, candidate = (torch.cat(logits) for logits in zip(*pairs, strict=True))
        found[walk.name] = judge.compare(reference, candidate, walk)
    return found


def _against_torch(
    model: PreTrainedModel, walked: list[GraphPath], of_torch: Callable[[list[GraphPath]], dict[str, float]]
) -> tuple[dict[str, Found], str, float | None]:
    """Walks beyond the bar are judged again, by torch's rounding on their own tokens: on others it may be far less."""
    found = _judged(walked, judge := _torch_judge(model, BAR))
    failed = [walk for walk in walked if not found[walk.name].passed]
    if not failed:
        return found, judge.name, None
    roundings = of_torch(failed)
    for walk in failed:
        found |= _judged([walk], _torch_judge(model, max(BAR, ROUNDINGS * roundings[walk.name])))
    return found, judge.name, max(roundings.values())


def _torch_judge(model: PreTrainedModel, bar: float) -> Judge:
    def compare(reference: torch.Tensor, candidate: torch.Tensor, walk: GraphPath) -> LogitDifference:
        found = compare_logits(reference, candidate, bar)
        if not walk.greedy:
            return found
        # What the graph said next has to be what torch would have said, or a close call for torch too.
        gap = reference.max(-1).values - reference.gather(-1, candidate.argmax(-1)[..., None])[..., 0]
        agreed = int((gap < 2 * bar).sum())
        return LogitDifference(found.difference, bar, found.kl_divergence, found.first_difference, agreed, gap.numel())

    return Judge(lambda ids: _reference(model, ids), compare, "torch, float32")


def _by_divergence(reference: torch.Tensor, candidate: torch.Tensor, walk: GraphPath) -> Divergence:
    return compare_distributions(reference, candidate)


def _demand_all(found: dict[str, Found], reference: str, folder: Path, events: Events) -> None:
    for name, comparison in found.items():
        what = "mean KL divergence" if isinstance(comparison, Divergence) else "largest logit difference"
        events.gate(f"ONNX, {name}: {what} {comparison.difference:.2g}", **comparison.as_record())
        if isinstance(comparison, LogitDifference):
            demand(comparison, reference, f"{folder} ({name})")
        elif not comparison.passed:
            raise GateError(
                f"{folder} ({name}) does not say what {reference} says: {comparison.difference:.3g} nats apart on average, "
                f"where {comparison.bar:g} is allowed.",
                "This is a fault of the conversion, not of the recipe; please report it with the recipe.",
            )


def _roundings(model: PreTrainedModel, paging: Paging | None, walked: list[GraphPath]) -> dict[str, float]:
    """How far fp32 takes torch's own logits of each walk from those of fp64; the model goes back to fp32 unchanged."""

    def logits(of: PreTrainedModel) -> list[torch.Tensor]:
        rows = ([_reference(of, part.ids)[:, list(part.positions)].flatten() for part in walk.parts] for walk in walked)
        return [torch.cat(parts) for parts in rows]

    single = logits(model)
    try:
        exact = logits(model.double() if paging is None else paging.again(torch.float64)[0])
    finally:
        if paging is None:
            model.float()
    return {walk.name: (b - a.double()).abs().max().item() for walk, a, b in zip(walked, single, exact, strict=True)}


def _prompt(source: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """A sentence where the checkpoint has a tokenizer, else random tokens; greedy text of random tokens says less."""
    tokenizer = source.folder / "tokenizer.json"
    if not tokenizer.is_file():
        return ids[:1]
    found = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))(TEXT)["input_ids"]
    return torch.tensor([found[: ids.shape[1]]])


def _reference(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits
