"""What a stage's code reaches, and what changes its hash: on a small tree of files, then on our own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.artefacts.reach import ROOMS, ROOT, code_of, forget, reached

TREE = {
    "pipeline/__init__.py": '"""The room."""\n',
    "pipeline/stage.py": '''"""Does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import beside
from pipeline.kinds import kind_named
from pipeline.rooms.near import near

if TYPE_CHECKING:
    from pipeline.types_only import Type

CHILD, SCRIPT, FOLDER = "exporters.worker", "script.py", "templates"


def work() -> int:
    """Works."""
    from pipeline.later import LATER  # takes seconds

    return LATER + near() + beside.ONE


class Record:
    """A record."""
''',
    "pipeline/beside.py": "ONE = 1\n",
    "pipeline/later.py": "LATER = 2\n",
    "pipeline/types_only.py": "Type = int\n",
    "pipeline/script.py": "print(1)\n",
    "pipeline/templates/page.jinja": "{{ page }}\n",
    "pipeline/style.css": "p {}\n",
    "pipeline/rooms/__init__.py": "from pipeline.rooms import far\n\nHERE = far.FAR\n",
    "pipeline/rooms/near.py": "def near() -> int:\n    return 3\n",
    "pipeline/rooms/far.py": "FAR = 4\n",
    "exporters/__init__.py": "",
    "exporters/worker/__init__.py": "",
    "exporters/worker/__main__.py": "import exporters.led_to\n",
    "exporters/led_to.py": "LED_TO = 5\n",
    "pipeline/kinds/__init__.py": '''"""The kinds."""

from pipeline.kinds.base import Base
from pipeline.kinds.first import First
from pipeline.kinds.second import SECOND

REGISTERED: tuple[Base, ...] = (First(), SECOND)
KINDS = {kind.name: kind for kind in REGISTERED}


def kind_named(name: str) -> Base:
    return KINDS[name]
''',
    "pipeline/kinds/base.py": "class Base:\n    name = ''\n",
    "pipeline/kinds/first.py": "from pipeline.kinds.base import Base\n\n\nclass First(Base):\n    name = 'first'\n",
    "pipeline/kinds/second.py": "from pipeline.kinds.first import First\n\nSECOND = First()\nSECOND.name = 'second'\n",
}
STAGE = ("pipeline.stage",)
KINDS, FIRST, SECOND = "pipeline.kinds", "pipeline.kinds.first", "pipeline.kinds.second"


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    forget()
    yield tmp_path
    forget()


def changes(tree: Path, name: str, old: str, new: str, members=None, entries=STAGE) -> bool:
    """Whether the hash changes with a file that has ``new`` in the place of ``old``, or holds ``new`` where there was no file."""
    before, path = code_of(entries, members, tree), tree / name
    text = path.read_text(encoding="utf-8") if path.exists() else old
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    forget()
    return code_of(entries, members, tree) != before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Does the work."""', '"""Does other work."""'),
        ('"""Does the work."""\n', ""),
        ('"""Works."""', '"""Works\n\n    hard.\n    """'),
        ('"""A record."""', '"""Another."""'),
        ("  # takes seconds", ""),
        ("class Record", "# of work\n\n\nclass Record"),
        ("return LATER + near() + beside.ONE", "return (\n        LATER\n        + near() + beside.ONE)"),
        ("pipeline.types_only import Type", "pipeline.others import Type"),
    ],
)
def test_prose_and_what_is_for_type_checkers_changes_nothing(tree, old, new):
    assert not changes(tree, "pipeline/stage.py", old, new)


def test_a_body_that_was_all_docstring_is_none(tree):
    assert not changes(tree, "pipeline/stage.py", '"""A record."""', "pass")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pipeline/stage.py", "LATER + near()", "LATER - near()"),
        ("pipeline/__init__.py", 'room."""', 'room."""\n\nROOM = 1'),
        ("pipeline/beside.py", "1", "7"),
        ("pipeline/later.py", "2", "7"),
        ("pipeline/rooms/near.py", "3", "7"),
        ("pipeline/rooms/__init__.py", "HERE", "THERE"),
        ("exporters/worker/__main__.py", "exporters.led_to", "exporters.led_to as held"),
        ("exporters/led_to.py", "5", "7"),
        ("pipeline/kinds/second.py", "second", "other"),
        ("pipeline/script.py", "print(1)", "print(1)  # a script is copied as it is"),
        ("pipeline/templates/page.jinja", "page", "other"),
        ("pipeline/style.css", "p", "q"),
        ("pipeline/new.json", "", "{}"),
    ],
)
def test_what_is_reached_changes_the_hash(tree, name, old, new):
    assert changes(tree, name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pipeline/types_only.py", "int", "str"),
        ("pipeline/rooms/far.py", "4", "7"),  # imported by the package around a module that is reached
        ("pipeline/unused.py", "", "NEW = 1\n"),
        ("pipeline/README.md", "", "Read this.\n"),
        ("pipeline/.hidden", "", "left by an editor"),
    ],
)
def test_what_is_not_reached_changes_nothing(tree, name, old, new):
    assert not changes(tree, name, old, new)


def test_the_closure_names_modules_and_not_the_packages_around_them(tree):
    kinds = {KINDS, f"{KINDS}.base", FIRST, SECOND}
    named = {"exporters.worker", "exporters.worker.__main__", "exporters.led_to"}
    mine = {"pipeline.stage", "pipeline.beside", "pipeline.later", "pipeline.rooms.near"}
    assert reached(STAGE, root=tree) == kinds | named | mine
    assert reached(STAGE, {KINDS: ()}, tree) == {KINDS, f"{KINDS}.base"} | named | mine
    assert reached(STAGE, {KINDS: {FIRST}}, tree) == {KINDS, f"{KINDS}.base", FIRST} | named | mine
    assert reached(STAGE, {KINDS: {SECOND}}, tree) == kinds | named | mine, "one member stands on the other"


def add_a_kind(tree: Path) -> None:
    table = tree / "pipeline/kinds/__init__.py"
    text = table.read_text(encoding="utf-8").replace("(First(), SECOND)", "(First(), SECOND, Third())")
    table.write_text(text.replace("\nREGISTERED", "from pipeline.kinds.third import Third\n\nREGISTERED"), encoding="utf-8")
    (tree / "pipeline/kinds/third.py").write_text("class Third:\n    name = 'third'\n", encoding="utf-8")
    forget()


@pytest.mark.parametrize(("members", "same"), [({KINDS: {FIRST}}, True), ({KINDS: ()}, True), (None, False)])
def test_a_new_member_and_its_line_change_a_hash_only_where_all_of_them_count(tree, members, same):
    before = code_of(STAGE, members, tree)
    add_a_kind(tree)
    assert (code_of(STAGE, members, tree) == before) is same


@pytest.mark.parametrize(
    ("name", "old", "new", "members", "changed"),
    [
        ("first.py", "first", "other", {FIRST}, True),
        ("first.py", "first", "other", {SECOND}, True),
        ("second.py", "second", "other", {FIRST}, False),
        ("second.py", "second", "other", (), False),
        ("base.py", "''", "'base'", {FIRST}, True),
        ("base.py", "''", "'base'", (), True),
        ("__init__.py", "KINDS[name]", "KINDS.get(name)", {FIRST}, True),
        ("__init__.py", "KINDS[name]", "KINDS.get(name)", (), True),
        ("__init__.py", "kind.name: kind", "kind.name.lower(): kind", {FIRST}, True),
    ],
)
def test_of_a_collection_the_members_that_are_used_count_and_the_code_beside_the_table(tree, name, old, new, members, changed):
    assert changes(tree, f"pipeline/kinds/{name}", old, new, {KINDS: members}) is changed


def test_a_script_counts_that_lies_in_a_package_that_is_imported(tree):
    entries = ("pipeline.copies",)
    (tree / "pipeline/copies.py").write_text('from pipeline import rooms\n\nFILES = ("script.py", "sent.py")\n', encoding="utf-8")
    (tree / "pipeline/rooms/sent.py").write_text("SENT = 1\n", encoding="utf-8")
    assert changes(tree, "pipeline/rooms/sent.py", "1", "2", entries=entries)


def test_files_are_read_once(tree):
    before = code_of(STAGE, root=tree)
    (tree / "pipeline/beside.py").write_text("ONE = 8\n", encoding="utf-8")
    assert code_of(STAGE, root=tree) == before
    forget()
    assert code_of(STAGE, root=tree) != before


def test_another_place_has_the_same_hash(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "place"
    shutil.copytree(tree, other)
    assert code_of(STAGE, root=other) == code_of(STAGE, root=tree)


def test_a_module_that_is_not_there_is_a_fault(tree):
    with pytest.raises(ModuleNotFoundError, match=r"pipeline\.gone"):
        code_of(("pipeline.gone",), root=tree)


@pytest.mark.parametrize(
    ("entry", "child"),
    [
        ("benchmarks.stage", "benchmarks.timing.worker"),
        ("benchmarks.latency.stage", "benchmarks.timing.worker"),
        ("exporters.tensorrt.stage", "exporters.tensorrt.worker"),
        ("deploy.package", "exporters.gguf.child"),
    ],
)
def test_child_processes_are_reached(entry, child):
    assert child in reached((entry,))


@pytest.mark.parametrize(
    ("entry", "package", "file"),
    [
        ("exporters.gguf.stage", "exporters.gguf", "runner.py"),
        ("pipeline.rebuild.stage", "pipeline.checkpoints.shipped", "modeling.py.jinja"),
        ("deploy.package", "deploy", "card.md.jinja"),
        ("deploy.package", "deploy.targets.templates", "vllm.start.sh.jinja"),
        ("deploy.package", "deploy.targets.triton.backend", "model.py"),
        ("trimline.reporting", "trimline.reporting", "report.css"),
    ],
)
def test_files_that_are_copied_filled_in_or_run_elsewhere_count(entry, package, file, own_tree):
    before = code_of((entry,), root=own_tree)
    with own_tree.joinpath(*package.split("."), file).open("a", encoding="utf-8") as opened:
        opened.write("\n# more\n")
    forget()
    assert code_of((entry,), root=own_tree) != before


@pytest.fixture
def own_tree(tmp_path):
    """Our packages, copied."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "measured"))
    yield tmp_path
    forget()
