"""The one protocol of child processes: replies alone on stdout, a death is a sentence, and nothing outlives its parent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.common.children import Child, Died, Words, ask_once, module_command
from pipeline.common.errors import TrimlineError

ROOT = Path(__file__).parents[3]
WORKER = """
import os, signal, sys, time
from pipeline.common.answering import answer_parent, answered
from pipeline.common.errors import TrimlineError

def double(number):
    print("a library prints")
    os.write(1, b"so does C\\n")
    return {"double": 2 * number}

def refuse():
    raise TrimlineError("It is too large.", "Take a smaller one.")

def fail():
    raise KeyError("dance")

def sleep(seconds):
    time.sleep(seconds)
    return {}

def complain():
    print("a line", file=sys.stderr, flush=True)
    time.sleep(60)

def last():
    import atexit
    atexit.register(lambda: os._exit(4))
    return {}

def begin():
    import subprocess
    return {"pid": subprocess.Popen(["sleep", "600"]).pid}

WORK = {"begin": begin, "double": double, "refuse": refuse, "fail": fail, "sleep": sleep, "complain": complain, "last": last}
answer_parent(lambda request: answered(WORK[request.pop("do")], **request))
"""
PARENT = """
import sys
from pipeline.common.children import Child, Words, module_command
child = Child(module_command("works"), Words("works"))
child.ask("double", number=1)
print(child.pid, flush=True)
child.ask("sleep", seconds=600)
"""
MEMORY = "Take less memory."
WORDS = Words("works", {-signal.SIGKILL: MEMORY}, "Ask somebody.", "Wait longer.")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Child]:
    """Starts a child from a folder where files named like ours and like Python's own lie."""
    code, stands = tmp_path / "code", tmp_path / "stands"
    for folder in (code, stands / "pipeline"):
        folder.mkdir(parents=True)
    (code / "works.py").write_text(WORKER)
    for shadow in ("pipeline/__init__.py", "json.py", "works.py"):
        (stands / shadow).write_text("raise SystemExit(9)\n")
    monkeypatch.setenv("PYTHONPATH", f"{code}{os.pathsep}{ROOT}")
    monkeypatch.chdir(stands)
    return lambda **how: Child(module_command("works"), WORDS, **how)


def test_requests_are_answered_one_by_one_whatever_is_printed_meanwhile(start):
    with start() as child:
        assert [child.ask("double", number=number)["double"] for number in (2, 5)] == [4, 10]
        child.finish()
        assert child.said.count("a library prints") == child.said.count("so does C") == 2
    assert not psutil.pid_exists(child.pid)


def test_a_long_request_and_a_long_reply_arrive_whole(start):
    with start() as child:
        text = "ä" * 300_000
        assert child.ask("double", number=text)["double"] == 2 * text


def test_a_users_error_is_raised_and_the_child_lives_on(start):
    with start() as child:
        with pytest.raises(TrimlineError) as caught:
            child.ask("refuse")
        assert (caught.value.problem, caught.value.remedy) == ("It is too large.", "Take a smaller one.")
        assert child.reply("refuse")["problem"] == "It is too large."
        assert child.ask("double", number=1) == {"double": 2}


def test_a_fault_is_a_sentence_with_its_last_words(start):
    with start() as child, pytest.raises(Died) as caught:
        child.ask("fail")
    assert str(caught.value) == "The process that works ended with exit status 1: KeyError: 'dance'. Ask somebody."
    assert caught.value.code == 1
    assert any("Traceback" in line for line in caught.value.said)


def test_a_signal_is_named_with_what_can_be_done_about_it(start):
    with start() as child:
        child.ask("double", number=1)
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(Died, match=rf"was ended by SIGKILL: so does C\. {MEMORY}"):
            child.ask("double", number=1)


def test_patience_ends(start):
    with start(patience=0.01) as child, pytest.raises(TrimlineError, match=r"gave no answer for 0 s\. Wait longer"):
        child.ask("sleep", seconds=60)
    assert not psutil.pid_exists(child.pid)


def test_a_child_that_is_asked_once_ends_by_itself_and_must_end_well(start):
    assert ask_once(start(), "double", number=3) == {"double": 6}
    with pytest.raises(Died, match="exit status 4"):
        ask_once(start(), "last")


def test_a_full_disk_where_lines_are_kept_is_raised_as_one(start):
    def hear(line: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with start(hear=hear) as child, pytest.raises(OSError, match="No space left"):
        child.ask("complain")
    assert not psutil.pid_exists(child.pid)


def test_a_child_does_not_outlive_a_parent_that_is_killed(start):
    command = module_command("works")[:2]
    with subprocess.Popen([*command, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert_over(child)


def assert_over(child: psutil.Process) -> None:
    limit = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit, "it works for nobody"
        time.sleep(0.05)


def test_what_a_terminal_sends_to_all_is_the_parents_to_hear_and_grandchildren_end_with_the_child(start):
    with start() as child:
        assert child.ask("double", number=1) == {"double": 2}
        assert os.getpgid(child.pid) == child.pid
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child.pid, number)
        assert child.ask("double", number=2) == {"double": 4}
        grandchild = psutil.Process(child.ask("begin")["pid"])
        assert grandchild.is_running()
    assert_over(grandchild)
