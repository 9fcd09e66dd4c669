"""Loading: what is trusted, what is refused, and that nothing lands in the user's home."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.live.loading import as_trimline_error, load_model, load_tokenizer
from tests.pipeline.rebuild.cases import anything, rebuilt_tiny
from tests.tiny import tiny_model


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return rebuilt_tiny(tmp_path, "llama", anything, Profile.FREE)


def test_our_own_files_are_trusted_and_run_from_a_private_folder(shipped: Path) -> None:
    model = load_model(shipped)
    assert not model.training
    assert type(model).__name__ == "TrimlineLlamaForCausalLM"
    assert "trimline-modules-" in dynamic_module_utils.HF_MODULES_CACHE
    assert str(Path.home() / ".cache") not in dynamic_module_utils.HF_MODULES_CACHE


def test_an_interrupt_that_ends_as_another_error_is_an_interrupt(tmp_path: Path) -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    with pytest.raises(KeyboardInterrupt), as_trimline_error(tmp_path):
        interrupted()
    with pytest.raises(TrimlineError, match="cannot open .*: something else"), as_trimline_error(tmp_path):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (ImportError("FlashAttention2 has been toggled on, but it cannot be used"), "Delete attn_implementation from config.json"),
        (ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes"), "full precision"),
        (
            RuntimeError("You set `ignore_mismatched_sizes` to `False`, thus raising an error. For details look at the above report!"),
            "another model",
        ),
        (AssertionError("Padding_idx must be within num_embeddings"), "pad_token_id"),
        (ValueError("Couldn't instantiate the backend tokenizer from one of"), "save_pretrained"),
        (KeyError("nonsense"), "Correct what it names"),
    ],
)
def test_what_a_library_says_gets_a_remedy_that_fits(tmp_path: Path, said: Exception, remedy: str) -> None:
    with pytest.raises(TrimlineError) as caught, as_trimline_error(tmp_path):
        raise said
    assert remedy in caught.value.remedy
    assert "above report" not in str(caught.value)
    assert not caught.value.remedy.startswith("Fetch")


def test_a_choice_of_attention_that_is_not_installed_is_named(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "dense", num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "flash_attention_2"}))
    with pytest.raises(TrimlineError, match="FlashAttention2 .* Delete attn_implementation"):
        load_model(folder)


ELSEWHERE = """
import sys
sys.path.append({other!r})
if {imported}: import transformers_modules
from pathlib import Path
from pipeline.live.loading import load_model
print(type(load_model(Path({folder!r}))).__name__)
"""


@pytest.mark.parametrize("imported", [False, True])
def test_another_cache_on_the_search_path_is_not_looked_into(shipped: Path, tmp_path: Path, imported: bool) -> None:
    """A process that another one started has that one's search path, and a program may have loaded code of its own before."""
    (tmp_path / "other" / "transformers_modules").mkdir(parents=True)
    (tmp_path / "other" / "transformers_modules" / "__init__.py").touch()
    script = ELSEWHERE.format(other=str(tmp_path / "other"), imported=imported, folder=str(shipped))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "TrimlineLlamaForCausalLM", done.stderr


def test_a_changed_file_is_refused_and_never_run(shipped: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    file = shipped / "configuration_trimline.py"
    file.write_text(file.read_text() + f"\nopen({str(witness)!r}, 'w').close()\n")
    with pytest.raises(TrimlineError, match="configuration_trimline.py is not the file"):
        load_model(shipped)
    with pytest.raises(TrimlineError, match="configuration_trimline.py is not the file"):
        load_tokenizer(shipped)
    assert not witness.exists()
    load_model(shipped, trust_remote_code=True)
    assert witness.exists()


def test_any_further_python_file_is_refused(shipped: Path) -> None:
    # transformers runs this one without any auto_map naming it.
    (shipped / "custom_generate").mkdir()
    (shipped / "custom_generate" / "generate.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(TrimlineError, match=r"generate\.py is not the file"):
        load_model(shipped)


def test_a_missing_file_and_a_foreign_auto_map_are_refused(shipped: Path, tmp_path: Path) -> None:
    (shipped / "configuration_trimline.py").unlink()
    with pytest.raises(TrimlineError, match="lacks configuration_trimline.py"):
        load_model(shipped)
    foreign = tiny_model("llama", tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "somebody/else--modeling.Model"}}))
    with pytest.raises(TrimlineError, match="modelling code of its own"):
        load_model(foreign)


def test_a_tokenizer_with_code_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "dense")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    with pytest.raises(TrimlineError, match="tokenizer of .* needs Python code"):
        load_tokenizer(folder)


def test_dtype_is_the_checkpoints_own_unless_asked(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "dense")
    checkpoint = Checkpoint(folder)
    write_checkpoint(folder, checkpoint.config | {"dtype": "bfloat16"}, {n: t.bfloat16() for n, t in checkpoint.tensors()})
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, dtype=torch.float32).dtype == torch.float32


def test_failures_are_sentences(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "dense")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    with pytest.raises(TrimlineError, match="another model than its weights"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(TrimlineError, match=r"no tensor model\.layers\.4.* 9 of"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(TrimlineError, match="truncated or corrupt"):
        load_model(folder)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "dense")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(TrimlineError, match="cannot open"):
        load_tokenizer(folder)


def test_nothing_is_printed(shipped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    load_model(shipped)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
