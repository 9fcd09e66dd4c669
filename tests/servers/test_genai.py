"""``trimline serve`` from a package, by the package's own start.sh. It needs no environment but ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.recipe import PackageSlice
from deploy.verify import verify
from tests.servers.packages import NAME, OURS, answering, says_what_the_checkpoint_says, tiny_parts, written

pytestmark = pytest.mark.servers
PROMPTS = ("The capital of France is", "a", "Water boils at one hundred degrees, and")


def test_the_packages_own_script_serves_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    package = written(tmp_path, tiny_parts(tmp_path), PackageSlice(targets=("onnxruntime-genai",), served_name=NAME))
    with answering(package, "onnxruntime-genai", OURS, tmp_path / "server.log", "--threads", "1") as address:
        says_what_the_checkpoint_says(address, package / "model", PROMPTS, 24)
    assert verify(package) == []
