"""The docs are true: their code runs, their links lead somewhere, and the recipe's page lists the recipe's keys."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin
from unittest import mock

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import pipeline.architecture.families
import pipeline.prune.methods
import trimline
import trimline.api
from benchmarks.recipe import BenchmarkSlice, Workload
from pipeline.architecture.families import family_named
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.plan.plan import Plan
from pipeline.prune.steps import resolve_steps
from pipeline.rebuild.profiles import check_request
from tests.pipeline.rebuild.cases import anything, fewer_groups, rebuilt_tiny, same_width
from tests.tiny import CONFIGS, GATED, tiny_model
from trimline.recipe import Recipe, parse_recipe, read_recipe
from trimline.stages.preflight import shapes_asked_for

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
QUICK = BenchmarkSlice(workloads=(Workload(prompt=8), Workload(prompt=4, output=3)), rounds=2, minimum_seconds=0, most_seconds=1)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of one language on a page."""
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def executed(code: str, page: Path, **names: Any) -> dict[str, Any]:
    """The names that a block of a page defines, given ``names``."""
    # A real module, because dataclasses look up where they were defined.
    module = types.ModuleType(page.stem.replace("-", "_"))
    module.__dict__.update(names)
    exec(compile(code, str(page), "exec"), module.__dict__)  # noqa: S102 - our own pages
    return module.__dict__


# --- links ---------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{page.name} links to {target}"
        assert place.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name} links to a heading that is not there: {target}"


def test_every_page_stands_in_the_index_and_the_index_in_the_readme() -> None:
    linked = set(LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked
    assert "docs/index.md" in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_site_has_the_groups_of_the_index() -> None:
    index = re.split(r"^## (\w+)$", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    groups = {
        name: [target for target in LINK.findall(text) if not target.startswith("../")]
        for name, text in zip(*[iter(index)] * 2, strict=True)
    }
    nav = {
        name: pages for entry in yaml.safe_load((DOCS / "mkdocs.yml").read_text(encoding="utf-8"))["nav"] for name, pages in entry.items()
    }
    assert groups == {name: [page.removeprefix("docs/") for page in nav[name] if page.startswith("docs/")] for name in groups}


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1500, "tables and code count too"
    results = text.partition("<!-- systems-few:begin -->")[2].partition("<!-- systems-few:end -->")[0]
    assert sum(line.startswith("| ") for line in results.splitlines()) == 1 + 6
    assert "docs/images/report.png" in text[:1500], "the report's picture stands on the first screen"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(r"`((?:pipeline|exporters|deploy|benchmarks|trimline|tests|recipes|docs)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_places_that_are_filled_in_are_closed() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<!-- ([\w-]+):begin -->", text) == re.findall(r"<!-- ([\w-]+):end -->", text)


# --- the recipe's page ---------------------------------------------------------------------------------------------


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that holds a value, as the page writes it."""
    for name, field in model.model_fields.items():
        part, marker = _part(field.annotation)
        if part is None:
            yield prefix + name, field
        else:
            yield from keys(part, f"{prefix}{name}{marker}.")


def _part(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    marker = {tuple: "[]", dict: ".{space}"}.get(get_origin(annotation), "")
    parts = [argument for argument in get_args(annotation) if isinstance(argument, type) and issubclass(argument, BaseModel)]
    return (parts[0], marker) if parts else (None, "")


def shown(field: FieldInfo) -> str:
    """A default as the page writes it."""
    if field.is_required():
        return "required"
    if field.default is None:
        return "–"
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"


def choices(annotation: Any) -> Iterator[str]:
    """The words that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Profile):
        yield from annotation
    for argument in get_args(annotation):
        yield from [argument] if isinstance(argument, str) else choices(argument)


def rows() -> dict[str, tuple[str, str]]:
    """Key to (default, meaning), from the tables of the page."""
    found = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (.+) \|$", (DOCS / "recipe.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len({key for key, _, _ in found}) == len(found)
    return {key: (default.strip(), meaning) for key, default, meaning in found}


def test_the_recipes_page_lists_the_recipes_keys() -> None:
    assert sorted(rows()) == sorted(key for key, _ in keys(Recipe))


def test_the_recipes_page_gives_the_defaults() -> None:
    assert {key: default for key, (default, _) in rows().items()} == {key: shown(field) for key, field in keys(Recipe)}


def test_the_recipes_page_names_every_choice() -> None:
    page = rows()
    for key, field in keys(Recipe):
        missing = [choice for choice in choices(field.annotation) if f"`{choice}`" not in " ".join(page[key])]
        assert missing == [], f"{key} does not mention {missing}"


def test_the_recipes_page_names_every_method_and_space() -> None:
    meaning = rows()["prune.steps[].method"][1]
    for name, method in pipeline.prune.methods.METHODS.items():
        spaces = re.search(rf"`{name}` \(([^)]+)\)", meaning)
        assert spaces, f"{name} is not mentioned"
        assert set(re.findall(r"`(\w+)`", spaces.group(1))) == set(method.spaces)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_sound_and_listed(path: Path) -> None:
    recipe = read_recipe(path)
    shapes = shapes_asked_for(resolve_steps(recipe.prune), recipe.rebuild.profile)
    config = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    check_request(recipe.rebuild.profile, family_named("llama"), *shapes, config)
    listed = (DOCS / "recipes.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| \[{path.stem}\]\(../recipes/{path.name}\) \| .* \| `(\w+)` \|$", listed, re.MULTILINE)
    assert row, f"docs/recipes.md does not list {path.name}"
    assert row.group(1) == recipe.rebuild.profile


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_on_pages_are_sound(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "add-a-method.md":
        defined = executed(blocks(page, "python")[0], page)
        monkeypatch.setitem(pipeline.prune.methods.METHODS, "contribution", defined["Contribution"]())
    for text in blocks(page, "yaml"):
        resolve_steps(parse_recipe(text, page.name).prune)


# --- code on pages -------------------------------------------------------------------------------------------------


def test_the_worked_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "add-a-method.md"
    method, its_test = blocks(page, "python")
    defined = executed(method, page)
    executed(its_test, page, **defined)["test_contribution_is_what_the_channel_adds"]()
    monkeypatch.setitem(pipeline.prune.methods.METHODS, "contribution", defined["Contribution"]())
    source = tiny_model("llama", tmp_path / "dense", intermediate_size=256)
    recipe = parse_recipe(blocks(page, "yaml")[0])
    plan = trimline.prune(recipe, tmp_path / "plan", model=source, options=trimline.RunOptions(dtype="float32", threads=1))
    score = plan.scores["step0.ffn.2"]
    assert plan.selection.ffn[2] == tuple(score.topk(128).indices.sort().values.tolist())
    assert len(set(plan.selection.ffn)) > 1
    trimline.rebuild(source, tmp_path / "plan", tmp_path / "out")
    assert {block.ffn for block in Checkpoint(tmp_path / "out").geometry.blocks} == {128}


@pytest.fixture
def starcoder2(monkeypatch: pytest.MonkeyPatch) -> str:
    """The architecture of the page, registered as the page says, for one test."""
    page = DOCS / "add-an-architecture.md"
    family, config = blocks(page, "python")
    monkeypatch.setitem(pipeline.architecture.families.FAMILIES, "starcoder2", executed(family, page)["STARCODER2"])
    monkeypatch.setitem(CONFIGS, "starcoder2", CONFIGS["starcoder2"])  # put back afterwards
    executed(config, page, CONFIGS=CONFIGS, GATED=GATED)
    return "starcoder2"


@pytest.mark.parametrize(("profile", "choose"), [(Profile.UNIFORM, same_width), (Profile.UNIFORM, fewer_groups), (Profile.FREE, anything)])
def test_the_worked_architecture_is_rebuilt_and_gated(tmp_path: Path, starcoder2: str, profile: Profile, choose: Any) -> None:
    out = rebuilt_tiny(tmp_path, starcoder2, choose, profile)
    assert json.loads((out / "gate.json").read_text())["passed"]
    checkpoint = Checkpoint(out)
    assert checkpoint.geometry.total_parameters() == sum(tensor.numel() for _, tensor in checkpoint.tensors())


def test_the_worked_architecture_is_pruned(tmp_path: Path, starcoder2: str) -> None:
    source = tiny_model(starcoder2, tmp_path / "dense", intermediate_size=256)
    step = {"budget": {"ffn": {"remove": 0.5}}, "compensation": "least_squares"}
    recipe = {"prune": {"calibration": {"windows": 8, "window": 64}, "steps": [step]}}
    plan = trimline.prune(recipe, tmp_path / "plan", model=source, options=trimline.RunOptions(dtype="float32", threads=1))
    assert sum(map(len, plan.selection.ffn)) == 4 * 128
    assert any(name.endswith("mlp.c_proj.bias") for name in plan.updates)  # least squares moves the means into the bias
    trimline.rebuild(source, tmp_path / "plan", tmp_path / "out", profile="free")


@pytest.mark.slow
def test_the_python_of_its_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    page = DOCS / "python.md"
    whole_run, by_stages = blocks(page, "python")
    model = tiny_model("llama", tmp_path / "dense", intermediate_size=256, max_position_embeddings=1024)
    recipe = {
        "model": str(model),
        "prune": {"calibration": {"windows": 4, "window": 64}, "steps": [{"budget": {"ffn": {"remove": 0.5}}}]},
        "rebuild": {"profile": "decilm"},
        "evaluate": {"windows": 2, "window": 64},
        "benchmark": QUICK.model_dump(mode="json"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # Replaced is what is large: the model, the recipe that names it, and the second of two benchmarks.
    bench = mock.create_autospec(trimline.api.bench, return_value={"comparisons": ["as many as there are"]})
    monkeypatch.setattr(trimline.api, "bench", bench)
    result = executed(whole_run.replace("recipes/quickstart.yaml", "recipe.yaml"), page)["result"]
    assert result.page.is_file()
    assert (result.package / "manifest.json").is_file()
    names = executed(by_stages.replace('"default"', repr(str(model))), page)
    assert {space: len(units) for space, units in names["plan"].steps[0].kept.items()}.keys() == {f"{Space.FFN}.{i}" for i in range(4)}
    assert Plan.read(tmp_path / "runs" / "plan-30").selection == names["plan"].selection
    assert names["seen"].parameters == Checkpoint(names["smaller"]).geometry.total_parameters()
    assert names["perplexity"]["smaller"] > 1
    (dense, candidates, _), given = bench.call_args
    assert all((folder / "model.onnx").is_file() for folder in (dense, candidates["smaller"]))
    assert given["accuracy"].keys() == {"dense", *candidates}
