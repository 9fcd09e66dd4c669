"""Errors name the page that is nearest to the room that raised them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.common.errors import TrimlineError
from tests.end_to_end.scenario import assert_refused, trimline
from trimline.cli.pages import PAGES, nearest_page, page_of

ROOT = Path(__file__).parents[3]
WRONG_PROFILE = "prune: {steps: [{budget: {ffn: {remove: 0.2}}}]}\nrebuild: {profile: decillm}\n"


def test_rooms_and_pages_are_there() -> None:
    assert [room for room in PAGES if find_spec(room) is None] == []
    assert [page for page in PAGES.values() if not (ROOT / "docs" / f"{page}.md").is_file()] == []


def test_the_longest_room_counts() -> None:
    assert page_of("pipeline.prune.allocation.targets") == "targets"
    assert page_of("pipeline.prune.allocation.budget") == "recipe"
    assert page_of("pipeline.prunes") is None


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        (("run", "wrong.yaml"), "recipe"),
        (("new", "nothing"), "your-own-model"),
        (("export", "nothing", "-o", "out", "--precision", "bf16"), "your-own-model"),
        (("sweep", "right.yaml", "--grid", "remove", "-o", "out"), "sweep"),
    ],
)
def test_an_error_names_its_page(arguments: tuple[str, ...], page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(WRONG_PROFILE)
    (tmp_path / "right.yaml").write_text(WRONG_PROFILE.replace("decillm", "decilm"))
    called = trimline(*arguments)
    assert_refused(called)
    assert called.stderr.splitlines()[-1] == f"See docs/{page}.md."


def test_an_error_that_names_a_page_itself_names_no_second_one() -> None:
    assert nearest_page(TrimlineError("It is wrong.", "Read docs/recipe.md.")) is None
    assert nearest_page(KeyboardInterrupt()) is None
