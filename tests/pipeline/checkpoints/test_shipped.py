"""The modelling files that ship: every way to generate, saving, and a process that has never heard of Trimline."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, StaticCache

from pipeline.architecture.families import FAMILIES
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.modelling import shipped_files
from pipeline.live.loading import load_model
from tests.pipeline.rebuild.cases import absent_parts, anything, rebuilt_tiny
from tests.tiny import TINY_FAMILIES, tiny_model

FOLDERS = [*[(family, Profile.FREE) for family in TINY_FAMILIES], *[(family, Profile.DECILM) for family in ("llama", "qwen2")]]
NEW = 12

FRESH = """
import json, sys, torch
sys.modules["trimline"] = sys.modules["pipeline"] = None  # importing either would fail
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokens = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("Hello, world", return_tensors="pt").input_ids
with torch.inference_mode():
    logits = model(tokens).logits
    text = model.generate(tokens, max_new_tokens=4, do_sample=False)
entry = config.block_configs[0]
print(json.dumps([type(model).__name__, logits.sum().item(), text.shape[1] - tokens.shape[1], entry.ffn.no_op, entry["attention"]["no_op"]]))
"""


def folder_for(tmp: Path, family: str, profile: Profile) -> Path:
    return rebuilt_tiny(tmp, family, anything if profile is Profile.FREE else absent_parts, profile)


def generate(model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor, **options: object) -> torch.Tensor:
    settings = GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=2, **options)
    return model.generate(tokens, attention_mask=mask, generation_config=settings)[:, tokens.shape[1] :]  # type: ignore[operator]


@pytest.mark.parametrize(("family", "profile"), FOLDERS)
def test_generate_is_the_same_with_every_cache(tmp_path: Path, family: str, profile: Profile) -> None:
    model = load_model(folder_for(tmp_path, family, profile))
    long, short = torch.arange(10, 22), torch.arange(40, 45)
    padded = torch.cat((torch.zeros(7, dtype=torch.long), short))
    tokens, mask = torch.stack((long, padded)), torch.ones(2, 12, dtype=torch.long)
    mask[1, :7] = 0
    dynamic = generate(model, tokens, mask)
    assert dynamic.shape == (2, NEW)
    assert torch.equal(generate(model, tokens, mask, use_cache=False), dynamic)
    assert torch.equal(generate(model, tokens, mask, cache_implementation="static", disable_compile=True), dynamic)
    alone = generate(model, short[None], torch.ones(1, 5, dtype=torch.long))
    assert torch.equal(alone[0], dynamic[1])
    static = StaticCache(config=model.config, max_cache_len=32)
    with torch.inference_mode():
        for start in range(0, 12, 4):
            part = model(long[None, start : start + 4], past_key_values=static, use_cache=True).logits
        whole = model(long[None], use_cache=False).logits
    assert (part - whole[:, 8:]).abs().max() < 1e-4


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["qwen3", "phi3"])
def test_attention_implementations_agree(tmp_path: Path, family: str, implementation: str) -> None:
    model = load_model(folder_for(tmp_path, family, Profile.FREE))
    tokens = torch.arange(30)[None]
    with torch.inference_mode():
        before = model(tokens).logits
        model.set_attn_implementation(implementation)
        assert model.model.layers[2].self_attn.config._attn_implementation == implementation
        assert (model(tokens).logits - before).abs().max() < 1e-4
        assert torch.equal(copy.deepcopy(model)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("family", "profile"), [("opt", Profile.FREE), ("phi3", Profile.FREE), ("llama", Profile.DECILM), ("qwen2", Profile.DECILM)]
)
def test_save_pretrained_round_trip(tmp_path: Path, family: str, profile: Profile) -> None:
    folder = folder_for(tmp_path, family, profile)
    model = load_model(folder)
    again = tmp_path / "again"
    model.save_pretrained(again)
    before, after = Checkpoint(folder), Checkpoint(again)
    assert {path.name: path.read_bytes() for path in again.glob("*.py")} == {path.name: path.read_bytes() for path in folder.glob("*.py")}
    assert after.config["block_configs"] == before.config["block_configs"]
    assert after.config["auto_map"] == before.config["auto_map"]
    assert after.geometry == before.geometry
    assert all(torch.equal(tensor, before.tensor(name)) for name, tensor in after.tensors())
    tokens = torch.arange(24)[None]
    with torch.inference_mode():
        assert torch.equal(load_model(again)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(("family", "profile"), [("llama", Profile.DECILM), ("opt", Profile.FREE)])
def test_loads_in_a_fresh_process_without_trimline(tmp_path: Path, family: str, profile: Profile) -> None:
    folder = folder_for(tmp_path, family, profile)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, total, new, no_ffn, no_attention = json.loads(done.stdout.strip().splitlines()[-1])
    assert name == ("DeciLMForCausalLM" if profile is Profile.DECILM else "TrimlineOPTForCausalLM")
    assert 1 <= new <= 4  # it may stop at the end-of-sequence token
    assert no_ffn is False
    assert no_attention is (profile is Profile.FREE)
    tokens = torch.tensor([[49, 78, 85, 85, 88, 21, 9, 96, 88, 91, 85, 77]])
    with torch.inference_mode():
        assert load_model(folder)(tokens).logits.sum().item() == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_files_are_python_that_names_no_other_family(family: str) -> None:
    files = shipped_files(FAMILIES[family], Profile.FREE)
    assert set(files) == {"configuration_trimline.py", "modeling_trimline.py"}
    for name, text in files.items():
        compile(text, name, "exec")
        others = {other.class_prefix for other in FAMILIES.values()} - {FAMILIES[family].class_prefix}
        assert not any(f"{other}ForCausalLM" in text or f"{other}Config" in text for other in others)
    assert shipped_files(FAMILIES[family], Profile.UNIFORM) == {}


def test_uniform_folders_ship_no_code(tmp_path: Path) -> None:
    out = rebuilt_tiny(tmp_path, "llama", lambda choice: choice.blocks.remove(2), Profile.UNIFORM)
    assert not list(out.glob("*.py"))
    assert "auto_map" not in Checkpoint(out).config


def test_rebuilding_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folders.append(folder_for(tmp_path / name, "qwen2", Profile.DECILM))
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second


def test_tiny_model_is_seeded(tmp_path: Path) -> None:
    one, two = (Checkpoint(tiny_model("llama", tmp_path / name)) for name in ("one", "two"))
    assert all(torch.equal(tensor, two.tensor(name)) for name, tensor in one.tensors())
