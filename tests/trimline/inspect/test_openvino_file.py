"""What ``trimline inspect`` reads of a graph in OpenVINO's form, by hand-made files; openvino is not needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.openvino.files import MODEL, WEIGHTS
from pipeline.common.errors import TrimlineError
from trimline.inspect.openvino_file import read_openvino
from trimline.inspect.read import inspect_folder

NET = """<?xml version="1.0"?>
<net name="decoder" version="11"><layers>
<layer id="0" name="input_ids" type="Parameter" version="opset1"><data shape="?,?" element_type="i64"/></layer>
<layer id="1" name="w" type="Const" version="opset1"><data element_type="u4" shape="64, 2, 32" offset="0" size="2048"/></layer>
<layer id="2" name="s" type="Const" version="opset1"><data element_type="f16" shape="64, 2, 1" offset="2048" size="256"/></layer>
<layer id="3" name="k" type="ReadValue" version="opset6"><data variable_id="k" variable_type="f32" variable_shape="?,3,?,64"/></layer>
<layer id="4" name="v" type="ReadValue" version="opset6"><data variable_id="v" variable_type="f32" variable_shape="?,3,?,64"/></layer>
</layers></net>"""


def folder_of(tmp_path: Path, text: str) -> Path:
    (tmp_path / MODEL).write_text(text)
    (tmp_path / WEIGHTS).write_bytes(bytes(2304))
    return tmp_path


def test_inputs_states_and_weights_are_read(tmp_path: Path) -> None:
    found = read_openvino(folder_of(tmp_path, NET) / MODEL)
    assert found.inputs == {"input_ids": "i64[?, ?]"}
    assert found.states == {"f32[?, 3, ?, 64]": 2}
    assert found.weights == {"u4": (1, 2048)}  # bytes, two numbers in each; scales are too few to be weights
    assert found.operators == {"Const": 2, "ReadValue": 2, "Parameter": 1}
    assert found.file_bytes == len(NET) + 2304


def test_a_folder_is_inspected(tmp_path: Path) -> None:
    found = inspect_folder(folder_of(tmp_path, NET))
    assert (found.kind, found.title) == ("openvino", "OpenVINO graph openvino_model.xml, 5 operators, 2 states")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html></html>", "is no graph of OpenVINO"),
        (NET[:200], "is no graph of OpenVINO"),
        ('<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa">]><net>&a;</net>', "declares entities"),
    ],
)
def test_other_xml_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TrimlineError, match=said):
        inspect_folder(folder_of(tmp_path, text))
