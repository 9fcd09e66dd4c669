"""``trimline inspect FILE.gguf``: what the header says, as gguf's own reader reads it; a damaged file is one sentence."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from rich.console import Console

from pipeline.common.errors import TrimlineError
from tests.end_to_end.scenario import trimline
from trimline.inspect import BlockWidth, inspect_folder, render_inspection

FFN, GROUPS = [96, 64, 0], [2, 1, 2]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "deci")
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count_kv(GROUPS)
    writer.add_float32("deci.odd", float("inf"))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"token {number}" for number in range(20_000)])
    writer.add_token_types([1] * 20_000)
    writer.add_chat_template("{{ messages }}")
    for number in range(3):
        writer.add_tensor(f"blk.{number}.attn_norm.weight", np.ones(64, np.float32))
        quantised = gguf.quants.quantize(np.ones((32, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.{number}.attn_q.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", np.ones((50, 64), np.float16))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    return path


def test_it_is_what_gguf_reads(file):
    found = inspect_folder(file)
    assert (found.kind, found.folder, found.bytes) == ("gguf", str(file), file.stat().st_size)
    assert found.blocks == tuple(BlockWidth(number, *widths) for number, widths in enumerate(zip(FFN, GROUPS, strict=True)))
    held = gguf.GGUFReader(file).tensors
    assert found.parameters == sum(int(tensor.n_elements) for tensor in held)
    assert found.gguf is not None
    assert [(row.type, row.tensors) for row in found.gguf.types] == [("Q8_0", 3), ("F16", 1), ("F32", 3)]
    for row in found.gguf.types:
        assert row.bytes == sum(int(tensor.n_bytes) for tensor in held if tensor.tensor_type.name == row.type)
    assert found.gguf.tokenizer == {"model": "gpt2", "pre": "smollm", "tokens": 20_000, "chat template": True}
    assert inspect_folder(file.parent) == found  # a folder with that one file, as export writes it


def test_experts_are_no_channels_of_the_ffn(tmp_path: Path) -> None:
    """The first block is dense; a shared expert is what every token goes through in the others."""
    writer = gguf.GGUFWriter(tmp_path / "mixture.gguf", "glm4moe")
    writer.add_block_count(3)
    writer.add_feed_forward_length(96)
    writer.add_head_count_kv(2)
    writer.add_expert_count(6)
    writer.add_expert_shared_feed_forward_length(32)
    writer.add_leading_dense_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((50, 64), np.float16))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    assert inspect_folder(tmp_path / "mixture.gguf").blocks == (BlockWidth(0, 96, 2), BlockWidth(1, 32, 2, 6), BlockWidth(2, 32, 2, 6))


def test_it_is_shown_and_is_json(file):
    output = io.StringIO()
    render_inspection(inspect_folder(file), Console(file=output, width=100))
    for word in ("GGUF tiny.gguf, deci, 3 blocks, hidden size 64", "Q8_0", "absent", "tokenizer tokens", "20,000"):
        assert word in output.getvalue()
    answer = trimline("inspect", file, "--json").answer
    assert answer == json.loads(json.dumps(inspect_folder(file).as_record()))
    assert answer["gguf"]["sizes"]["odd"] == "inf"


def test_only_the_header_is_read(file, tmp_path):
    """A sparse file of 200 GB."""
    content = file.read_bytes().replace(b"token_embd", b"t" * 10)
    with (tmp_path / "large.gguf").open("wb") as large:
        large.write(content)
        large.truncate(200 * 10**9)
    started = time.perf_counter()
    assert inspect_folder(tmp_path / "large.gguf").bytes == 200 * 10**9
    assert time.perf_counter() - started < 5


def test_what_is_damaged_is_one_sentence(file, tmp_path):
    whole, path = file.read_bytes(), tmp_path / "a.gguf"
    damaged = [whole[:length] for length in (0, 3, 10, 23, 40, 200, 5000, len(whole) // 2, len(whole) - 4096)]
    damaged += [
        b"GGUX" + whole[4:],
        b"GGUF" + b"\x09" + whole[5:],
        whole[:8] + b"\xff" * 16 + whole[24:],
        whole[:60] + b"\xff" * 9 + whole[69:],
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(TrimlineError, match=r"a\.gguf is no whole GGUF file"):
            inspect_folder(path)
    (tmp_path / "a.bin").write_bytes(whole)
    with pytest.raises(TrimlineError, match="is a file, and no .gguf"):
        inspect_folder(tmp_path / "a.bin")
