"""The folder for OpenVINO in a package: OpenVINO GenAI answers from it, and the server's files name what is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.package import package
from deploy.recipe import PackageSlice
from exporters.openvino.runtime import has
from pipeline.common.events import Events

pytestmark = pytest.mark.skipif(
    not all(map(has, ("openvino", "openvino_genai", "openvino_tokenizers"))), reason="trimline[openvino] is not installed"
)


@pytest.fixture(scope="module")
def served(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "package"
    folder.mkdir()
    package(parts, PackageSlice(targets=("openvino",), served_name="tiny"), folder, Events())
    return folder / "serve" / "openvino"


def test_the_servers_files_name_the_folder_that_is_there(served: Path) -> None:
    (named,) = json.loads((served / "config.json").read_text())["mediapipe_config_list"]
    graph = (served / named["base_path"] / "graph.pbtxt").read_text()
    (models,) = re.findall(r'models_path: "(.*)"', graph)
    assert (served / named["base_path"] / models / "openvino_model.xml").is_file()
    assert named["name"] == "tiny"
    assert "**not run** here" in (served / "README.md").read_text()


def test_the_script_answers_every_line(served: Path) -> None:
    command = [sys.executable, "chat.py", "tiny", "--tokens", "3"]
    found = subprocess.run(command, cwd=served, input="one\ntwo\n", capture_output=True, text=True, timeout=300, check=True)
    assert found.stdout.count("\n") >= 2
