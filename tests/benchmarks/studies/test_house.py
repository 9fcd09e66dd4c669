from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.house import PACKAGES, Tree, circles, figures, floors, rooms_of


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two rooms of one package that stand on each other in a circle, and a study that nothing of the product reaches."""
    files = {
        "pipeline/low/one.py": "class Same: ...\n",
        "pipeline/low/two.py": "def late():\n    from pipeline.high.top import Same\n    return Same\n",
        "pipeline/high/top.py": "from pipeline.low import two\nclass Same: ...\n",
        "trimline/api.py": "WORKER = 'benchmarks.worker'\n",
        "benchmarks/worker.py": "pass\n" * 3,
        "benchmarks/table.py": "pass\n" * 5,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for package in PACKAGES:
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "__init__.py").write_text("", encoding="utf-8")
    return Tree(tmp_path)


def test_imports_inside_functions_make_circles(tree: Tree) -> None:
    assert circles(tree.imports()) == [["pipeline.high.top", "pipeline.low.two"]]
    assert circles(rooms_of(tree.imports(), "pipeline")) == [["high", "low"]]


def test_floors_stand_on_finished_ones() -> None:
    assert floors({"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}}) == ([["a"], ["b", "c"], ["d"]], 0)
    assert floors({"a": {"b"}, "b": {"a"}, "c": {"a", "b"}}) == ([["a"], ["b"], ["c"]], 1)


def test_the_rows_of_a_small_tree(tree: Tree) -> None:
    found = figures(tree)
    assert found["names of classes that are defined in several files"] == "1"
    assert found["circles of modules (files in each)"] == "2"
    assert found["loose files in `pipeline/`, `benchmarks/`, `trimline/`, `exporters/onnx/`"] == "0, 2, 1, 0"
    # The worker is named in a string, by which child processes are started.
    assert found["lines of studies in the wheel, of all of `benchmarks/`"] == "5 of 8"
