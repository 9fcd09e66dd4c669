"""``trimline verify``: one flipped bit in any file is found and named; shapes and gates are looked at again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import benchmarks.stage
import trimline as api
from deploy.folder import MANIFEST
from deploy.package import sums
from pipeline.artefacts.artefact import RECORD
from pipeline.artefacts.sums import SUMS, read_sums, write_sums
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from tests.end_to_end.scenario import OPTIONS, InProcess, assert_refused, recipe, tiny_inputs, trimline
from trimline.verify.findings import Verification
from trimline.verify.folders import verify_folder
from trimline.verify.parts import unlike_parts


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def output(inputs, tmp_path_factory) -> Path:
    """A whole run; tests leave it as it was."""
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
        api.run(recipe("cfsp-least-squares", inputs) | {"package": {"targets": ["onnxruntime-genai"]}}, folder, options=OPTIONS)
    return folder


def verified(folder: Path, quick: bool = True, **sides: Path) -> Verification:
    return verify_folder(folder, quick=quick, options=OPTIONS, events=Events(), **sides)


def named(folder: Path) -> set[str]:
    return {problem.path for problem in verified(folder).problems}


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    content = path.read_bytes()
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != ".lock")


def test_a_flipped_bit_in_any_file_of_a_run_is_found(output):
    draw, store = random.Random(0), output / "store"
    assert len(files(store)) > 60
    for path in files(store):
        if not path.stat().st_size:
            continue
        with flipped(path, draw.randrange(path.stat().st_size * 8)):
            found = named(output)
        name = f"store/{path.relative_to(store).as_posix()}"
        # In a list of sums the file whose line changed is named.
        place = name.removesuffix(SUMS)
        assert name in found or (path.name == SUMS and any(other.startswith(place) for other in found)), name
    assert named(output) == set()


def test_a_flipped_bit_in_any_file_of_a_package_is_found(output):
    package, draw = output / "package", random.Random(1)
    assert not package.is_symlink()
    assert len(files(package)) > 20
    for path in files(package):
        for _ in range(40 if path.name in (SUMS, "manifest.json") else 1):
            with flipped(path, draw.randrange(path.stat().st_size * 8)):
                found = named(package)
            assert path.relative_to(package).as_posix() in found or (path.name == SUMS and found), path
    assert named(package) == set()


def test_what_is_missing_and_what_is_new_is_named(output, tmp_path):
    copy = Path(shutil.copytree(output, tmp_path / "copy", symlinks=True))
    rebuilt = next((copy / "store").glob("rebuild-*"))
    (rebuilt / "config.json").unlink()
    (rebuilt / "more.txt").write_text("x")
    (copy / "store" / "mine").mkdir()
    (copy / "notes.txt").write_text("x")
    (copy / "report.html").unlink()
    (copy / "report.html").symlink_to("nowhere")
    (copy / "package" / "model" / "config.json").unlink()
    whole = {str(problem) for problem in verified(copy).problems}
    assert whole == {
        f"store/{rebuilt.name}/config.json: missing",
        f"store/{rebuilt.name}/more.txt: not in {SUMS}",
        "store/mine: no stage left it there",
        "notes.txt: the run left no such file there",
        "report.html: the link leads to nothing in the store",
        "package/model/config.json: missing",
    }
    (rebuilt / SUMS).unlink()
    assert f"store/{rebuilt.name}/{SUMS}" in named(copy)


def test_a_package_of_another_run_is_named(output, tmp_path):
    copy = Path(shutil.copytree(output, tmp_path / "copy", symlinks=True))
    manifest = copy / "package" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format"', ' "format"'))
    assert "package: it is no package of this store" in {str(problem) for problem in verified(copy).problems}


def test_a_run_is_gated_again(output):
    found = verified(output, quick=False)
    assert found.problems == []
    assert len([line for line in found.passed if line.endswith("computes what the dense model with the plan computes")]) == 1
    assert len([line for line in found.passed if line.endswith("computes what the checkpoint computes")]) == 2
    assert any(line.endswith("the plan is read") for line in found.passed)


def test_a_package_is_gated_again(output):
    found = verified(output / "package", quick=False)
    assert found.problems == []
    assert "package/onnx: computes what the checkpoint computes" in found.passed
    assert [line for line in found.left_out if line.startswith("package/model: its gate against the dense model")]


def test_a_package_whose_sums_were_made_again_is_held_against_its_artefacts(output, tmp_path):
    store = output / "store"
    made = next(store.glob("package-*"))
    inputs, package = read_json(made / RECORD)["depends"]["inputs"], Path(shutil.copytree(made / "package", tmp_path / "package"))
    assert list(unlike_parts(store, package, "p", inputs)) == []
    write_json(package / "model" / "generation_config.json", {"eos_token_id": 7})
    (package / "model" / "tokenizer.json").unlink()
    (package / "onnx" / "genai_config.json").write_text("{}")
    (package / "model" / "additional_chat_templates").mkdir()
    (package / "model" / "additional_chat_templates" / "x.jinja").write_text("x")
    found = {problem.path: problem.what for problem in unlike_parts(store, package, "p", inputs)}
    origin = next(store.glob("rebuild-*")).name
    assert found == {
        "p/model/generation_config.json": f"it is not the file of {origin}",
        "p/model/tokenizer.json": f"missing, and {origin} has it",
        "p/onnx/genai_config.json": f"it is not the file of export-{inputs['export pruned'][:12]}",
        "p/model/additional_chat_templates/x.jinja": f"{origin} has no such file",
    }


def test_a_package_is_gated_against_the_dense_model_where_that_is_named(output, inputs, tmp_path):
    package = Path(shutil.copytree(output / "package", tmp_path / "package"))
    shutil.rmtree(package / "onnx")  # whose gates other tests run
    sides = {"against": inputs / "model", "plan": next((output / "store").glob("prune-*"))}

    def summed_again() -> Verification:
        write_json(package / MANIFEST, read_json(package / MANIFEST) | {"files": sums(package, Events())})
        write_sums(package)
        return verified(package, quick=False, **sides)

    assert "package/model: computes what the dense model with the plan computes" in summed_again().passed
    write_json(package / "model" / "config.json", read_json(package / "model" / "config.json") | {"eos_token_id": 7})
    assert ["eos_token_id is 7" in problem.what for problem in summed_again().problems] == [True]


@pytest.fixture
def smaller(output, tmp_path) -> Path:
    """The rebuilt checkpoint, as `trimline rebuild` would have written it."""
    folder = Path(shutil.copytree(next((output / "store").glob("rebuild-*")), tmp_path / "smaller"))
    for name in (RECORD, "run.json"):
        (folder / name).unlink()
    write_sums(folder)
    return folder


def test_weights_that_were_changed_with_their_sums_fail_their_gate(smaller, inputs, output):
    plan = next((output / "store").glob("prune-*"))
    assert verified(smaller, quick=False, against=inputs / "model", plan=plan).problems == []
    from pipeline.tensors.tensorfile import save_tensors

    checkpoint = Checkpoint(smaller)
    tensors = dict(checkpoint.tensors())
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    del checkpoint
    (smaller / "model.safetensors").unlink()
    save_tensors(smaller / "model.safetensors", tensors)
    write_sums(smaller)
    assert verified(smaller, quick=False).problems == []  # nobody but the gate can know
    found = verified(smaller, quick=False, against=inputs / "model", plan=plan)
    assert ["does not compute what the dense model with the plan" in problem.what for problem in found.problems] == [True]


def test_shapes_that_were_changed_with_their_sums_are_found(smaller):
    config = read_json(smaller / "config.json")
    write_json(smaller / "config.json", config | {"vocab_size": config["vocab_size"] + 1})
    write_sums(smaller)
    found = verified(smaller, quick=False)
    assert ["has shape" in problem.what for problem in found.problems] == [True]


@pytest.mark.parametrize("values", [{"precision": "fp99"}, {"logits": []}])
def test_an_export_that_says_it_is_what_does_not_exist(output, inputs, tmp_path, values):
    folder = Path(shutil.copytree(next((output / "store").glob("export-*")), tmp_path / "onnx"))
    write_json(folder / "export.json", read_json(folder / "export.json") | values)
    write_sums(folder)
    problems = verified(folder, quick=False, against=inputs / "model").problems
    assert ["export.json has a wrong value at" in problem.what for problem in problems] == [True]


def test_an_export_alone(output, inputs, tmp_path):
    folder = next(path for path in (output / "store").glob("export-*") if "source" in read_json(path / RECORD)["depends"]["inputs"])
    alone = verified(folder, quick=False)
    assert alone.problems == []
    assert any("name that with --against (it passed when the folder was written)" in line for line in alone.left_out)
    assert f"{folder.name}: computes what the checkpoint computes" in verified(folder, quick=False, against=inputs / "model").passed


def test_a_gguf_is_compared_number_by_number(inputs, tmp_path):
    from exporters.gguf.recipe import GgufSlice

    api.export_gguf(inputs / "model", tmp_path / "gguf", recipe=GgufSlice(precision="fp32"), options=OPTIONS)
    found = verified(tmp_path / "gguf", quick=False, against=inputs / "model")
    assert found.problems == []
    assert "gguf: holds what the checkpoint holds" in found.passed
    with flipped(tmp_path / "gguf" / "model.gguf", 8 * ((tmp_path / "gguf" / "model.gguf").stat().st_size - 5)):
        assert named(tmp_path / "gguf") == {"model.gguf"}
        write_sums(tmp_path / "gguf")
        assert "is not the checkpoint's" in str(verified(tmp_path / "gguf", quick=False, against=inputs / "model").problems[0])


@pytest.mark.parametrize("line", ["0" * 64 + "  ../secret\n", "0" * 64 + "  /etc/hostname\n"])
def test_a_list_of_sums_cannot_make_verify_read_outside(smaller, line):
    (smaller / SUMS).write_text((smaller / SUMS).read_text() + line)
    assert [problem.what for problem in verified(smaller).problems] == ["the list names a file outside the folder"]


def test_sums_are_those_of_sha256sum(smaller):
    import subprocess

    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=smaller, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert set(read_sums(smaller)) == {path.name for path in smaller.iterdir()} - {SUMS}


def test_nothing_to_verify(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unsummed").mkdir()
    (tmp_path / "unsummed" / "config.json").write_text("{}")
    said = {"none": "no folder", "file": "is a file", "empty": "is empty", "unsummed": "carries neither"}
    for name, words in said.items():
        assert_refused(trimline("verify", tmp_path / name), words, str(tmp_path / name), "Give a package")


def test_exit_codes(output, inputs, tmp_path):
    called = trimline("verify", output / "package", "--quick", "--json")
    assert (called.code, called.answer["problems"]) == (0, [])
    package = Path(shutil.copytree(output / "package", tmp_path / "package"))
    with flipped(package / "plan.json", 77):
        called = trimline("verify", package, "--json")
    assert (called.code, called.answer["problems"]) == (1, ["plan.json: its content changed"])
    assert_refused(trimline("verify", inputs / "model"), "neither manifest.json nor SHA256SUMS")
    assert_refused(trimline("verify", tmp_path / "nowhere"), "nowhere")
    assert json.loads(json.dumps(called.answer))["left_out"]
