"""The gate between a checkpoint and its ONNX form: what stands beside the graph, the same perplexity, the same logits along every path.

Each check runs another path through the graph: no past, a past grown token by token, a past grown by chunks, ragged
rows, the graph's own text, rows that reach far, and onnxruntime-genai. fp32 is compared with torch, logit by logit. A badly hurt model
amplifies rounding beyond any fixed bar (the rebuild gate meets the same), so where a check fails, the bar is set against
what rounding alone does to torch's logits of the same tokens.

In fewer bits no logit is torch's. There, perplexity says what the bits cost, every product is compared with its own in fp32, and the
paths are compared with the same graph read without a past, by KL divergence: a cache that is filled wrongly is off by nats, rounding by
thousandths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from exporters.folder import GATE, GENAI_CONFIG
from exporters.held import is_mapped, open_reference
from exporters.onnx.files import GRAPH, LOWERING_KEY
from exporters.onnx.gate.attention import compare_attention
from exporters.onnx.gate.divergence import Divergence
from exporters.onnx.gate.far import FarRow, far_rows
from exporters.onnx.gate.judging import Found, against_itself, against_torch, judged_far
from exporters.onnx.gate.metadata import Metadata, check_metadata
from exporters.onnx.gate.paths import GENAI, GraphPath, at_once, through_genai, walks
from exporters.onnx.gate.perplexity import NO_TOKENIZER, compared, demand_perplexity, fixed_windows, graph_losses
from exporters.onnx.gate.products import ProductForm, compare_products, demand_products
from exporters.onnx.running.genai import GenaiDecoder, promised_positions
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.runtime import has_genai
from exporters.onnx.sparsity import load_graph
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import REPORT, LogitDifference, attention_window, demand, gate_tokens
from pipeline.evaluate.perplexity import window_losses

TEXT = "The river had been frozen for three weeks when the first boats of the year came up from the harbour, and"
NO_GENAI = "onnxruntime-genai is not installed"
BF16_IN_GENAI = "onnxruntime-genai computes bf16 on GPUs only, and is run on the processor here"


@dataclass(frozen=True)
class Walked:
    """What the graph said.

    Attributes:
        paths: logits along every path.
        losses: of the windows of the fixed text.
        far: rows that reach far.
    """

    paths: list[GraphPath] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    far: list[FarRow] = field(default_factory=list)


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
    source, precision = Checkpoint(checkpoint), recipe.precision
    form = ProductForm(_lowering(folder), precision)
    metadata = check_metadata(source, folder, form.lowering, options.trust_remote_code)
    room = promised_positions(folder, source)
    windows = fixed_windows(source, precision, options.trust_remote_code, room)
    mapped = is_mapped(source, options)
    walked = _walk(source, folder, windows, form, metadata, mapped, options, events)
    record: dict[str, Any] = {"lowering": form.lowering, "precision": precision, "perplexity": {"run": False, "why": NO_TOKENIZER}}
    record |= {"metadata": metadata.as_record()}
    found = _judge(source, folder, recipe, form, windows, walked, record, room, options, events)
    _demand_all(found, record["reference"], folder, events)
    if windows is not None:
        demand_perplexity(record["perplexity"], folder, precision, events)
    if mapped:
        record["weights"] = "mapped: torch had one block in memory, ONNX Runtime packed none"
    genai = [comparison for path, comparison in found.items() if path.startswith(GENAI)]
    record["genai"] = {"run": True} | _together(genai) if genai else {"run": False, "why": _not_in_genai(folder, precision)}
    beside = {row.name for row in walked.far[1:]}
    record["far"] = {path: found[path].as_record() for path in found if path in beside}
    checks = {path: found[path].as_record() for path in found if path not in beside and not path.startswith(GENAI)}
    return record | {"checks": checks}


def _together(found: list[Found]) -> dict[str, Any]:
    """The worse of what was found along several paths, and whether all passed."""
    worst = max(found, key=lambda comparison: comparison.difference / comparison.bar)
    return worst.as_record() | {"passed": all(comparison.passed for comparison in found)}


def _judge(
    source: Checkpoint,
    folder: Path,
    recipe: ExportSlice,
    form: ProductForm,
    windows: torch.Tensor | None,
    walked: Walked,
    record: dict[str, Any],
    room: int,
    options: RunOptions,
    events: Events,
) -> dict[str, Found]:
    """Everything that needs the checkpoint in torch; adds to the record."""
    mapped, exact = is_mapped(source, options), recipe.precision == "fp32"
    reference = open_reference(source.folder, options, mapped)
    if form.lowering == "fused":
        record["attention"] = compare_attention(reference.model, folder, room, recipe.precision)
    if windows is not None:
        record["perplexity"] = compared(window_losses(reference.model, windows, events), walked.losses, recipe.most_perplexity)
    far = judged_far(reference, walked.far, exact=exact)
    if exact:
        found, record["reference"], record["rounding of torch"] = against_torch(reference, walked.paths)
        return far | found
    assert windows is not None
    products = compare_products(reference.model, source.geometry, folder, form, windows[0])
    events.gate(f"ONNX: {products.compared} products, at most {products.noise[0]:.2g} times the expected error", **products.as_record())
    demand_products(products, folder, recipe.precision)
    record["products"] = products.as_record()
    del reference  # before the graph is opened again
    view = OnnxDecoder(folder, options.threads, options.device, every_position=True, mapped=mapped)
    found, record["reference"] = against_itself(lambda ids: torch.from_numpy(view.logits(ids.numpy())), walked.paths)
    return far | found


def _walk(
    source: Checkpoint,
    folder: Path,
    windows: torch.Tensor | None,
    form: ProductForm,
    metadata: Metadata,
    mapped: bool,
    options: RunOptions,
    events: Events,
) -> Walked:
    """Every path's logits, and the windows' losses. One session at a time: each packs its own copy of the weights."""
    room, found = promised_positions(folder, source), Walked()
    ids = gate_tokens(source.geometry.vocab, rows=2, length=min(48, room // 4))
    decoder = OnnxDecoder(folder, options.threads, options.device, every_position=True, mapped=mapped)
    if windows is not None:
        found.losses.extend(graph_losses(decoder, windows, events))
    if form.precision == "fp32":
        found.paths.append(at_once(decoder, ids))
    found.far.extend(far_rows(decoder, attention_window(metadata.config), room))
    del decoder
    decoder = OnnxDecoder(folder, options.threads, options.device, mapped=mapped)
    with events.progress("running the ONNX graph along every path", 4) as advance:
        for walk in walks(decoder, ids, _prompt(source, ids)):
            found.paths.append(walk)
            advance(1)
    del decoder
    if why := _not_in_genai(folder, form.precision):
        events.note(f"{why}; the graph was not run in it")
    else:
        genai = GenaiDecoder(folder, mapped=mapped)
        metadata.check_genai(genai.settings(), folder)
        found.paths.extend(through_genai(genai, ids[0], metadata.padding))
    return found


def _lowering(folder: Path) -> str:
    stated = {entry.key: entry.value for entry in load_graph(folder / GRAPH).metadata_props}
    return stated.get(LOWERING_KEY, "portable")


def _not_in_genai(folder: Path, precision: str) -> str:
    """Why onnxruntime-genai does not run the graph here; empty where it does."""
    if not has_genai() or not (folder / GENAI_CONFIG).is_file():
        return NO_GENAI
    # The folder's configuration names no GPU, and processors have no kernels for it.
    return BF16_IN_GENAI if precision == "bf16" else ""


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
                REPORT,
            )


def _prompt(source: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """A sentence where the checkpoint has a tokenizer, else random tokens; greedy text of random tokens says less."""
    tokenizer = source.folder / "tokenizer.json"
    if not tokenizer.is_file():
        return ids[:1]
    found = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))(TEXT)["input_ids"]
    return torch.tensor([found[: ids.shape[1]]])
