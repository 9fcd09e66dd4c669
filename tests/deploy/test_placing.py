"""Files that a package takes over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.placing import copy, link_or_copy

CONTENT = bytes(range(256)) * 5000


@pytest.mark.parametrize(("name", "linked"), [("a.safetensors", True), ("a.engine", True), ("a.onnx.data", False), ("a.json", False)])
def test_what_is_linked_and_what_is_not(tmp_path: Path, name: str, linked: bool) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    link_or_copy(tmp_path / name, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CONTENT
    assert (tmp_path / "b").samefile(tmp_path / name) is linked
    assert (tmp_path / name).stat().st_nlink == 1 + linked


def refuses(*given: object) -> int:
    raise OSError(18, "Invalid cross-device link")


@pytest.mark.parametrize("shared", [refuses, lambda *given: 0, None], ids=["other disk", "nothing copied", "no such call"])
def test_a_copy_is_whole_where_blocks_cannot_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: object) -> None:
    if shared is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", shared, raising=False)
    (tmp_path / "a").write_bytes(CONTENT)
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CONTENT


def test_an_empty_file_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b""
