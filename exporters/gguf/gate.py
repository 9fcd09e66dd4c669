"""The gate between a checkpoint and its GGUF: every tensor read back; logits through transformers; llama.cpp itself.

llama.cpp is the program that will run the file. Where it is not installed the gate says so in gate.json ("run": false), and
what remains is that the numbers and sizes in the file are the checkpoint's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.gguf.child import HOW, llama_cpp_python, measure
from exporters.gguf.keys import compare_keys
from exporters.gguf.metadata import context_length
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.reopen import compare_tensors, open_with_transformers, transformers_obstacle
from exporters.gguf.tensors import DTYPES, entries
from exporters.held import is_mapped, open_reference, too_large
from pipeline.architecture.gguf.arch import GELU
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import LogitDifference, compare_logits, demand, gate_tokens
from pipeline.evaluate.perplexity import window_losses
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.rebuild.gguf_form import GgufForm
from pipeline.sources.recipe import TextSource
from pipeline.sources.text import load_text

BAR = 2e-4  # of the largest logit, in fp32: the order of sums; a pruned SmolLM2 differed by 2e-5 of it
# llama.cpp looks GELU up in a table of 16-bit numbers, whatever the file holds; four tiny blocks differed by 4e-4, and every block adds its own.
TABLE_BAR = 2.5e-4
# With 16-bit matrices llama.cpp rounds activations to 16 bits as well, which a hurt model amplifies: perplexity decides.
RATIOS = {"fp32": 1.001, "fp16": 1.01, "bf16": 1.03}
GREEDY = 32
WINDOWS, WINDOW = 4, 256
SENTENCE = "In 1847 the ship's boy counted 12 gulls, 305 nets, and (so he said) one mermaid; the captain wasn't amused.\n\n  Was he?"


def gate_file(source: Checkpoint, form: GgufForm, precision: str, path: Path, options: RunOptions, events: Events) -> dict[str, Any]:
    """Compares the unquantised file with the checkpoint, without llama.cpp.

    Raises:
        GateError: a number, a size or a logit differs.
    """
    tensors = compare_tensors(source, open_reference(source.folder, options, is_mapped(source, options)), form, precision, path)
    compare_keys(source, gguf.GGUFReader(path), form.arch)
    events.gate(f"GGUF: {tensors} tensors read back, every number the checkpoint's")
    obstacle = transformers_obstacle(source, form, path) or _memory_obstacle(source, options)
    if obstacle is not None:
        events.note(f"not opened with transformers: {obstacle}")
        return {"tensors": tensors, "transformers": {"run": False, "why": obstacle}}
    comparison = _through_transformers(source, form, precision, path, options)
    events.gate(f"GGUF in transformers: largest logit difference {comparison.difference:.2g}", **comparison.as_record())
    demand(comparison, str(source.folder), f"{path} (transformers)")
    return {"tensors": tensors, "transformers": {"run": True} | comparison.as_record()}


def gate_llama_cpp(
    source: Checkpoint, form: GgufForm, recipe: GgufSlice, path: Path, options: RunOptions, events: Events
) -> dict[str, Any]:
    """Runs the file in llama.cpp, against the checkpoint in torch: logits, greedy tokens, token ids of a text, perplexity.

    A file in fewer than 32 bits is judged by its perplexity, and its logits are recorded.

    Raises:
        GateError: it computes something else.
    """
    python = llama_cpp_python()
    if python is None:
        events.note(f"not run in llama.cpp, which is not installed: {HOW}")
        return {"run": False, "why": f"llama-cpp-python is not installed; {HOW}"}
    reference = open_reference(source.folder, options, is_mapped(source, options)).model
    tokenizer = load_tokenizer(source.folder)
    context = context_length(form, Events())
    room = min(context, 2 * WINDOW) // 2
    ids = gate_tokens(source.geometry.vocab, rows=2, length=min(48, room))
    windows = _windows(tokenizer, source.geometry.vocab, min(WINDOW, room))
    prompt = windows[0, :16].tolist()
    with events.progress("running the GGUF in llama.cpp", 1) as advance:
        greedy_tokens = min(GREEDY, context - len(prompt))  # beyond its context the file promises nothing
        found = measure(python, path, ids.tolist(), windows.tolist(), SENTENCE, prompt, greedy_tokens, options.threads)
        advance(1)
    _same_tokens(tokenizer, found["text"])
    with torch.inference_mode():
        expected = reference(input_ids=ids, use_cache=False).logits.float()
    bar = TABLE_BAR * len(form.kept) if form.row.activation is GELU else BAR
    comparison = compare_logits(expected, torch.from_numpy(found["logits"]), bar * expected.abs().max().item())
    losses = window_losses(reference, windows, Events())
    ratio = math.exp(_mean(found["losses"]) - _mean(losses))
    greedy = _greedy(reference, prompt, found["greedy"], comparison.bar)
    record: dict[str, Any] = {"run": True, "llama-cpp-python": found["version"], "perplexity ratio": ratio, "greedy": greedy}
    exact = recipe.precision == "fp32" and recipe.quantise is None
    record |= comparison.as_record() if exact else _measured(expected, torch.from_numpy(found["logits"]), comparison)
    events.gate(f"GGUF in llama.cpp: largest logit difference {comparison.difference:.2g}, perplexity × {ratio:.4f}", **record)
    _judge_perplexity(recipe, ratio, path)
    if exact:
        demand(comparison, str(source.folder), f"{path} (llama.cpp)")
        if greedy["agreed"] < greedy["compared"]:
            raise GateError(f"{path} in llama.cpp says other greedy tokens than the checkpoint.", "Please report it with the recipe.")
    return record


def _memory_obstacle(source: Checkpoint, options: RunOptions) -> str | None:
    """Why transformers cannot open the file within the memory; None where it can."""
    return f"transformers' GGUF reader holds the model whole: {too_large(source)}" if is_mapped(source, options) else None


def _judge_perplexity(recipe: GgufSlice, ratio: float, path: Path) -> None:
    allowed = recipe.most_perplexity if recipe.quantise else RATIOS[recipe.precision]
    if not ratio <= allowed:
        raise GateError(
            f"{path} in llama.cpp has {ratio:.3f} times the checkpoint's perplexity, where {allowed} is allowed.",
            "Quantise to more bits, or raise perplexity_bar." if recipe.quantise else "Please report it with the recipe.",
        )


def _measured(expected: torch.Tensor, found: torch.Tensor, comparison: LogitDifference) -> dict[str, Any]:
    """What is recorded of a rounded file, and not judged."""
    agreed = int((expected.argmax(-1) == found.argmax(-1)).sum())
    close = {"difference": comparison.difference, "kl_divergence": comparison.kl_divergence}
    return close | {"argmax agreed": agreed, "argmax compared": comparison.tokens_compared}


def _through_transformers(source: Checkpoint, form: GgufForm, precision: str, path: Path, options: RunOptions) -> LogitDifference:
    """One model in memory at a time; the checkpoint's matrices are rounded as the file's are, so that the bar stays that of fp32."""
    ids = gate_tokens(source.geometry.vocab, rows=2, length=min(48, context_length(form, Events()) // 2))
    model = load_model(source.folder, dtype=torch.float32, trust_remote_code=options.trust_remote_code)
    kept_as = {entry.source: entry.precision for entry in entries(source, form, precision)}
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if name in kept_as:
                parameter.copy_(parameter.to(DTYPES[kept_as[name]]).float())
        expected = model(input_ids=ids, use_cache=False).logits
        del model
        return compare_logits(expected, open_with_transformers(path)(input_ids=ids, use_cache=False).logits)


def _same_tokens(tokenizer: PreTrainedTokenizerBase, found: list[int]) -> None:
    expected = tokenizer(SENTENCE)["input_ids"]
    if found != expected:
        at = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
        raise GateError(
            f"llama.cpp splits a text into other tokens than the checkpoint's tokenizer, first at token {at}: "
            f"{found[at : at + 3]} instead of {expected[at : at + 3]}.",
            "Please report it with the tokenizer.",
        )


@torch.inference_mode()
def _greedy(model: PreTrainedModel, prompt: list[int], said: list[int], bar: float) -> dict[str, int]:
    """llama.cpp's own greedy text, judged by what torch would have said after each of its tokens; close calls agree."""
    text = torch.tensor([prompt + said])
    verdicts = model(input_ids=text[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :].float()
    gap = verdicts.max(-1).values - verdicts.gather(-1, torch.tensor(said)[:, None])[:, 0]
    return {"agreed": int((gap < 2 * bar).sum()), "compared": len(said)}


def _windows(tokenizer: PreTrainedTokenizerBase, vocabulary: int, length: int) -> torch.Tensor:
    """The start of the built-in text, shape (windows, length)."""
    text = load_text(TextSource(), "evaluation")[: 16 * WINDOWS * WINDOW]
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    assert ids.max() < vocabulary, "writing the tokenizer has checked this"
    return ids[: WINDOWS * length].view(WINDOWS, length)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
