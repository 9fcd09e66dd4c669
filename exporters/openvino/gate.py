"""The gate between a checkpoint and its OpenVINO form: weights one by one, logits along every path, and what the device makes of it by itself.

Weights come first: each is the checkpoint's, or off by no more than its number format explains. Then torch computes with the graph's own
weights, so that in every precision the graph has to give torch's logits, number by number: without a past, token by token, in chunks, in
rows of unequal length, in rows that change places, at the last promised positions and beyond a sliding window. For this openvino is asked for accuracy.

By itself a device trades some of that for speed. What it has chosen is read from the compiled model and stands in gate.json. So computed,
the paths are compared by KL divergence, and perplexity on a fixed text says what all of it costs. At last openvino-genai opens the folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from exporters.folder import EXPORT, GATE
from exporters.held import Reference, open_reference
from exporters.onnx.gate.divergence import Divergence, compare_distributions
from exporters.onnx.gate.far import far_rows
from exporters.onnx.gate.judging import Found, Judge, against_torch, judged, judged_far
from exporters.onnx.gate.metadata import ends_of
from exporters.onnx.gate.paths import GraphPath, at_once, walks
from exporters.onnx.gate.perplexity import NO_TOKENIZER, compared, demand_perplexity, fixed_windows, graph_losses
from exporters.onnx.lowering.config import context_length
from exporters.openvino.beams import reordered
from exporters.openvino.files import DETOKENIZER, TOKENIZER
from exporters.openvino.genai import Backend, GenaiPipeline
from exporters.openvino.runtime import GENAI, has, versions
from exporters.openvino.session import OpenvinoDecoder, attends_by_operator
from exporters.openvino.text import compare_tokenizer
from exporters.openvino.weights import compare_weights, demand_weights, put_weights
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import REPORT, LogitDifference, attention_window, demand, gate_tokens
from pipeline.evaluate.perplexity import window_losses
from pipeline.evaluate.settings import GENERATION, demand_same_generation
from pipeline.live.loading import as_trimline_error, quiet_transformers, trusts

GREEDY = 32  # tokens in openvino-genai
# SmolLM2 differs by 1.2e-3 up to position 8191, and by 1e-4 in short texts; likely by cosines of large angles.
LATE_BAR = 5e-3
CLOSE = 2e-3  # between two best logits: either may be said
NO_GENAI = "openvino-genai is not installed"
SMALLER = "another precision or with a smaller group_size"


def gate_openvino(checkpoint: Path, folder: Path, recipe: ExportSlice, options: RunOptions, events: Events) -> dict[str, Any]:
    """As ``compare_openvino``, and writes gate.json into ``folder``."""
    record = compare_openvino(checkpoint, folder, recipe, options, events)
    write_json(folder / GATE, record)
    return record


def compare_openvino(checkpoint: Path, folder: Path, recipe: ExportSlice, options: RunOptions, events: Events) -> dict[str, Any]:
    """Compares the checkpoint, as transformers opens it, with the graph in ``folder``, and writes nothing.

    Returns:
        What gate.json holds.

    Raises:
        GateError: a check failed; which one, and where first, is said.
        TrimlineError: there is no tokenizer, without which only fp32 can be judged.
    """
    source = Checkpoint(checkpoint)
    record: dict[str, Any] = {"format": "openvino", "precision": recipe.precision, "packages": versions()}
    record["metadata"] = _metadata(source, folder, options)
    windows = fixed_windows(source, recipe.precision, options.trust_remote_code)
    reference = open_reference(checkpoint, options, mapped=False)
    losses = [] if windows is None else window_losses(reference.model, windows, events)
    weights = compare_weights(reference.model, source.geometry, folder, recipe.precision)
    events.gate(
        f"OpenVINO, {len(weights.weights)} weights: at most {weights.noise[0]:.2g} times the error of rounding", **weights.as_record()
    )
    demand_weights(weights, folder)
    record["weights"] = weights.as_record()
    put_weights(reference.model, weights.weights)
    record["checks"] = _exact(source, folder, reference, options, events)
    record |= _by_itself(source, folder, recipe, reference, windows, losses, options, events)
    record["genai"] = _in_genai(source, folder, reference.model, options, events)
    return record


def _metadata(source: Checkpoint, folder: Path, options: RunOptions) -> dict[str, Any]:
    """What stands beside the graph: generation settings, promised positions, the tokenizer as OpenVINO runs it."""
    demand_same_generation(source.folder, folder)
    stated = read_json(folder / EXPORT)
    if stated.get("positions") != context_length(source):
        raise GateError(
            f"{folder / EXPORT} promises {stated.get('positions')} positions, and the checkpoint has {context_length(source)}.", REPORT
        )
    with_tokenizer = (folder / TOKENIZER).is_file() and (folder / DETOKENIZER).is_file()
    if not with_tokenizer and "no tokenizer" not in stated:
        raise GateError(f"{folder} lacks {TOKENIZER} or {DETOKENIZER}, by which openvino-genai reads texts.", REPORT)
    sentences = compare_tokenizer(source, folder, options.trust_remote_code) if with_tokenizer else 0
    return {"positions": stated["positions"], "sentences": sentences} | (
        {"no tokenizer": stated["no tokenizer"]} if not with_tokenizer else {}
    )


def _exact(source: Checkpoint, folder: Path, reference: Reference, options: RunOptions, events: Events) -> dict[str, Any]:
    """Every path, asked for accuracy, against torch with the graph's weights."""
    room = context_length(source)
    ids = gate_tokens(source.geometry.vocab, rows=2, length=min(48, room // 4))
    decoder = OpenvinoDecoder(folder, options.threads, every_position=True, exact=True)
    with events.progress("running the OpenVINO graph along every path", 1) as advance:
        paths = [at_once(decoder, ids), *walks(decoder, ids, ids[:1]), reordered(decoder, ids)]
        far = list(far_rows(decoder, attention_window(reference.model.config), room))
        advance(1)
    del decoder
    found, name, rounding = against_torch(reference, paths)
    found |= {name: _at_late_angles(one) for name, one in judged_far(reference, far, exact=True).items()}
    for path, comparison in found.items():
        _demand(path, comparison, f"{name}, with the graph's weights", folder, events)
    records = {path: comparison.as_record() for path, comparison in found.items()}
    return records if rounding is None else records | {"rounding of torch": rounding}


def _at_late_angles(found: Found) -> Found:
    """The same comparison with the bar of late positions, where that is what it fails by."""
    if found.passed or not isinstance(found, LogitDifference) or found.difference > LATE_BAR:
        return found
    return replace(found, bar=LATE_BAR, first_difference=None)


def _by_itself(
    source: Checkpoint,
    folder: Path,
    recipe: ExportSlice,
    reference: Reference,
    windows: torch.Tensor | None,
    losses: list[float],
    options: RunOptions,
    events: Events,
) -> dict[str, Any]:
    """What the device has chosen, and what comes of it."""
    decoder = OpenvinoDecoder(folder, options.threads, every_position=True)
    record: dict[str, Any] = {"arithmetic": decoder.arithmetic, "perplexity": {"run": False, "why": NO_TOKENIZER}}
    chosen = ", ".join(f"{what} {value}" for what, value in decoder.arithmetic.items())
    events.gate(f"OpenVINO computes here with {chosen}", **decoder.arithmetic)
    ids = gate_tokens(source.geometry.vocab, rows=2, length=min(48, context_length(source) // 4))
    found = _apart(reference.model, [at_once(decoder, ids), *walks(decoder, ids, ids[:1])])
    for path, comparison in found.items():
        _demand(f"{path}, as the device computes by itself", comparison, "torch, float32, with the graph's weights", folder, events)
    record["by itself"] = {path: comparison.as_record() for path, comparison in found.items()}
    if windows is not None:
        record["perplexity"] = compared(losses, graph_losses(decoder, windows, events), recipe.most_perplexity)
        demand_perplexity(record["perplexity"], folder, recipe.precision, events, "OpenVINO", SMALLER)
    return record


def _apart(model: PreTrainedModel, paths: list[GraphPath]) -> dict[str, Found]:
    def reference(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(ids, use_cache=False).logits

    return judged(paths, Judge(reference, lambda expected, candidate, _: compare_distributions(expected, candidate), "torch"))


def _demand(path: str, comparison: Found, reference: str, folder: Path, events: Events) -> None:
    what = "mean KL divergence" if isinstance(comparison, Divergence) else "largest logit difference"
    events.gate(f"OpenVINO, {path}: {what} {comparison.difference:.2g}", **comparison.as_record())
    if isinstance(comparison, LogitDifference):
        demand(comparison, reference, f"{folder} ({path})")
    elif not comparison.passed:
        raise GateError(
            f"{folder} ({path}) does not say what {reference} says: {comparison.difference:.3g} nats apart on average, "
            f"where {comparison.bar:g} is allowed.",
            REPORT,
        )


def _in_genai(source: Checkpoint, folder: Path, model: PreTrainedModel, options: RunOptions, events: Events) -> dict[str, Any]:
    """Greedy tokens through either of its attentions, and how it ends a text."""
    if not has(GENAI):
        events.note(f"{NO_GENAI}; the graph was not run in it")
        return {"run": False, "why": NO_GENAI}
    room = context_length(source)
    window = attention_window(model.config)
    length = min(48, room // 4) if window is None else min(window + 16, room - GREEDY, 1024)
    prompt = gate_tokens(source.geometry.vocab, rows=1, length=length, seed=2)[0].tolist()
    tokens = min(GREEDY, room - len(prompt))
    record: dict[str, Any] = {"run": True, "prompt": len(prompt)}
    # Scores that are capped are no ScaledDotProductAttention, without which there is nothing to page.
    backends: tuple[Backend, ...] = ("PA" if attends_by_operator(folder) else "its own choice", "SDPA")
    for backend in backends:
        pipeline = GenaiPipeline(folder, options.threads, backend, exact=True)
        if backend == backends[0]:
            record["ends"] = _ends(source, pipeline.settings(), folder, options)
        agreed = _agreed(model, prompt, pipeline.greedy(prompt, tokens))
        events.gate(f"openvino-genai, attention {backend}: {agreed} of {tokens} greedy tokens are torch's")
        record[backend] = {"agreed": agreed, "compared": tokens}
        if agreed < tokens:
            raise GateError(
                f"{folder} in openvino-genai (attention {backend}) says other tokens than the checkpoint: {agreed} of {tokens} are the same.",
                REPORT,
            )
    return record


def _agreed(model: PreTrainedModel, prompt: list[int], said: list[int]) -> int:
    """How many tokens torch would have said after the same ones before, close calls among them."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + said[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
    gap = logits.max(-1).values - logits.gather(-1, torch.tensor(said)[:, None])[:, 0]
    return int((gap < CLOSE).sum())


def _ends(source: Checkpoint, found: dict[str, Any], folder: Path, options: RunOptions) -> list[int]:
    """The tokens by which openvino-genai ends a text, which have to be those of transformers."""
    with quiet_transformers(), as_trimline_error(source.folder):
        trust = trusts(source.folder, source.stated, options.trust_remote_code)
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust, local_files_only=True).get_text_config()
        from transformers import GenerationConfig

        stated = GenerationConfig.from_pretrained(source.folder, local_files_only=True) if (source.folder / GENERATION).is_file() else None
    expected = set(ends_of(config, stated))
    ends = {int(token) for token in found["stop_token_ids"]} | ({int(found["eos_token_id"])} if int(found["eos_token_id"]) >= 0 else set())
    if expected != ends:
        raise GateError(f"openvino-genai ends a text of {folder} at {sorted(ends)}, and the checkpoint at {sorted(expected)}.", REPORT)
    return sorted(ends)
