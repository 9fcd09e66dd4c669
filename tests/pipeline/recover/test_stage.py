"""The stage on tiny models: the folder's form, bytes, interruptions, zeros, dtypes, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.profile import Profile
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.artefacts.artefact import file_digest
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.recover import resuming, stage
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.resuming import last_whole
from pipeline.recover.stage import recover
from pipeline.recover.zeros import projection_weights
from pipeline.tensors.tensorfile import save_tensors
from tests.end_to_end.scenario import prose
from tests.pipeline.rebuild.cases import absent_parts, anything, fewer_blocks, rebuilt, rebuilt_tiny, same_width
from tests.tiny import tiny_model

OPTIONS = RunOptions(dtype="float32", threads=1)
QUICK: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "micro_batch": 2,
    "windows": 12,
    "window": 24,
    "save_every": 2,
    "learning_rate": 1e-3,
    "loss": "text",
    "held_out": 2,
    "patience": 99,
}
LORA = QUICK | {"lora": {"rank": 3, "dropout": 0.1}}
FULL = QUICK | {"kind": "full"}
DISTILLED = {"loss": "distillation", "temperature": 2.0, "hidden_states": 0.3}


@dataclass
class Case:
    """A pruned folder, its dense one, a text; and calls of the stage on them."""

    folder: Path
    dense: Path
    pruned: Path
    events: list[Event] = field(default_factory=list)

    def recover(self, name: str, values: dict[str, Any], options: RunOptions = OPTIONS, events: Events | None = None) -> Path:
        out = self.folder / name
        out.mkdir(exist_ok=True)
        heard = events or Events(self.events.append)
        recover(self.dense, self.pruned, self.folder, RecoverSlice(**values), options, out, self.folder / f"work-{name}", heard)
        return out

    @classmethod
    def made(cls, folder: Path, dense: Path, pruned: Path) -> Case:
        (folder / "calibration.txt").write_text(prose(1, 30), encoding="utf-8")
        return cls(folder, dense, pruned)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Case:
    """Uneven blocks with our modelling file; block 1 without attention, the last without FFN, block 2 gone."""
    folder = tmp_path_factory.mktemp("uneven")
    return Case.made(folder, folder / "dense", rebuilt_tiny(folder, "llama", absent_parts, Profile.DECILM))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("family", "choose", "profile", "values"),
    [
        ("llama", absent_parts, Profile.DECILM, LORA | DISTILLED),
        ("opt", anything, Profile.FREE, LORA),
        ("opt", anything, Profile.FREE, FULL | DISTILLED),
        ("qwen3", anything, Profile.FREE, FULL),
        ("qwen2", fewer_blocks, Profile.UNIFORM, FULL | DISTILLED),
        ("mistral", same_width, Profile.UNIFORM, LORA),
    ],
)
def test_the_result_has_the_form_of_what_went_in(family, choose, profile, values, tmp_path):
    case = Case.made(tmp_path, tmp_path / "dense", rebuilt_tiny(tmp_path, family, choose, profile))
    out = case.recover("recovered", values)
    assert {path.name for path in out.iterdir()} == {path.name for path in case.pruned.iterdir()} | {"recover.json"}
    for path in case.pruned.iterdir():
        if path.name not in {"model.safetensors", "gate.json"}:
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    before, after = Checkpoint(case.pruned), Checkpoint(out)
    assert after.locations == before.locations
    moved = {name for name, tensor in before.tensors() if not torch.equal(tensor, after.tensor(name))}
    frozen = {f"{before.geometry.family.embeddings[0]}.weight"} if before.geometry.tied else set()
    assert moved == (set(projection_weights(before.geometry)) if values.get("kind") != "full" else set(before.locations) - frozen)
    assert all(torch.isfinite(tensor).all() for _, tensor in after.tensors())
    assert load_model(out).num_parameters() == load_model(case.pruned).num_parameters()
    assert read_json(out / "gate.json")["attempts"][-1]["reopened"]["passed"]


@pytest.mark.parametrize("values", [LORA | DISTILLED, FULL], ids=["lora", "full"])
def test_the_same_bytes_twice_and_other_ones_by_another_seed(uneven, values):
    kind = values.get("kind", "lora")
    first, second = (digests(uneven.recover(f"{kind} {number}", values)) for number in range(2))
    assert first == second
    assert digests(uneven.recover(f"{kind} seed", values | {"seed": 2}))["model.safetensors"] != first["model.safetensors"]
    often = digests(uneven.recover(f"{kind} saved otherwise", values | {"save_every": 5}))
    assert often == first


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("values", [LORA | DISTILLED, FULL], ids=["lora", "full"])
@pytest.mark.parametrize(("at", "goes_on_from"), [(1, 0), (3, 2), (5, 4)])
def test_killed_it_goes_on_and_ends_with_the_same_bytes(uneven, values, at, goes_on_from, tmp_path):
    kind = values.get("kind", "lora")
    undisturbed = digests(uneven.recover(f"{kind} undisturbed", values))

    def kill(event: Event) -> None:
        if event.text.startswith("training") and event.done == at:
            raise Killed

    name = f"{kind} killed at {at}"
    with pytest.raises(Killed):
        uneven.recover(name, values, events=Events(kill))
    assert list((uneven.folder / name).iterdir()) == []
    state = last_whole(uneven.folder / f"work-{name}")
    assert (state.name if state else "checkpoint-0") == f"checkpoint-{goes_on_from}"
    heard: list[Event] = []
    out = uneven.recover(name, values, events=Events(heard.append))
    assert digests(out) == undisturbed
    steps = [event.done for event in heard if event.text.startswith("training")]
    assert steps == [0, *range(goes_on_from or 1, 7)]


def test_a_half_written_state_is_passed_over(uneven):
    undisturbed = digests(uneven.recover("whole", FULL))

    def kill(event: Event) -> None:
        if event.text.startswith("training") and event.done == 5:
            raise Killed

    with pytest.raises(Killed):
        uneven.recover("half", FULL, events=Events(kill))
    newest = last_whole(uneven.folder / "work-half")
    assert newest is not None
    for name in ("model.safetensors", "optimizer.pt"):
        (newest / name).write_bytes((newest / name).read_bytes()[:100])
    assert digests(uneven.recover("half", FULL)) == undisturbed


def test_nothing_in_the_working_folder_is_run(uneven, tmp_path):
    """What somebody put there that runs code when it is unpickled, seal and all: transformers' loader refuses it."""

    def kill(event: Event) -> None:
        if event.text.startswith("training") and event.done == 3:
            raise Killed

    with pytest.raises(Killed):
        uneven.recover("planted", FULL, events=Events(kill))
    state = last_whole(uneven.folder / "work-planted")
    assert state is not None
    trace = tmp_path / "it ran"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        assert (state / name).exists()
        torch.save(_Touch(str(trace)), state / name)
    resuming.seal(state)
    with pytest.raises(TrimlineError, match=r"checkpoint-2 cannot be read"):
        uneven.recover("planted", FULL)
    assert not trace.exists()


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("values", [LORA, FULL | {"weight_decay": 0.1}], ids=["lora", "full"])
def test_masks_outlive_training(values, tmp_path):
    case = Case.made(tmp_path, tmp_path / "dense", rebuilt_tiny(tmp_path, "llama", absent_parts, Profile.DECILM))
    tensors = dict(Checkpoint(case.pruned).tensors())
    names = projection_weights(Checkpoint(case.pruned).geometry)
    for number, name in enumerate(names):
        if number % 3 == 0:  # 2:4
            tensors[name].unflatten(1, (-1, 4))[:, :, [0, 3]] = 0
        elif number % 3 == 1:  # unstructured, two thirds
            tensors[name][torch.rand_like(tensors[name]) < 0.67] = 0
        else:  # a handful, as rounding leaves them
            tensors[name].view(-1)[:3] = 0
    (case.pruned / "model.safetensors").unlink()
    save_tensors(case.pruned / "model.safetensors", tensors)
    out = Checkpoint(case.recover("recovered", values))
    for number, name in enumerate(names):
        trained, before = out.tensor(name), tensors[name]
        assert torch.equal(trained == 0, before == 0), name
        assert not torch.equal(trained, before), name
        assert (two_four_fraction(trained) == 1.0) == (number % 3 == 0 or two_four_fraction(before) == 1.0), name
    zeros = read_json(out.folder / "gate.json")["zeros"]
    assert zeros["zeros"] == sum(int((tensors[name] == 0).sum()) for name in names)
    assert zeros["two_four"] >= len(names) // 3


def test_adapters_after_llm_surgeon_are_trained_and_merged(tmp_path):
    """Its published code makes adapters and leaves them out of the model, so that nothing learns."""
    dense = tiny_model("llama", tmp_path / "dense", num_hidden_layers=2)
    windows = torch.randint(4, 100, (4, 24), generator=torch.Generator().manual_seed(3))
    step = {"method": "llm_surgeon", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4", "options": {"together": 200}}
    model = ShrinkingModel(load_model(dense, dtype=torch.float32), Checkpoint(dense))
    plan = make_plan(model, windows, PruneSlice.model_validate({"steps": [step]}), Events())
    case = Case.made(tmp_path, dense, rebuilt(tmp_path, dense, plan, Profile.UNIFORM))
    out = case.recover("recovered", LORA | {"steps": 40, "learning_rate": 5e-3})
    losses = [point["loss"] for point in read_json(out / "recover.json")["losses"]]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    before, after = Checkpoint(case.pruned), Checkpoint(out)
    assert after.locations == before.locations
    for name in plan.sparse:
        assert not torch.equal(before.tensor(name), after.tensor(name)), name
        assert two_four_fraction(after.tensor(name)) == 1.0, name


@pytest.mark.parametrize("values", [LORA, FULL], ids=["lora", "full"])
def test_a_checkpoint_in_bf16_stays_in_bf16(values, tmp_path):
    dense = tiny_model("llama", tmp_path / "dense")
    load_model(dense, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(dense / name, tmp_path / "half")
    case = Case.made(tmp_path, dense, tmp_path / "half")
    out = case.recover("recovered", values | {"steps": 20, "learning_rate": 0.02}, RunOptions(dtype="bfloat16", threads=1))
    assert {tensor.dtype for _, tensor in Checkpoint(out).tensors()} == {torch.bfloat16}
    assert digests(out)["model.safetensors"] != digests(case.pruned)["model.safetensors"]
    losses = [point["loss"] for point in read_json(out / "recover.json")["losses"]]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_training_makes_the_text_more_likely(uneven):
    out = uneven.recover("learnt", FULL | {"steps": 60, "learning_rate": 5e-3})
    record = read_json(out / "recover.json")
    losses = [point["loss"] for point in record["losses"]]
    assert [point["step"] for point in record["losses"]] == list(range(1, 61))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert record["tokens"] == 60 * 4 * 24
    assert record["taken"] == 60
    assert record["different tokens"] == 12 * 24
    assert record["best"]["loss"] == min(point["loss"] for point in record["held out"])


def test_the_lesson_pairs_blocks_by_their_original_number(uneven, monkeypatch):
    seen: list[Any] = []
    made = stage._lesson

    def remember(model: Any, *rest: Any) -> Any:
        seen.append((model, made(model, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(stage, "_lesson", remember)
    uneven.recover("paired", FULL | DISTILLED | {"steps": 1})
    (model, lesson), tokens = seen[0], torch.arange(4, 20)[None]
    lesson.loss(model, tokens)
    dense = lesson.teacher.model
    with torch.no_grad():
        teacher = dense(tokens, output_hidden_states=True).hidden_states
    assert len(lesson.taught.states) == len(lesson.seen.states) == 3
    for found, number in zip(lesson.taught.states[:2], (0, 1), strict=True):
        torch.testing.assert_close(found, teacher[number + 1])
    torch.testing.assert_close(dense.model.norm(lesson.taught.states[2]), teacher[4])  # block 3, not block 2


def test_ranks_follow_the_plan(uneven, tmp_path):
    pruned = shutil.copytree(uneven.pruned, tmp_path / "pruned")
    document = json.loads((pruned / "plan.json").read_text())
    document["steps"][0]["facts"]["block importance"] = {"0": 0.5, "1": 0.1, "2": 0.9, "3": 0.1}
    (pruned / "plan.json").write_text(json.dumps(document))
    case = Case.made(tmp_path, uneven.dense, pruned)
    ranks = {}
    for more_to in ("important", "pruned"):
        lora = {"rank": 4, "rank_by": "importance", "more_to": more_to}
        ranks[more_to] = read_json(case.recover(f"more to {more_to}", QUICK | {"lora": lora}) / "recover.json")["ranks"]
    assert all(sum(found.values()) == 12 and set(found) == {"0", "1", "3"} for found in ranks.values())
    assert ranks["important"]["0"] > 4 > ranks["pruned"]["0"]


def test_a_folder_without_a_plan_can_be_trained(tmp_path):
    dense = tiny_model("llama", tmp_path / "dense")
    out = Case.made(tmp_path, dense, dense).recover("recovered", LORA | DISTILLED)
    assert not (out / "plan.json").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (LORA | {"windows": 999}, "The recovery asks for 999 windows of 24"),
        (LORA | {"batch": 5}, "A batch of 5 windows cannot be shared by 1 processes with 2 windows each"),
        (FULL | {"learning_rate": 10.0, "warm_up": 0.0, "steps": 60}, "The training diverged"),
        (LORA | {"lora": {"rank_by": "importance"}}, "no step of the plan measures it"),
    ],
)
def test_what_cannot_be_done_is_said(uneven, values, words, request):
    name = f"refused {request.node.name}"
    if "diverged" in words:
        values = values | {"learning_rate": 10.0, "weight_decay": 10.0, "schedule": "constant"}
    with pytest.raises(TrimlineError, match=words):
        uneven.recover(name, values)
    assert list((uneven.folder / name).iterdir()) == []


def test_a_missing_peft_is_one_sentence(uneven, monkeypatch):
    monkeypatch.setattr(stage, "peft_version", lambda: None)
    with pytest.raises(
        TrimlineError, match=r"LoRA needs the package peft, which is not installed\. Run: pip install 'trimline\[recover\]'"
    ):
        uneven.recover("without", LORA)
    uneven.recover("without", FULL)


def test_float16_is_refused(uneven):
    with pytest.raises(TrimlineError, match="float16"):
        uneven.recover("half precision", LORA, RunOptions(dtype="float16", threads=1))


@pytest.mark.parametrize(
    ("blocks", "words"),
    [("0-1", "keeps 2 blocks, and the model has 3"), ("x", "is no plan"), (None, "is no plan"), ("0-99999999999", "keeps")],
)
def test_a_damaged_plan_is_refused(uneven, tmp_path, blocks, words):
    pruned = shutil.copytree(uneven.pruned, tmp_path / "pruned")
    (pruned / "plan.json").write_text(json.dumps(json.loads((pruned / "plan.json").read_text()) | {"blocks": blocks}))
    with pytest.raises(TrimlineError, match=words):
        Case.made(tmp_path, uneven.dense, pruned).recover("out", LORA)


@pytest.mark.parametrize(
    ("overrides", "words"), [({"vocab_size": 140}, "predicts 140 tokens"), ({"num_hidden_layers": 2}, "the dense model has 2 blocks")]
)
def test_another_dense_model_is_refused(uneven, tmp_path, overrides, words):
    other = tiny_model("llama", tmp_path / "other", **overrides)
    with pytest.raises(TrimlineError, match=words):
        Case(uneven.folder, other, uneven.pruned).recover(f"taught by another {words}", LORA | DISTILLED)
