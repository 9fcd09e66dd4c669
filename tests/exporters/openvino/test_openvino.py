"""The OpenVINO export: what it writes of blocks that differ, in each precision, what it refuses, and that the gate ran everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.timing.subject import Subject
from exporters.openvino import runtime
from exporters.openvino.files import DETOKENIZER, MODEL, TOKENIZER, WEIGHTS
from exporters.openvino.stage import check_packages, export_openvino
from exporters.recipe import ExportSlice
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from tests.exporters.models import KV_GROUPS, OPTIONS, stock, uneven
from tests.tiny import TINY_TYPES, tiny_model

INSTALLED = pytest.mark.skipif(
    not all(map(runtime.has, ("openvino", "openvino_genai", "openvino_tokenizers", "nncf"))), reason="trimline[openvino] is not installed"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven("llama", tmp_path_factory.mktemp("uneven"))


def exported(checkpoint: Path, out: Path, **recipe: Any) -> dict[str, Any]:
    out.mkdir()
    export_openvino(checkpoint, ExportSlice(format="openvino", **recipe), OPTIONS, out, Events())
    return dict(read_json(out / "gate.json"))


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    exported(checkpoint, out)
    return out


@INSTALLED
def test_blocks_that_differ_have_states_of_their_own_sizes(plain: Path) -> None:
    import openvino as ov

    model = ov.Core().read_model(str(plain / MODEL))
    heads = [node.get_output_partial_shape(0)[1].get_length() for node in model.get_ops() if node.get_type_name() == "ReadValue"]
    assert sorted(heads) == sorted(groups for groups in KV_GROUPS if groups for _ in range(2))
    assert {name for value in model.inputs for name in value.get_names()} == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    assert {TOKENIZER, DETOKENIZER, WEIGHTS, "config.json", "generation_config.json"} <= {path.name for path in plain.iterdir()}


@INSTALLED
def test_the_gate_says_which_arithmetic_the_device_chose_and_ran_openvino_genai(plain: Path) -> None:
    gate = read_json(plain / "gate.json")
    assert set(gate["arithmetic"]) == {"activations", "cache", "rounded together", "mode"}
    assert gate["arithmetic"]["activations"] in ("f32", "bf16", "f16")
    assert gate["genai"]["PA"]["agreed"] == gate["genai"]["SDPA"]["agreed"] == gate["genai"]["PA"]["compared"] > 0
    names = {
        "with cache, token by token",
        "with cache, in chunks",
        "rows of unequal length",
        "rows that change places",
        "up to position 255",
    }
    assert names <= set(gate["checks"])
    assert all(gate["checks"][name]["passed"] for name in names)
    assert gate["weights"]["bits"] == {"32": gate["weights"]["compared"]}


@INSTALLED
def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    exported(checkpoint, tmp_path / "again")
    for name in (MODEL, WEIGHTS, TOKENIZER, DETOKENIZER):
        assert (tmp_path / "again" / name).read_bytes() == (plain / name).read_bytes(), name


@INSTALLED
def test_int4_keeps_head_and_tokens_in_8_bits_and_takes_a_group_that_fits(checkpoint: Path, tmp_path: Path) -> None:
    gate = exported(checkpoint, tmp_path / "out", precision="int4", group_size=128, perplexity_bar=2.0)
    assert gate["weights"]["bits"]["4"] > gate["weights"]["bits"]["8"] >= 2
    assert gate["perplexity"]["passed"]


@INSTALLED
@pytest.mark.parametrize(("precision", "bits"), [("int8", "8"), ("fp16", "16")])
def test_fewer_bits_are_gated_number_by_number(checkpoint: Path, tmp_path: Path, precision: str, bits: str) -> None:
    gate = exported(checkpoint, tmp_path / "out", precision=precision)
    assert gate["weights"]["bits"] == {bits: gate["weights"]["compared"]}
    assert gate["weights"]["passed"]
    assert all(check["passed"] for check in gate["checks"].values())


@INSTALLED
def test_a_rotary_embedding_that_follows_the_text_is_refused_before_any_work(tmp_path: Path) -> None:
    rotary = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = stock("llama", tmp_path, rope_parameters=rotary)
    with pytest.raises(TrimlineError, match="'dynamic' is computed anew by the length"):
        exported(model, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_package_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has", lambda module: module != "nncf")
    with pytest.raises(TrimlineError, match=r"^nncf is not installed\.") as caught:
        check_packages(ExportSlice(format="openvino", precision="int8"))
    assert "trimline[openvino]" in caught.value.remedy


def test_packages_of_different_releases_are_a_clash() -> None:
    assert not runtime.clash({"openvino": "2026.4.1", "openvino-genai": "2026.4.1.0", "nncf": "3.4.0"})
    assert "openvino 2026.4.1 and openvino-genai 2026.3.0.0" in runtime.clash({"openvino": "2026.4.1", "openvino-genai": "2026.3.0.0"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"format": "openvino", "lowering": "fused"}, "'lowering' is of ONNX graphs"),
        ({"format": "openvino", "precision": "bf16"}, "computes in bf16 by itself"),
        ({"group_size": 64}, "'group_size' is of format 'openvino'"),
        ({"format": "openvino", "group_size": 64}, "'group_size' is of precision 'int4'"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ExportSlice(**given)


@INSTALLED
@pytest.mark.parametrize("runtime_name", ["openvino", "openvino_genai"])
def test_a_worker_times_the_folder(plain: Path, runtime_name: Any) -> None:
    from benchmarks.timing.worker import Worker

    worker = Worker()
    worker.load(str(plain), threads=1, runtime=runtime_name)
    for seed in (0, 1):
        found = worker.run(prompt=24, output=5, batch=1, vocab=100, seed=seed)
        assert len(found["gaps"]) == 4
        assert min(found["gaps"]) > 0


@INSTALLED
def test_a_subject_knows_the_cache_that_the_device_chose(plain: Path) -> None:
    subject = Subject.read("openvino", plain, "openvino")
    assert subject.widths.activation == {"u8": 1, "f32": 4}[read_json(plain / "gate.json")["arithmetic"]["cache"]]
    assert subject.lowering == "openvino"
    with pytest.raises(TrimlineError, match="is an export of format openvino, which onnxruntime does not run"):
        Subject.read("openvino", plain)


@INSTALLED
@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_TYPES)
def test_every_type_passes_the_gate(tmp_path: Path, name: str) -> None:
    gate = exported(tiny_model(name, tmp_path / name), tmp_path / "out")
    assert gate["genai"]["run"]
