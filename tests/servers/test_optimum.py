"""Optimum's ORTModelForCausalLM on our folders of smaller models with blocks alike, as they are: an optional check, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from exporters.onnx.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice, Precision
from pipeline.events import Events
from tests.exporters.models import OPTIONS, smaller
from tests.servers.places import environment

pytestmark = pytest.mark.servers
PROMPT = [5, 60, 71, 8, 99, 10, 23]
TOKENS = 12


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("optimum", ".made-0.1.0") / "bin" / "python"


@pytest.mark.parametrize(("lowering", "precision"), [("fused", "fp32"), ("fused", "int4"), ("portable", "fp32")])
def test_optimum_says_the_same(lowering: Literal["fused", "portable"], precision: Precision, python: Path, tmp_path: Path) -> None:
    checkpoint, out = smaller("llama", tmp_path), tmp_path / "onnx"
    out.mkdir()
    export(checkpoint, ExportSlice(lowering=lowering, precision=precision), OPTIONS, out, Events())
    client = [str(python), str(Path(__file__).parent / "optimum_client.py"), str(out), str(TOKENS), *map(str, PROMPT)]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(client, capture_output=True, text=True, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = OnnxDecoder(out, 1).greedy(np.array([PROMPT]), TOKENS)[0].tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected
