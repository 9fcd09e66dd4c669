"""The folders for llama.cpp and vLLM: what is in them, and whom they refuse. Tests of tests/servers start the servers."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

import gguf
import pytest
import yaml

from deploy.package import PackageParts, package
from deploy.recipe import PackageSlice
from deploy.targets import ModelToServe, check_targets
from exporters.gguf.child import llama_cpp_python
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.exporters.models import uneven
from tests.tiny import tiny_model

RECIPE = PackageSlice(targets=("llama.cpp", "vllm", "onnxruntime-genai"), served_name="tiny")


@pytest.fixture(scope="module")
def served(parts: PackageParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "package"
    folder.mkdir()
    package(parts, RECIPE, folder, Events())
    return folder / "serve"


def test_the_gguf_holds_the_packages_model(served: Path) -> None:
    reader = gguf.GGUFReader(served / "llama.cpp" / "model.gguf")
    field = reader.get_field("deci.feed_forward_length")
    assert field is not None
    assert field.contents() == [64, 32, 96, 16]
    assert {path.name for path in (served / "llama.cpp").iterdir()} == {"model.gguf", "Dockerfile", "compose.yaml", "README.md", "start.sh"}


def test_the_readme_says_whether_llama_cpp_ran_the_file(
    parts: PackageParts, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = len(gguf.GGUFReader(served / "llama.cpp" / "model.gguf").tensors)
    text = (served / "llama.cpp" / "README.md").read_text()
    assert f"its {tensors} tensors were read back" in text
    assert ("did **not** run it" in text) is (llama_cpp_python() is None)
    gate = {"run": True, "llama-cpp-python": "9.8.7"}  # the server's own environment runs it in tests/servers
    monkeypatch.setattr("exporters.gguf.stage.gate_llama_cpp", lambda *_: gate)
    package(parts, RECIPE, tmp_path, Events())
    text = (tmp_path / "serve/llama.cpp/README.md").read_text()
    assert "llama.cpp itself ran it then (llama-cpp-python 9.8.7)" in text
    assert "did **not** run it" not in text


@pytest.mark.parametrize(("target", "program"), [("llama.cpp", "python3"), ("vllm", "vllm"), ("onnxruntime-genai", "trimline")])
def test_start_scripts_run_from_anywhere(served: Path, tmp_path: Path, target: str, program: str) -> None:
    """A stand-in for the server prints where it was started, and with what."""
    stand_in = tmp_path / program
    stand_in.write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "$word"; done\n')
    stand_in.chmod(0o755)
    command = ["sh", str(served / target / "start.sh"), "--more", "a b"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    place, *words = done.stdout.splitlines()
    assert Path(place) == served / target
    assert words[-2:] == ["--more", "a b"]
    assert words[words.index("--port") + 1] == "8000"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    model = words[words.index("--model" if target == "llama.cpp" else "serve") + 1]
    assert (Path(place) / model).exists()
    assert "tiny" in words  # what clients call it, not its folder's name
    assert ("--trust-remote-code" in words) is (target == "vllm")  # these blocks differ


def test_compose_files_serve_that_model_to_this_machine_only(served: Path) -> None:
    for target, mounted in (("llama.cpp", "/model/model.gguf"), ("vllm", "/package/model")):
        service = yaml.safe_load((served / target / "compose.yaml").read_text())["services"]["tiny"]
        assert mounted in service["command"]
        assert "tiny" in service["command"]
        assert service["ports"] == ["127.0.0.1:8000:8000"]


def test_llama_cpp_keeps_room_for_what_the_file_promises(parts: PackageParts, tmp_path: Path) -> None:
    shipped = tmp_path / "package"
    shipped.mkdir()
    windowed = dataclasses.replace(parts, model=tiny_model("mistral", tmp_path / "model", sliding_window=40))
    package(windowed, PackageSlice(targets=("llama.cpp",), onnx=False), shipped, Events())
    folder = shipped / "serve" / "llama.cpp"
    promised = gguf.GGUFReader(folder / "model.gguf").get_field("llama.context_length")
    assert promised is not None
    assert promised.contents() == 40
    assert "--n_ctx 40 " in (folder / "start.sh").read_text()
    command = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["model"]["command"]
    assert command[command.index("--n_ctx") + 1] == "40"


def test_commands_of_the_readmes_name_the_model(served: Path) -> None:
    for target in ("llama.cpp", "vllm"):
        text = (served / target / "README.md").read_text()
        assert shlex.split(next(line for line in text.splitlines() if line.startswith("sh ")))[1] == "start.sh"
        assert '"model": "tiny"' in text


def test_stock_models_need_no_trust_in_vllm(parts: PackageParts, tmp_path: Path) -> None:
    stock = dataclasses.replace(parts, model=tiny_model("llama", tmp_path / "model"))
    folder = tmp_path / "package"
    folder.mkdir()
    package(stock, PackageSlice(targets=("vllm",)), folder, Events())
    assert "--trust-remote-code" not in (folder / "serve/vllm/start.sh").read_text()
    assert "--trust-remote-code" not in (folder / "serve/vllm/compose.yaml").read_text()


def test_whom_they_refuse(tmp_path: Path) -> None:
    free = Checkpoint(uneven("llama", tmp_path))
    candidate = ModelToServe.of(free, Profile.FREE)
    check_targets(PackageSlice(targets=("llama.cpp",)), candidate)
    with pytest.raises(TrimlineError, match="vllm cannot serve this model: it has no class with free sizes per block"):
        check_targets(PackageSlice(targets=("vllm",)), candidate)
    mute = dataclasses.replace(candidate, files=frozenset({"config.json"}))
    with pytest.raises(TrimlineError, match=r"it takes text, and the model has no tokenizer\.json"):
        check_targets(PackageSlice(targets=("llama.cpp",)), mute)
