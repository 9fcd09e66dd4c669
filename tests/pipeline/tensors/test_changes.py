"""Changed tensors beyond the limit are in a file that has no name, come back as they were, and go with what made them."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline.prune.model.shrinking
from pipeline.common.events import Events
from pipeline.plan.selection import select
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import prune
from pipeline.tensors.changes import Changes, Selected
from pipeline.tensors.saved_states import MEMORY_LIMIT, SavedStates
from pipeline.tensors.tensorfile import save_one_by_one, save_tensors
from tests.pipeline.live.test_paging import MORE, PAGED, WHOLE, plan
from tests.pipeline.prune.test_measure import STEPS, TOKENS, files
from tests.quick import quick_alone
from tests.tiny import tiny_model


@pytest.fixture
def open_files(tmp_path, monkeypatch):
    """The way to each nameless temporary file that this process has open."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def found() -> list[str]:
        places = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return [place for place in places if os.path.islink(place) and os.readlink(place).startswith(str(scratch))]

    return found


@pytest.fixture
def seen(monkeypatch):
    """How many tensors were in a file whenever one was put there."""
    counts, put = [], Changes.put

    def watched(self, name, value):
        put(self, name, value)
        counts.append(self.filed)

    monkeypatch.setattr(Changes, "put", watched)
    return counts


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_comes_back_is_what_was_put(dtype, open_files):
    changes = Changes(limit=10 * dtype.itemsize)
    values = {str(size): torch.randn(size, 3).to(dtype) for size in (1, 40, 7)}
    for name, value in values.items():
        changes.put(name, value)
    assert changes.filed == 2
    assert {name: (value.shape, value.dtype) for name, value in values.items()} == {
        name: (changes.form(name).shape, changes.form(name).dtype) for name in changes
    }
    assert all(torch.equal(changes[name], value) for name, value in values.items())
    changes.close()
    assert not open_files()


def test_a_changed_tensor_takes_its_own_place_again_but_not_that_of_a_copy(open_files):
    changes = Changes(limit=0)
    for value in (1.0, 2.0):
        changes.put("a", torch.full((10,), value))
        changes.put("b", torch.full((10,), value))
    assert (changes["a"][0], changes["b"][0]) == (2, 2)
    assert [os.stat(place).st_size for place in open_files()] == [80]
    before = changes.copy()
    changes.put("a", torch.full((10,), 3.0))
    assert (before["a"][0], changes["a"][0], changes["b"][0]) == (2, 3, 2)
    changes.put("a", torch.full((10,), 4.0))
    assert (before["a"][0], changes["a"][0], before["b"][0]) == (2, 4, 2)
    changes.close()


@given(
    st.dictionaries(
        st.text('abcéñ漢"\\.0', min_size=1, max_size=12),
        st.tuples(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_one_by_one_are_the_bytes_of_all_at_once(tmp_path_factory, forms):
    folder = tmp_path_factory.mktemp("files")
    changes = Changes(limit=30)
    for name, (dtype, shape) in forms.items():
        changes.put(name, torch.randn(shape).to(dtype))
    save_one_by_one(folder / "one", changes)
    save_tensors(folder / "all", dict(changes))
    changes.close()
    assert (folder / "one").read_bytes() == (folder / "all").read_bytes()
    assert (folder / "one").stat().st_mode == (folder / "all").stat().st_mode


def test_a_cut_knows_its_shape_without_its_values():
    changes = Changes()
    changes.put("a", torch.arange(12.0).view(3, 4))
    cut = Selected(changes, {"a": lambda t: select(t, torch.tensor([0, 2]), None)})
    assert cut.form("a").shape == (2, 4) == cut["a"].shape
    assert cut.form("a").device.type == "meta"


UPDATING = {name: step for name, step in (STEPS | MORE).items() if name not in ("cfsp", "magnitude", "wanda_sp", "depth", "residual")}


@pytest.mark.parametrize("name", quick_alone(UPDATING, [name for name in UPDATING if name != "llm_surgeon, weights"]))
def test_every_method_that_updates_writes_the_same_from_files(name, dense, tmp_path, monkeypatch, seen, open_files):
    step = UPDATING[name]
    whole = plan(dense, [step], WHOLE, tmp_path / "whole")
    assert not any(seen), "a model in memory keeps its updates there"
    monkeypatch.setattr(pipeline.prune.model.shrinking, "WAITING_SHARE", 0.0)
    assert plan(dense, [step], PAGED, tmp_path / "paged") == whole
    assert any(seen) == (len(whole["updates.safetensors"]) > 100)
    assert not open_files()


def test_steps_after_one_another_from_files(dense, tmp_path, monkeypatch, seen, open_files):
    steps = [STEPS["flap"], STEPS["cfsp, least squares"], MORE["groups"], MORE["sparsegpt"]]
    whole = plan(dense, steps, WHOLE, tmp_path / "whole")
    some = replace(PAGED, memory=200_000)  # a tenth holds some of the tensors
    assert plan(dense, steps, some, tmp_path / "some") == whole
    assert plan(dense, steps, PAGED, tmp_path / "none") == whole
    assert max(seen) > 10
    assert not open_files()


@pytest.mark.parametrize("name", ["gblm", "trimline"])
def test_what_gradients_need_later_waits_in_memory_up_to_a_tenth_of_the_budget(name, dense, tmp_path, monkeypatch):
    limits = []
    kept = SavedStates.__init__

    def noting(self, file, limit):
        limits.append(limit)
        kept(self, file, limit)

    monkeypatch.setattr(SavedStates, "__init__", noting)
    step = (STEPS | MORE)[name]
    plan(dense, [step], WHOLE, tmp_path / "whole")
    whole = len(limits)
    plan(dense, [step], replace(PAGED, memory=20_000), tmp_path / "paged")
    assert whole
    beside = {"gblm": (), "trimline": (MEMORY_LIMIT // 2, 1000)}[name]  # the dense model's streams
    assert set(limits[:whole]) == {MEMORY_LIMIT, *beside[:1]}
    assert set(limits[whole:]) == {2000, *beside[1:]}


def test_an_error_leaves_no_file(dense, tmp_path, monkeypatch, seen, open_files):
    """In the middle of pruning, and while the plan is written: the file is closed before the error is told."""
    steps = [STEPS["cfsp, least squares"], {"method": "cfsp", "budget": {"ffn": {"keep": 4096}}}]
    with pytest.raises(Exception, match="4,?096"):
        plan(dense, steps, PAGED, tmp_path / "impossible")
    assert any(seen)
    assert not open_files()

    def full(self, folder):
        assert open_files()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.plan.plan.Plan.write", full)
    recipe = PruneSlice.model_validate({"calibration": {"token_ids": TOKENS}, "steps": steps[:1]})
    with pytest.raises(OSError, match="No space"):
        prune(dense, tmp_path, recipe, PAGED, tmp_path, Events())
    assert not open_files()
    assert files(tmp_path / "impossible") == {}
