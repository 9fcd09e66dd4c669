"""A user's file or folder that is called like one of our packages: one sentence in a program, nothing at all in the command."""

from __future__ import annotations

import ast
import importlib.machinery
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from benchmarks.timing.child import BenchmarkWorker
from pipeline.common.errors import TrimlineError
from trimline.own_packages import HOME, NAMES, demand_ours, in_the_way, is_the_command

ROOT = Path(__file__).parents[2]
FORMS = ("file", "package", "folder")  # the last has no __init__.py
HOSTILE = "raise SystemExit('a file of the user was imported')\n"
WHERE = f"import {', '.join(NAMES)}\nprint({', '.join(f'{name}.__file__' for name in NAMES)}, sep='\\n')\n"
OURS = [str(ROOT / name / "__init__.py") for name in NAMES]


def stranger(folder: Path, name: str, form: str) -> Path:
    """A user's file, package or plain folder; what Python would find of it."""
    if form == "file":
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(HOSTILE, encoding="utf-8")
        return folder / f"{name}.py"
    (folder / name).mkdir(parents=True)
    (folder / name / ("__init__.py" if form == "package" else "theirs.py")).write_text(HOSTILE, encoding="utf-8")
    return folder / name


@pytest.fixture(params=FORMS)
def crowded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a stranger of every name."""
    for name in NAMES:
        stranger(tmp_path / "crowded", name, request.param)
    return tmp_path / "crowded"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """As ``crowded``, of every form."""
    for name, form in zip(NAMES, (*FORMS, "package"), strict=True):
        stranger(tmp_path / "mixed", name, form)
    return tmp_path / "mixed"


def python(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | variables)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- a program of the user's -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["file", "package"])
@pytest.mark.parametrize("line", ["import trimline", "from trimline import run"])
def test_a_script_beside_a_stranger_ends_in_a_sentence_that_names_it(name: str, form: str, line: str, tmp_path: Path) -> None:
    place = stranger(tmp_path, name, form)
    done = python(script(tmp_path / "prunes.py", line), cwd=tmp_path.parent)
    wanted = f"ImportError: Python takes {place} for Trimline's package '{name}': rename it, run python -P, or use the command trimline."
    assert done.stderr.splitlines()[-1] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_beside_a_folder_without_init_a_script_gets_ours_or_the_sentence(name: str, tmp_path: Path) -> None:
    """Which of the two hangs on how Trimline is installed: a package that is found later on the path goes first, a finder does not."""
    place = stranger(tmp_path, name, "folder")
    done = python(script(tmp_path / "prunes.py", f"import trimline, {name}\nprint({name}.__file__)"), cwd=tmp_path)
    refused = done.stderr.splitlines()[-1:] and f"ImportError: Python takes {place} for " in done.stderr.splitlines()[-1]
    assert refused or done.stdout == f"{ROOT / name / '__init__.py'}\n", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_script_may_not_be_called_so_itself(name: str, tmp_path: Path) -> None:
    done = python(script(tmp_path / f"{name}.py", "import trimline"), cwd=tmp_path)
    assert f"Python takes {tmp_path / name}.py for Trimline's package '{name}': rename it" in done.stderr


def test_the_remedy_holds(crowded: Path) -> None:
    done = python("-P", script(crowded / "prunes.py", f"import trimline\n{WHERE}"), cwd=crowded)
    assert done.stdout.splitlines() == OURS, done.stderr


def test_a_stranger_that_comes_after_the_import_is_told_too(tmp_path: Path) -> None:
    place = stranger(tmp_path / "lib", "pipeline", "file")
    text = "import sys, trimline\nsys.path.insert(0, 'lib')\ntrimline.TrimlineError"
    done = python(script(tmp_path / "prunes.py", text), cwd=tmp_path)
    assert f"ImportError: Python takes {place} for Trimline's package 'pipeline': rename or uninstall it" in done.stderr


# --- the command and its children -------------------------------------------------------------------------------------


def test_the_module_that_is_the_command_does_not_see_strangers(crowded: Path) -> None:
    done = python("-m", "trimline.cli", "--help", cwd=crowded)
    assert (done.returncode, done.stderr) == (0, "")


def test_neither_do_its_verbs(mixed: Path) -> None:
    done = python("-m", "trimline.cli", "doctor", cwd=mixed)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_console_script_sees_none_beside_itself_nor_where_the_user_stands(crowded: Path) -> None:
    command = script(crowded / "trimline", f"from trimline.cli.app import main\n{WHERE}main()\n")
    done = python(command, "--help", cwd=crowded)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:4] == OURS


def test_processes_that_the_command_spawns_see_none_either(crowded: Path) -> None:
    """As ``trimline serve`` starts the process that computes."""
    text = (
        f"import trimline, multiprocessing\ndef work():\n    exec({WHERE!r}, {{}})\n"
        "if __name__ == '__main__':\n    child = multiprocessing.get_context('spawn').Process(target=work)\n    child.start()\n    child.join()\n"
    )
    done = python(script(crowded / "trimline", text), cwd=crowded)
    assert done.stdout.splitlines() == OURS, done.stderr


def test_a_worker_of_the_benchmark_sees_none(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mixed)
    with BenchmarkWorker("dense") as child, pytest.raises(TrimlineError, match=r"dense: There is no model\.onnx"):
        child.ask("load", folder=str(mixed), threads=1)


def test_every_process_that_runs_a_module_leaves_out_where_the_user_stands() -> None:
    found: dict[str, bool] = {}
    for path in sorted(path for room in (*NAMES, "trimline") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                words = [element.value for element in node.elts if isinstance(element, ast.Constant)]
                found[str(path.relative_to(ROOT))] = "-P" in words or "-I" in words
    assert found["pipeline/common/children.py"]  # which starts all others
    # pytest runs in the checkout, which it has to import.
    assert [path for path, alone in found.items() if not alone] == ["benchmarks/studies/gpu/checks.py"]


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_on_pythonpath_was_put_there_on_purpose(name: str, tmp_path: Path) -> None:
    place = stranger(tmp_path / "lib", name, "package")
    done = python("-m", "trimline.cli", "doctor", cwd=tmp_path, PYTHONPATH=str(tmp_path / "lib"))
    sentence = f"error: Python takes {place} for Trimline's package '{name}': rename or uninstall it, or take its folder off PYTHONPATH.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_a_task_of_a_cluster_leaves_out_the_folder_that_its_driver_stood_in(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts that folder first on its workers' path, and sends the task as its own cloudpickle writes it."""
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="ray is not installed (extra: ray)")
    from trimline.sweeps.ray_executor import begun_by_ours

    monkeypatch.chdir(mixed)
    (mixed / "task").write_bytes(cloudpickle.dumps(begun_by_ours(is_the_command)))
    text = (
        "import sys\nfrom ray import cloudpickle\ntask = cloudpickle.loads(open('task', 'rb').read())\n"
        f"sys.path.insert(0, {str(mixed)!r})\nprint(task(), task.__name__)\n{WHERE}"
    )
    done = python("-P", "-c", text, cwd=mixed)
    assert done.stdout.splitlines() == ["False is_the_command", *OURS], done.stderr


# --- what counts as ours ------------------------------------------------------------------------------------------------


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if none of ours had been imported yet."""
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name)


def test_ours_are_found_wherever_they_come_from(unimported: None, monkeypatch: pytest.MonkeyPatch) -> None:
    demand_ours()
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    demand_ours()
    monkeypatch.setattr(sys, "meta_path", [])
    assert [in_the_way(name) for name in NAMES] == [None] * 4  # Python itself says what is missing


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_init_is_in_the_way_of_a_finder_only(
    name: str, unimported: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder:
        """As an editable installation has it, behind all others."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
            return importlib.machinery.PathFinder.find_spec(name, [str(HOME)])

    place = stranger(tmp_path, name, "folder")
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder, Finder])
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(ROOT)])
    assert in_the_way(name) is None
    monkeypatch.setattr(sys, "path", [])
    assert in_the_way(name) is None
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert in_the_way(name) == str(place)


def test_a_module_that_is_imported_already_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("deploy")
    monkeypatch.setitem(sys.modules, "deploy", made)
    assert in_the_way("deploy") == "a module in memory"
    made.__file__ = "/their/deploy.py"
    with pytest.raises(ImportError, match="Python takes /their/deploy.py for Trimline's package 'deploy': rename or uninstall it"):
        demand_ours()


@pytest.mark.parametrize(
    ("original", "arguments", "wanted"),
    [
        (["python", "-m", "trimline.cli", "run", "-m"], ["-m", "run", "-m"], True),
        (["python", "-Wd", "-mtrimline.cli"], ["-m"], True),
        (["python", "-m", "mine.trimline", "trimline.cli"], ["-m", "trimline.cli"], False),
        (["python", "-m", "trimlined"], ["-m"], False),
        (["python", "/usr/bin/trimline", "run"], ["/usr/bin/trimline", "run"], True),
        (["python", "prunes.py", "trimline"], ["prunes.py", "trimline"], False),
        (["python", "-c", "import trimline"], ["-c"], False),
        (["python"], [""], False),
        (["python"], [], False),
    ],
)
def test_the_command_is_told_from_other_programs(
    original: list[str], arguments: list[str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", arguments)
    assert is_the_command() is wanted


def test_the_command_in_a_checkout_keeps_the_checkout_on_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "trimline.cli"])
    monkeypatch.setattr(sys, "argv", ["-m"])
    for folder, kept in ((ROOT, True), (tmp_path, False)):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        demand_ours()
        assert (sys.path[0] == str(folder)) is kept
