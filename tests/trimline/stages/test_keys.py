"""Which stages a change of our own files makes anew: the code of every stage of a real run, over a copy of the packages."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import benchmarks.stage
import trimline.stages.keys
import trimline.stages.table
from deploy import targets
from deploy.recipe import PackageSlice
from pipeline.architecture import families
from pipeline.artefacts.artefact import Artefact
from pipeline.artefacts.reach import ROOMS, ROOT, code_of, forget, reached
from pipeline.common.events import Events
from pipeline.prune import methods
from pipeline.prune.recipe import PruneSlice
from tests.end_to_end.scenario import OPTIONS, InProcess, changed, recipe, tiny_inputs
from trimline.recipe import checked_recipe
from trimline.stages.keys import members_of
from trimline.stages.names import (
    DENSE,
    MEASURED,
    PACKAGE,
    PLAN,
    RECOVERED,
    REPORT,
    SMALLER,
    SOURCE,
    TEXT,
    TIMINGS,
    Name,
    Shard,
    evaluation_of,
    export_of,
    tasks_of,
)  # fmt: skip
from trimline.stages.run import Run

STEP = ("prune", "steps", 0)
MEASURING = {"statistics", "measure", "prune"}
STAGES = MEASURING | {"source", "text", "rebuild", "recover", "evaluate", "export", "lm_eval", "benchmark", "report", "package"}


class Codes(Run):
    """Says which code the stages of a run that was made stand on, and makes nothing."""

    codes: dict[str, str]

    def _artefact(self, name: Name, depends: dict[str, Any], work: Any, unchanged: Any) -> Artefact:
        self.codes[name.stage] = depends["code"]
        return self.done.get(name) or Artefact(name.stage, "", self.store, 0.0)

    def _forget_states(self) -> None: ...

    def all_codes(self) -> dict[str, str]:
        """By stage."""
        self.codes = {}
        statistics, judged = Name("statistics", part=Shard(0, 1)), (evaluation_of(DENSE), export_of(DENSE), tasks_of(DENSE))
        for job in (SOURCE, TEXT, statistics, MEASURED, PLAN, SMALLER, RECOVERED, *judged, TIMINGS, REPORT, PACKAGE):
            self.do(job)
        return self.codes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A recipe and its run, done."""
    folder = tmp_path_factory.mktemp("made")
    values = recipe("cfsp-least-squares", tiny_inputs(folder / "inputs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
        run = Run(checked_recipe(values), OPTIONS, folder / "out", Events(), "trimline run")
        run.all()
        return values, run


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Our packages, copied."""
    root = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__", "measured"))
    return root


@pytest.fixture
def codes(made, tree, monkeypatch):
    """Codes of all stages, for a method in the place of the recipe's, over the copied packages as they are."""
    monkeypatch.setattr(trimline.stages.keys, "code_of", partial(code_of, root=tree))
    monkeypatch.setattr(trimline.stages.table, "depends_on", lambda _: {})  # asks lm-eval, which need not be here
    values, whole = made

    def codes(method: str = "cfsp") -> dict[str, str]:
        full = changed(values, *STEP, "method", to=method) | {"recover": {"kind": "full"}, "lm_eval": {"tasks": ["one"]}}
        full |= {"package": {"targets": ["vllm"]}}
        run = Codes(checked_recipe(full), OPTIONS, whole.output, Events(), "trimline run")
        run.done = dict(whole.done)
        run.done[RECOVERED] = run.done[SMALLER]
        return run.all_codes()

    return codes


@pytest.fixture
def edit(tree):
    """Writes into a module of the copied packages until the test is over: in the place of something, or at the end."""
    kept: dict[Path, str | None] = {}

    def edit(name: str, old: str, new: str) -> None:
        path = file_of(tree, name)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        kept.setdefault(path, text if path.exists() else None)
        assert old in text, f"{name} no longer says {old}"
        path.write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")

    yield edit
    forget()
    for path, text in kept.items():
        path.unlink() if text is None else path.write_text(text, encoding="utf-8")


def file_of(tree: Path, name: str) -> Path:
    """Of a module by its dotted name, there or not."""
    place = tree.joinpath(*name.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_name(f"{place.name}.py")


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert set(before) == set(after) == STAGES
    return {stage for stage, code in before.items() if after[stage] != code}


def test_prose_of_every_module_makes_nothing_anew(codes, tree, edit):
    before = codes()
    for path in sorted(tree.rglob("*.py")):
        if path.name != "runner.py" and path.parent.name != "backend":  # scripts that are copied or run as they are
            name = ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")
            edit(name, '"""', '# A remark.\n\n"""Other words. ')
            edit(name, "", "\n\n# The end.\n")
    (tree / "pipeline" / "README.md").write_text("Read this first.\n", encoding="utf-8")
    forget()
    assert differing(before, codes()) == set()


@pytest.mark.parametrize(
    ("name", "method", "expected"),
    [
        ("pipeline.prune.methods.cfsp", "cfsp", MEASURING),
        ("pipeline.prune.methods.cfsp", "cfsp_extended", MEASURING),  # which stands on the other
        ("pipeline.prune.methods.cfsp_extended", "cfsp", set()),
        ("pipeline.prune.methods.cfsp", "wanda_sp", set()),
        ("pipeline.prune.methods.wanda", "wanda_sp", MEASURING),
        ("pipeline.prune.methods.method", "wanda_sp", MEASURING),
    ],
)
def test_a_line_of_a_method_makes_the_stages_anew_that_run_it(codes, edit, name, method, expected):
    before = codes(method)
    edit(name, "", "\nMORE = 1\n")
    forget()
    assert differing(before, codes(method)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("benchmarks.timing.worker", {"benchmark"}),
        ("exporters.onnx.lowering.fused", {"export"}),
        ("pipeline.prune.kronecker.units", set()),
        ("pipeline.recover.training", {"recover"}),
        ("pipeline.architecture.families.llama", STAGES - {"source", "text"}),
        ("pipeline.architecture.families.opt", set()),
        ("deploy.targets.vllm", {"package"}),
        ("deploy.targets.genai", set()),
        ("trimline.stages.collect", {"report"}),
        ("trimline.sweeps.grid", set()),
        ("benchmarks.studies.systems", set()),
        ("benchmarks.studies.systems.row", set()),
        ("benchmarks.studies.equal_speed", set()),
        ("pipeline.common.errors", STAGES),
    ],
)
def test_a_line_makes_the_stages_anew_that_reach_it(codes, edit, name, expected):
    before = codes()
    edit(name, "", "\nMORE = 1\n")
    forget()
    assert differing(before, codes()) == expected


@pytest.mark.parametrize(
    ("collection", "imports", "table"),
    [
        ("pipeline.prune.methods", "Wanda, WandaStructured\n", "ResidualEnergy(),"),
        ("pipeline.architecture.families", "QWEN3\n", "VAULTGEMMA,"),
        ("deploy.targets", "Vllm\n", "Vllm(), Hub()"),
    ],
)
def test_a_new_member_of_a_collection_makes_nothing_anew(codes, edit, collection, imports, table):
    before = codes()
    edit(f"{collection}.brand_new", "", "class BrandNew:\n    name = model_type = 'brand_new'\n")
    edit(collection, imports, f"{imports}from {collection}.brand_new import BrandNew\n")
    edit(collection, table, f"{table.rstrip(',')}, BrandNew(),")
    forget()
    assert differing(before, codes()) == set()


def test_members_are_the_modules_that_describe_them():
    names = ("cfsp", "wanda_sp")
    steps = PruneSlice.model_validate({"steps": [{"method": name, "budget": {"ffn": {"remove": 0.1}}} for name in names]})
    assert members_of(steps, ("qwen2",), PackageSlice(targets=("kserve",))) == {
        "pipeline.prune.methods": {"pipeline.prune.methods.cfsp", "pipeline.prune.methods.wanda"},
        "pipeline.architecture.families": {"pipeline.architecture.families.qwen2"},
        "deploy.targets": {"deploy.targets.kserve", "deploy.targets.genai", "deploy.targets.triton.target"},
    }
    assert members_of(None, None, None) == {}


def test_every_member_of_a_collection_can_be_chosen():
    described = {families.__name__: {f"{families.__name__}.{name}" for name in families.FAMILIES}}
    described[methods.__name__] = {type(method).__module__ for method in methods.METHODS.values()}
    described[targets.__name__] = {type(target).__module__ for target in targets.TARGETS.values()}
    for collection, members in described.items():
        none, every = reached((collection,), {collection: ()}), reached((collection,))
        assert not members & none
        assert members <= every
        assert reached((collection,), {collection: members}) == every, "whoever chooses all of them gets what saying nothing gives"
