"""``decilm`` folders in vLLM, natively, by its own classes and by a package's start.sh: greedy tokens and prompt log-probabilities are the checkpoint's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from deploy.verify import verify
from pipeline.architecture.profile import Profile
from pipeline.live.loading import load_model, load_tokenizer
from tests.servers.models import pruned
from tests.servers.packages import answering, packaged, says_what_the_checkpoint_says
from tests.servers.places import environment

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]
PROMPTS = ("The capital of France is", "Once upon a time, in a village by the sea,")
TOKENS = 16
MADE = ".made-0.32.0"
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
BAR = 1e-3  # nats; 2e-4 was seen


def test_vllm_computes_what_the_checkpoint_does(smollm2: Path, tmp_path: Path) -> None:
    python = environment("vllm", MADE) / "bin/python"
    checkpoint = pruned(smollm2, tmp_path, Profile.DECILM)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint, dtype=torch.float32)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    found = _asked(python, {"model": str(checkpoint), "trust": True, "prompts": prompts, "tokens": TOKENS}, tmp_path)
    assert found["architectures"] == ["DeciLMForCausalLM"]
    for ids, answer in zip(prompts, found["answers"], strict=True):
        tokens, logprobs = _reference(model, ids)
        assert answer["tokens"] == tokens
        assert answer["logprobs"] == pytest.approx(logprobs, abs=BAR)


def test_the_packages_own_script_serves_the_checkpoint(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = environment("vllm", MADE) / "bin"
    checkpoint = pruned(smollm2, tmp_path, Profile.DECILM)
    package = packaged(tmp_path, checkpoint, "vllm")
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    flags = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager"]
    with answering(package, "vllm", programs, tmp_path / "server.log", *flags) as address:
        says_what_the_checkpoint_says(address, checkpoint, PROMPTS, TOKENS)
    assert verify(package) == []


def _asked(python: Path, job: dict, folder: Path) -> dict:
    answer = folder / "answer.json"
    runner = Path(__file__).with_name("vllm_runner.py")
    told = json.dumps(job | {"answer": str(answer)})
    done = subprocess.run([str(python), "-I", str(runner)], input=told, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answer.read_text())


@torch.inference_mode()
def _reference(model: torch.nn.Module, ids: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens, and log-probabilities of the prompt's own."""
    inputs = torch.tensor([ids])
    logprobs = model(input_ids=inputs, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    own = logprobs.gather(-1, inputs[0, 1:, None])[:, 0].tolist()
    said = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return said[0, len(ids) :].tolist(), own
