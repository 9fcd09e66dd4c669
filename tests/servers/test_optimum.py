"""Optimum's ORTModelForCausalLM on our folders of smaller models with blocks alike, as they are: an optional check, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice, Precision
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.rebuild.consumers import consumers
from tests.exporters.models import OPTIONS, smaller
from tests.servers.places import environment

pytestmark = pytest.mark.servers
PROMPT = [5, 60, 71, 8, 99, 10, 23]
TOKENS = 12


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("optimum", ".made-0.1.0") / "bin" / "python"


def asked(python: Path, out: Path) -> subprocess.CompletedProcess[str]:
    client = [str(python), str(Path(__file__).parent / "optimum_client.py"), str(out), str(TOKENS), *map(str, PROMPT)]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(client, capture_output=True, text=True, check=False, env=surroundings)


def exported(checkpoint: Path, out: Path, lowering: Literal["fused", "portable"], precision: Precision) -> Path:
    out.mkdir()
    export(checkpoint, ExportSlice(lowering=lowering, precision=precision), OPTIONS, out, Events())
    return out


def foretold(checkpoint: Path) -> bool:
    """Whether ``trimline inspect`` says that Optimum loads it."""
    source = Checkpoint(checkpoint)
    [verdict] = [one for one in consumers(source.geometry, Profile.UNIFORM, source.config) if one.consumer == "optimum-onnx"]
    return verdict.loads


@pytest.mark.parametrize(("lowering", "precision"), [("fused", "fp32"), ("fused", "int4"), ("portable", "fp32")])
def test_optimum_says_the_same(lowering: Literal["fused", "portable"], precision: Precision, python: Path, tmp_path: Path) -> None:
    checkpoint = smaller("llama", tmp_path, kv_groups=(0, 1))
    out = exported(checkpoint, tmp_path / "onnx", lowering, precision)
    assert foretold(checkpoint)
    done = asked(python, out)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = OnnxDecoder(out, 1).greedy(np.array([PROMPT]), TOKENS)[0].tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_heads_that_do_not_fill_the_hidden_size_are_not_for_optimum(python: Path, tmp_path: Path) -> None:
    """It takes hidden size / heads for the width of a head."""
    checkpoint = smaller("llama", tmp_path)
    assert not foretold(checkpoint)
    done = asked(python, exported(checkpoint, tmp_path / "onnx", "fused", "fp32"))
    assert done.returncode != 0
    assert "past_key_values" in done.stderr
    assert "index: 3 Got: 32 Expected: 16" in done.stderr
