"""The gate between a checkpoint and its ONNX form: logits within 1e-3 everywhere, and the same greedy text.

Each check runs another path through the graph: no past, a past grown token by token, a past grown by chunks, ragged
rows, and onnxruntime-genai. The reference is torch in fp32. A badly hurt model amplifies rounding beyond any fixed bar (the
rebuild gate meets the same), so where a check fails, the bar is set against what rounding alone does to torch's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from exporters.onnx.config import context_length
from exporters.onnx.genai import CONFIG, GenaiDecoder
from exporters.onnx.runtime import has_genai
from exporters.onnx.session import OnnxDecoder
from pipeline.checkpoint import Checkpoint, write_json
from pipeline.events import Events
from pipeline.gates import Comparison, compare_logits, demand, gate_tokens
from pipeline.loading import load_model
from pipeline.options import RunOptions

BAR = 1e-3
ROUNDINGS = 4  # of torch's own: two programs that round differently, each off by as much, and as much again for luck
GREEDY_TOKENS = 64
RECORD = "gate.json"
TEXT = "The river had been frozen for three weeks when the first boats of the year came up from the harbour, and"


def gate_onnx(checkpoint: Path, folder: Path, options: RunOptions, events: Events) -> dict[str, Any]:
    """Compares the checkpoint in torch with the graph in ``folder``, and writes gate.json there.

    Returns:
        What gate.json holds: per check the largest difference, the bar, the KL divergence and agreed tokens.

    Raises:
        GateError: a check failed; which one, and where first, is said.
    """
    source = Checkpoint(checkpoint)
    model = load_model(source.folder, dtype=torch.float32, device="cpu", trust_remote_code=options.trust_remote_code)
    decoder = OnnxDecoder(folder, options.threads)
    length = min(48, context_length(source) // 4)
    ids = gate_tokens(source.geometry.vocab, rows=2, length=length)
    record: dict[str, Any] = {"lowering": decoder.lowering, "reference": "torch, float32"}
    bar, rounding = BAR, None
    found = _all_checks(model, decoder, ids, _prompt(source, ids), bar, events)
    if not all(comparison.passed for comparison in found.values()):
        rounding = _rounding(model, ids)
        bar = max(BAR, ROUNDINGS * rounding)
        found = _all_checks(model, decoder, ids, _prompt(source, ids), bar, events) if bar > BAR else found
    for name, comparison in found.items():
        events.gate(f"ONNX, {name}: largest logit difference {comparison.difference:.2g}", **comparison.as_record())
        demand(comparison, f"{checkpoint} (torch)", f"{folder} ({name})")
    del decoder  # its packed weights, before another runtime packs its own
    record |= {"rounding of torch": rounding, "checks": {name: comparison.as_record() for name, comparison in found.items()}}
    record["genai"] = _genai(model, folder, ids[0], bar, events)
    write_json(folder / RECORD, record)
    return record


def _all_checks(
    model: PreTrainedModel, decoder: OnnxDecoder, ids: torch.Tensor, prompt: torch.Tensor, bar: float, events: Events
) -> dict[str, Comparison]:
    found: dict[str, Comparison] = {}
    with events.progress("gating the ONNX graph", 4 if decoder.last_logits_only else 5) as advance:
        for name, comparison in _checks(model, decoder, ids, prompt, bar):
            found[name] = comparison
            advance(1)
            if not comparison.passed:
                break
    return found


def _rounding(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """How far fp32 takes torch's own logits from those of fp64; the model goes back to fp32 unchanged."""
    single = _reference(model, ids)
    try:
        exact = _reference(model.double(), ids)
    finally:
        model.float()
    return (exact - single.double()).abs().max().item()


def _checks(
    model: PreTrainedModel, decoder: OnnxDecoder, ids: torch.Tensor, prompt: torch.Tensor, bar: float
) -> Iterator[tuple[str, Comparison]]:
    reference, half = _reference(model, ids), ids.shape[1] // 2
    whole = [(0, ids.shape[1])]
    steps = [(0, half), *((at, at + 1) for at in range(half, ids.shape[1]))]
    yield "without cache", _compare(decoder, ids, whole, reference, bar)
    yield "with cache, token by token", _compare(decoder, ids, steps, reference, bar)
    third = max(1, ids.shape[1] // 3)
    chunks = [(at, min(at + third, ids.shape[1])) for at in range(0, ids.shape[1], third)]
    yield "with cache, in chunks", _compare(decoder, ids[:1], chunks, reference[:1], bar)
    if not decoder.last_logits_only:
        yield "rows of unequal length", _ragged(model, decoder, ids, bar)
    yield f"{GREEDY_TOKENS} greedy tokens", _greedy(model, decoder, prompt, bar)


def _compare(decoder: OnnxDecoder, ids: torch.Tensor, pieces: list[tuple[int, int]], reference: torch.Tensor, bar: float) -> Comparison:
    """Feeds the pieces one after another; a graph of last logits is compared where each piece ends."""
    past, found, expected = decoder.empty(len(ids)), [], []
    for start, end in pieces:
        logits, past = decoder.step(ids[:, start:end].numpy(), past)
        found.append(logits)
        expected.append(reference[:, end - logits.shape[1] : end])
    return compare_logits(torch.cat(expected, 1), torch.from_numpy(np.concatenate(found, 1)), bar)


def _ragged(model: PreTrainedModel, decoder: OnnxDecoder, ids: torch.Tensor, bar: float) -> Comparison:
    """Two prompts of unequal length side by side, then some steps, against each prompt alone."""
    short, full = ids.shape[1] // 2, ids.shape[1] - 4
    mask = np.ones((2, full), np.int64)
    mask[0, short:] = 0
    _, past = decoder.step(ids[:, :full].numpy(), decoder.empty(2), mask)
    tails = torch.stack([ids[0, short : short + 4], ids[1, full:]])
    steps = []
    for at in range(tails.shape[1]):
        logits, past = decoder.step(tails[:, at : at + 1].numpy(), past)
        steps.append(logits)
    rows = [torch.cat([ids[:1, :short], tails[:1]], 1), torch.cat([ids[1:, :full], tails[1:]], 1)]
    expected = torch.cat([_reference(model, row)[:, -tails.shape[1] :] for row in rows])
    return compare_logits(expected, torch.from_numpy(np.concatenate(steps, 1)), bar)


def _greedy(model: PreTrainedModel, decoder: OnnxDecoder, prompt: torch.Tensor, bar: float) -> Comparison:
    """The graph's own greedy text, judged by what torch would have said after each of its tokens.

    One pass of torch over the finished text gives all its verdicts, and does not lose its way after a close call.
    """
    text = torch.from_numpy(np.concatenate([prompt.numpy(), decoder.greedy(prompt.numpy(), GREEDY_TOKENS)], 1))
    seen, said = text[:, :-1], text[:, prompt.shape[1] :]
    reference = _reference(model, seen)
    verdicts = reference[:, -said.shape[1] :]
    gap = verdicts.max(-1).values - verdicts.gather(-1, said[..., None])[..., 0]
    found = _compare(decoder, seen, [(0, seen.shape[1])], reference, bar)
    agreed = int((gap < 2 * bar).sum())
    return Comparison(found.difference, bar, found.kl_divergence, found.first_difference, agreed, said.numel())


def _genai(model: PreTrainedModel, folder: Path, ids: torch.Tensor, bar: float, events: Events) -> dict[str, Any]:
    if not (has_genai() and (folder / CONFIG).is_file()):
        events.note("onnxruntime-genai is not installed; the graph was not run in it")
        return {"run": False, "why": "onnxruntime-genai is not installed"}
    half = len(ids) // 2
    found = GenaiDecoder(folder).forced(ids[:half].tolist(), ids[half:].tolist())
    comparison = compare_logits(_reference(model, ids[None])[0, half - 1 :][None], torch.from_numpy(found)[None], bar)
    events.gate(f"onnxruntime-genai: largest logit difference {comparison.difference:.2g}", **comparison.as_record())
    demand(comparison, "the checkpoint (torch)", f"{folder} (onnxruntime-genai)")
    return {"run": True} | comparison.as_record()


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
