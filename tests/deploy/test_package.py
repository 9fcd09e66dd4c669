"""The folder that a user ships: complete, summed, reproducible, and its card's snippets run as printed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml

from deploy import placing
from deploy.package import MEASURED, package
from deploy.recipe import PackageSlice
from deploy.verify import verify
from pipeline.artefacts.artefact import RECORD
from pipeline.artefacts.sums import write_sums
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.trimline.reporting.sample_report import sample
from trimline.inspect import inspect_folder
from trimline.reporting import write_report

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai, whose snippet the card prints, is not installed")


@pytest.fixture(scope="module")
def shipped(parts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shipped")
    package(parts, PackageSlice(licence="apache-2.0"), out, Events())
    return out


@pytest.fixture
def copy(shipped, tmp_path) -> Path:
    """A package that a test may damage: hard links would damage the parts as well."""
    return Path(shutil.copytree(shipped, tmp_path / "copy"))


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def ran(snippet: str, folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder.parent / "modules")}
    done = subprocess.run([sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_everything_a_user_needs_is_there(shipped):
    names = {path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()}
    assert {
        "README.md",
        "manifest.json",
        "SHA256SUMS",
        "sbom.cdx.json",
        "run.json",
        "recipe.yaml",
        "plan.json",
        "report.html",
        "report.md",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/generation_config.json",
        "model/LICENSE",
        "onnx/model.onnx",
        "onnx/model.onnx.data",
        "onnx/genai_config.json",
        "onnx/tokenizer.json",
    } <= names
    assert any(name.startswith("model/modeling") and name.endswith(".py") for name in names)
    assert not any(Path(name).name in {RECORD, "gate.json"} for name in names)


def test_the_manifest_sums_every_other_file(shipped):
    listed = json.loads((shipped / "manifest.json").read_text())
    files = [path for path in shipped.rglob("*") if path.is_file() and path.name not in ("manifest.json", "SHA256SUMS")]
    assert set(listed["files"]) == {path.relative_to(shipped).as_posix() for path in files}
    for path in files:
        entry = listed["files"][path.relative_to(shipped).as_posix()]
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["bytes"] == path.stat().st_size
    assert {name for name, entry in listed["files"].items() if entry["measured"]} == set(MEASURED)
    assert listed["settings"]["threads"] == 1
    assert listed["made_with"]["transformers"]
    assert verify(shipped) == []


def test_packaging_again_changes_only_what_was_measured(parts, shipped, tmp_path):
    slower = dataclasses.replace(sample(), workloads=sample().workloads[:1], environment={"Load": "other"}, stages=())
    (tmp_path / "report").mkdir()
    write_report(slower, tmp_path / "report")
    again = tmp_path / "again"
    again.mkdir()
    package(dataclasses.replace(parts, report=tmp_path / "report"), PackageSlice(licence="apache-2.0"), again, Events())
    sums = [json.loads((folder / "manifest.json").read_text())["files"] for folder in (shipped, again)]
    assert {name for name in sums[0] if sums[0][name] != sums[1][name]} == set(MEASURED)


def test_the_checkpoint_costs_no_second_copy(parts, shipped):
    assert (shipped / "model" / "model.safetensors").samefile(parts.model / "model.safetensors")
    assert not (shipped / "model" / "config.json").samefile(parts.model / "config.json")  # people edit these


def test_onnx_opens_the_shipped_graph_with_its_weights(shipped):
    # It refuses weights with more than one hard link.
    model = onnx.load(shipped / "onnx" / "model.onnx")
    assert all(tensor.raw_data for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    assert [pattern for pattern in inspect_folder(shipped / "onnx").patterns if "down_proj" in pattern.name]
    assert inspect_folder(shipped).blocks[1].ffn == 32


def test_files_are_copied_where_links_are_not_possible(parts, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(placing.os, "link", refuse)
    package(parts, PackageSlice(), tmp_path, Events())
    assert verify(tmp_path) == []
    assert not (tmp_path / "model" / "model.safetensors").samefile(parts.model / "model.safetensors")


def test_the_transformers_snippet_runs_as_printed(shipped):
    printed = ran(snippets(shipped)[0], shipped)
    assert "The capital of France is" in printed.replace("<s>", "")


def test_the_genai_snippet_runs_as_printed(shipped):
    assert "The capital of France is" in ran(snippets(shipped)[1], shipped)


def test_the_card(shipped):
    text = (shipped / "README.md").read_text(encoding="utf-8")
    fields = yaml.safe_load(text.split("---")[1])
    assert fields["license"] == "apache-2.0"
    assert fields["base_model"] == "someone/some-model"
    assert fields["model-index"][0]["results"][0]["metrics"] == [{"type": "perplexity", "value": 54.02}]
    for sentence in (
        "- by hand on ffn",
        "| FFN channels | 50.0 % |",
        "64/2, 32/2, 96/2, 16/2.",
        "| Parameters | 134,515,008 | 94,701,888 |",
        "| Perplexity | 25.94 ± 0.41 | 54.02 ± 0.97 |",
        "trimline run r.yaml --output runs/run",
        "trust_remote_code=True",
        "under its licence: apache-2.0",
        "`model/LICENSE`",
        "Another program used a third of the processor",
    ):
        assert sentence in text, sentence
    assert "\n\n\n" not in text
    for measured in (" ms", "tokens/s"):
        assert measured not in text


def test_the_record_of_the_run_keeps_raw_samples(shipped):
    record = json.loads((shipped / "run.json").read_text())
    assert record["workloads"][0]["dense_samples"] == list(sample().workloads[0].dense_samples)
    assert record["packaged"].endswith("+00:00")


def test_without_onnx(parts, tmp_path):
    package(parts, PackageSlice(onnx=False), tmp_path, Events())
    assert not (tmp_path / "onnx").exists()
    assert len(snippets(tmp_path)) == 1
    assert "which the recipe did not name" in (tmp_path / "README.md").read_text()


def test_markup_in_names_stays_text(parts, tmp_path):
    evil = "<script>alert(1)</script> | [a](javascript:b)\n# heading"
    (tmp_path / "report").mkdir()
    write_report(dataclasses.replace(sample(), title=evil, model_source=evil, evaluation=evil, warnings=(evil,)), tmp_path / "report")
    out = tmp_path / "out"
    out.mkdir()
    package(dataclasses.replace(parts, report=tmp_path / "report"), PackageSlice(licence="x: y\n---"), out, Events())
    header, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", (out / "README.md").read_text(), re.DOTALL).groups()
    assert yaml.safe_load(header)["license"] == "x: y\n---"
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    assert "\n# heading" not in body


def test_a_missing_part_is_an_error_in_a_sentence(parts, tmp_path):
    (tmp_path / "report").mkdir()
    shutil.copy(parts.report / "report.json", tmp_path / "report")
    (tmp_path / "out").mkdir()
    with pytest.raises(TrimlineError, match="could not be written"):
        package(dataclasses.replace(parts, report=tmp_path / "report"), PackageSlice(), tmp_path / "out", Events())


def test_verify_finds_every_kind_of_damage(copy):
    (copy / "model" / "config.json").write_text("{}")
    weights = copy / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (copy / "plan.json").unlink()
    (copy / "added.bin").write_bytes(b"x")
    size = json.loads((copy / "manifest.json").read_text())["files"]["model/config.json"]["bytes"]
    assert {problem.path: problem.what for problem in verify(copy)} == {
        "model/config.json": f"2 bytes instead of {size}",
        "model/model.safetensors": "its content changed",
        "plan.json": "missing",
        "added.bin": "not in the manifest",
    }


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret", "a\\b"])
def test_a_manifest_cannot_make_verify_read_outside(copy, name):
    (copy.parent / "secret").write_text("s")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(b"s").hexdigest(), "bytes": 1}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    write_sums(copy)
    assert [str(problem) for problem in verify(copy)] == [f"{name}: the list names a file outside the folder"]


def test_a_link_that_leads_outside_is_a_problem(copy):
    (copy.parent / "secret").write_text("s")
    (copy / "plan.json").unlink()
    (copy / "plan.json").symlink_to(copy.parent / "secret")
    assert [problem.what for problem in verify(copy)] == ["leads outside the folder"]


@pytest.mark.parametrize("text", [None, "[]", '{"format": 99, "files": {}}', '{"format": 1, "files": []}'])
def test_no_manifest(tmp_path, text):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(TrimlineError, match=r"manifest\.json"):
        verify(tmp_path)
