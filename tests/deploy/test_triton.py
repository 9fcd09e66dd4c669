"""Triton's model repository: configs that say what the graph is, and the backend's files run here on the packaged graph.

tests/servers/test_triton.py starts the server itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from deploy import pieces
from deploy.package import package
from deploy.recipe import PackageSlice
from deploy.targets import ModelToServe, check_targets
from deploy.targets.triton import backend
from deploy.targets.triton.backend import decoder as backend_file
from deploy.targets.triton.backend.decoder import Decoder, generate
from deploy.targets.triton.backend.replies import Reader, Reply, Wish
from deploy.targets.triton.gate import gate_text_model
from exporters.onnx.running.placement import SHAPE_OPERATORS
from exporters.onnx.running.session import OnnxDecoder
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from tests.deploy.model_config import read_config
from tests.deploy.parts import OPTIONS
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ("Hello there", "a", "The quick brown fox jumps over the lazy dog")


@pytest.fixture(scope="module")
def shipped(parts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shipped")
    package(parts, PackageSlice(targets=("triton",), served_name="tiny"), out, Events())
    return out


# --- configs -------------------------------------------------------------------------------------------------------


def configs(shipped: Path) -> dict[str, Any]:
    return {path.parent.name: read_config(path.read_text()) for path in sorted(shipped.glob("serve/triton/*/*/config.pbtxt"))}


def test_every_config_is_one_that_triton_reads(shipped):
    found = configs(shipped)
    assert {name: config.name for name, config in found.items()} == {name: name for name in found}
    assert set(found) == {"tiny", "tiny-stream", "tiny-onnxruntime", "tiny-tensorrt"}
    assert [found[name].model_transaction_policy.decoupled for name in ("tiny", "tiny-stream")] == [False, True]
    assert found["tiny-tensorrt"].platform == "tensorrt_plan"
    assert found["tiny-tensorrt"].default_model_filename == "model.plan"
    assert found["tiny-onnxruntime"].default_model_filename == "model.onnx"


def test_the_check_of_configs_refuses_what_triton_refuses(shipped):
    text = (shipped / "serve/triton/models/tiny/config.pbtxt").read_text()
    for wrong in ("max_queue_delay_us", "max_queue_delay_microsecond"):
        with pytest.raises(text_format.ParseError, match="no field named"):
            read_config(text.replace("max_queue_delay_microseconds", wrong))


def test_a_gpu_is_asked_for_where_the_run_used_one(parts, tmp_path):
    on_gpu = dataclasses.replace(parts, options=dataclasses.replace(OPTIONS, device="cuda"))
    monkeypatched = pytest.MonkeyPatch()
    with monkeypatched.context() as patch:
        patch.setattr("pipeline.common.options.RunOptions.as_record", lambda self: {})  # asks torch about a device that is not here
        package(on_gpu, PackageSlice(targets=("triton",)), tmp_path, Events())
    folder = tmp_path / "serve/triton"
    assert "kind: KIND_GPU" in (folder / "models/model/config.pbtxt").read_text()
    assert "\nARG RUNTIME=onnxruntime-gpu\n" in (folder / "Dockerfile").read_text()
    service = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["model"]
    assert service["deploy"]["resources"]["reservations"]["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_without_a_gpu_none_is_asked_for(shipped):
    folder = shipped / "serve/triton"
    assert "\nARG RUNTIME=onnxruntime\n" in (folder / "Dockerfile").read_text()
    assert "deploy" not in yaml.safe_load((folder / "compose.yaml").read_text())["services"]["tiny"]


# --- the backend's decoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowering", ["fused", "portable"])
def test_texts_of_unequal_length_continue_together_as_each_alone(graphs, lowering):
    decoder, alone = Decoder(graphs[lowering], 1), OnnxDecoder(graphs[lowering], 1)
    tokenizer = tiny_tokenizer().backend_tokenizer
    reader = Reader(tokenizer, decoder.context)
    replies = [Reply(reader.wish(text.encode(), count), tokenizer, frozenset()) for text, count in zip(PROMPTS, (20, 3, 12), strict=True)]
    rounds = sum(1 for _ in generate(decoder, replies))
    assert rounds == 20
    for reply in replies:
        assert reply.tokens == alone.greedy(np.asarray([reply.wish.ids]), reply.wish.max_tokens)[0].tolist()
        assert reply.finish == "length"


def test_an_answer_that_is_stopped_from_outside_leaves_the_batch(graphs):
    decoder = Decoder(graphs["fused"], 1)
    tokenizer = tiny_tokenizer().backend_tokenizer
    replies = [Reply(Wish((5, 6, 7), 10), tokenizer, frozenset()), Reply(Wish((8,), 10), tokenizer, frozenset())]
    for number, _ in enumerate(generate(decoder, replies)):
        if number == 2:
            replies[0].finish = "cancelled"
    assert [len(reply.tokens) for reply in replies] == [3, 10]


def test_no_requests_make_no_rounds(graphs):
    assert list(generate(Decoder(graphs["fused"], 1), [])) == []


def test_a_repository_outside_its_package_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="has to stay inside its package"):
        Decoder(tmp_path)


def test_a_device_that_is_not_there_is_no_processor_instead(graphs):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    with pytest.raises(RuntimeError, match="could not start CUDAExecutionProvider"):
        Decoder(graphs["fused"], device="cuda")


# --- requests and replies -------------------------------------------------------------------------------------------


@pytest.fixture
def reader() -> Reader:
    return Reader(tiny_tokenizer().backend_tokenizer, 256)


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        (b"", {}, "text_input is empty."),
        (b"x" * 257, {}, "text_input has 257 tokens and max_tokens is 1; the model has 256."),
        (b"x" * 256, {}, "text_input has 256 tokens"),
        (b"x" * 10**7, {}, "text_input has 10,000,000 bytes"),
        (b"x" * 250, {"max_tokens": 7}, "max_tokens is 7; the model has 256"),
        (b"\xff", {}, "text_input is not UTF-8 text."),
        (b"a", {"max_tokens": 0}, "max_tokens is 0"),
        (b"a", {"temperature": -0.5}, "temperature is -0.5"),
        (b"a", {"temperature": float("inf")}, "temperature is inf"),
        (b"a", {"seed": -3}, "seed is -3"),
        (b"a", {"stop": [b"x"] * 17}, "stop takes 16 texts"),
        (b"a", {"stop": [b"x" * 257]}, "stop takes 16 texts of 256 bytes"),
        (b"a", {"stop": [b"\xff"]}, "stop is not UTF-8 text."),
        (b"a", {"stop": [b"x", b"</s>y"]}, "holds the special token '</s>' and more"),
    ],
)
def test_what_a_request_may_not_be(reader, text, more, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        reader.wish(text, **more)


def test_what_a_request_is_without_more(reader):
    assert reader.wish(b"ab") == Wish(tuple(tiny_tokenizer()("ab")["input_ids"]), 64, 0.0, None, ())
    assert reader.wish(b"x" * 250).max_tokens == 6
    assert reader.wish(b"x" * 255, 1).max_tokens == 1


def grown(text: str, **more: Any) -> tuple[Reply, list[str]]:
    """A reply that was given the tokens of ``text`` one by one, and what it showed after each."""
    tokenizer = tiny_tokenizer().backend_tokenizer
    ids = tokenizer.encode(text).ids
    reply, shown = Reply(Wish((5,), more.pop("max_tokens", len(ids)), **more), tokenizer, frozenset({2})), []
    for token in ids:
        reply.accept(np.eye(128, dtype=np.float32)[token])
        shown.append(reply.fresh()[0])
        if reply.finish:
            break
    return reply, shown


def test_a_stop_text_ends_the_answer_and_no_part_of_it_is_shown():
    reply, shown = grown("one two three", stop=("two", "zzz"))
    assert (reply.text, reply.finish, len(reply.tokens)) == ("one ", "stop", 7)
    assert shown == ["o", "n", "e", " ", "", "", ""]


def test_what_only_began_like_a_stop_text_is_shown_later():
    reply, shown = grown("tw tea", stop=("two",))
    assert "".join(shown) == reply.text == "tw tea"
    assert shown[:3] == ["", "", "tw "]
    assert reply.finish == "length"


def test_what_is_held_back_is_shown_at_the_end():
    reply, shown = grown("x tw", stop=("two",))
    assert "".join(shown) == reply.text == "x tw"


def test_bytes_that_make_no_character_after_a_line_s_end_do_not_end_the_answer():
    """As in Llama 2's tokenizer: what has no token is written in bytes."""
    words = {f"<0x{number:02X}>": number for number in range(256)} | {"<unk>": 256, "▁Paris": 257, "▁is": 258}
    tokenizer = Tokenizer(BPE(words, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    reply = Reply(Wish((258,), 9), tokenizer, frozenset())
    for token in (ord("\n"), 0xC3, 257, 258, *"é".encode()):
        reply.accept(np.eye(259, dtype=np.float32)[token])
    assert reply.text == "\n\ufffd Paris isé"


def test_an_end_token_ends_the_answer():
    reply = Reply(Wish((5,), 9), tiny_tokenizer().backend_tokenizer, frozenset({2}))
    reply.accept(np.eye(128, dtype=np.float32)[2])
    assert (reply.tokens, reply.text, reply.finish) == ([2], "", "stop")


def test_a_stop_text_that_is_a_special_token_stops_on_its_id(reader):
    wish = reader.wish(b"a", stop=[b"<unk>", b"x"])
    assert (wish.stop, wish.stop_tokens) == (("<unk>", "x"), frozenset({3}))
    reply = Reply(wish, tiny_tokenizer().backend_tokenizer, frozenset({2}))
    for token in (5, 3):
        reply.accept(np.eye(128, dtype=np.float32)[token])
    assert (len(reply.text), reply.finish) == (1, "stop")


def test_draws_follow_the_softmax():
    logits = np.log(np.asarray([0.1, 0.2, 0.7], np.float32))
    for temperature, wanted in ((1.0, [0.1, 0.2, 0.7]), (0.5, np.square([0.1, 0.2, 0.7]) / 0.54)):
        reply = Reply(Wish((5,), 10**6, temperature, 0), tiny_tokenizer().backend_tokenizer, frozenset())
        drawn = np.bincount([reply._choose(logits) for _ in range(6000)], minlength=3) / 6000
        assert np.abs(drawn - wanted).max() < 0.02


# --- the protocol, with a stand-in for what Triton's stub gives ------------------------------------------------------


class FakeError(Exception):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self._array = name, array

    def as_numpy(self) -> np.ndarray:
        return self._array


@dataclasses.dataclass
class FakeResponse:
    output_tensors: list[FakeTensor] = dataclasses.field(default_factory=list)
    error: FakeError | None = None

    def __getitem__(self, name: str) -> list[Any]:
        return next(tensor.as_numpy() for tensor in self.output_tensors if tensor.name == name).tolist()


@dataclasses.dataclass
class FakeRequest:
    tensors: dict[str, np.ndarray]
    cancelled_after: int = 10**6
    sent: list[tuple[FakeResponse, int]] = dataclasses.field(default_factory=list)

    def is_cancelled(self) -> bool:
        self.cancelled_after -= 1
        return self.cancelled_after < 0

    def get_response_sender(self) -> FakeRequest:
        return self

    def send(self, response: FakeResponse, flags: int) -> None:
        self.sent.append((response, flags))


@pytest.fixture
def model(shipped, monkeypatch):
    """``make(name)``: the shipped model.py of a text model, initialised as Triton does."""
    stub = types.ModuleType("triton_python_backend_utils")
    stub.TritonError, stub.Tensor, stub.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FakeError, FakeTensor, 1
    stub.InferenceResponse = FakeResponse
    stub.get_input_tensor_by_name = lambda request, name: FakeTensor(name, request.tensors[name]) if name in request.tensors else None
    stub.using_decoupled_model_transaction_policy = lambda config: config["decoupled"]
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)

    def make(place: str, name: str) -> Any:
        folder = shipped / "serve" / "triton" / place / name
        monkeypatch.syspath_prepend(folder / "1")
        for module in ("model", "decoder", "replies", "pieces"):
            sys.modules.pop(module, None)
        made = importlib.import_module("model").TritonPythonModel()
        config = {"parameters": {"onnx": {"string_value": "../../../../onnx"}, "threads": {"string_value": "1"}}}
        config["decoupled"] = place == "streaming"
        made.initialize({"model_config": json.dumps(config), "model_instance_kind": "CPU", "model_instance_device_id": "0"})
        return made

    yield make
    for module in ("model", "decoder", "replies", "pieces"):
        sys.modules.pop(module, None)


def asked(text: Any, tokens: int = 4, **more: Any) -> FakeRequest:
    rows = text if isinstance(text, list) else [text]
    tensors = {"text_input": np.asarray([[row] for row in rows], object), "max_tokens": np.full((len(rows), 1), tokens, np.int32)}
    return FakeRequest(tensors | more)


def test_the_relative_path_leads_to_the_packages_onnx(shipped):
    for folder in sorted(shipped.glob("serve/triton/[ms]*s*/tiny*")):
        config = read_config((folder / "config.pbtxt").read_text())
        given = {entry.key: entry.value.string_value for entry in config.parameters}
        if given:
            assert (folder / given["onnx"]).resolve() == (shipped / "onnx").resolve()
            assert {path.name for path in (folder / "1").iterdir()} == {"model.py", "decoder.py", "replies.py", "pieces.py"}
            for path in (folder / "1").iterdir():
                home = Path(pieces.__file__).parent if path.name == "pieces.py" else Path(backend.__path__[0])
                assert path.read_bytes() == (home / path.name).read_bytes()


def test_requests_that_come_together_are_answered_each_in_its_place(model, shipped):
    good, rows = asked(b"hello"), asked([b"a", b"The fox"], 3)
    bad, bent = asked(b""), FakeRequest({"text_input": np.asarray([[b"a", b"b"]], object)})
    answers = model("models", "tiny").execute([good, bad, rows, bent, FakeRequest({})])
    alone = OnnxDecoder(shipped / "onnx", 1)
    ids = [tiny_tokenizer()(text)["input_ids"] for text in ("hello", "a", "The fox")]
    assert answers[0]["token_ids"] == [alone.greedy([ids[0]], 4)[0].tolist()]
    assert answers[2]["token_ids"] == [alone.greedy([row], 3)[0].tolist() for row in ids[1:]]
    assert [str(answers[place].error) for place in (1, 4)] == ["text_input is empty.", "text_input is missing."]
    assert "has the shape [1, 2]" in str(answers[3].error)
    assert {answers[place].error.code for place in (1, 3, 4)} == {FakeError.INVALID_ARG}


def test_a_failure_inside_is_said_to_every_request_and_ends_nothing(model):
    made = model("models", "tiny")
    working, made.decoder.session = made.decoder.session, None
    answers = made.execute([asked(b"a"), asked(b"")])
    assert answers[0].error.code == FakeError.INTERNAL
    assert answers[1].error.code == FakeError.INVALID_ARG
    made.decoder.session = working
    assert made.execute([asked(b"a")])[0].error is None


def test_a_cancelled_request_stops_and_the_others_go_on(model):
    left, stays = asked(b"a", 12), asked(b"b", 12)
    left.cancelled_after = 2
    answers = model("models", "tiny").execute([left, stays])
    assert answers[0]["finish_reason"] == [[b"cancelled"]]
    assert len(answers[0]["token_ids"][0]) == 3
    assert len(answers[1]["token_ids"][0]) == 12


def test_streams_end_once_each(model):
    good, bad, two = asked(b"hello", 5), asked(b""), asked([b"a", b"b"])
    whole = model("models", "tiny").execute([asked(b"hello", 5)])[0]
    assert model("streaming", "tiny-stream").execute([good, bad, two]) is None
    assert [flags for _, flags in good.sent] == [0, 0, 0, 0, 1]
    assert [token for response, _ in good.sent for token in response["token_ids"][0]] == whole["token_ids"][0]
    assert b"".join(response["text_output"][0][0] for response, _ in good.sent) == whole["text_output"][0][0]
    for request, sentence in ((bad, "text_input is empty."), (two, "A stream takes one text per request.")):
        assert [(str(response.error), flags) for response, flags in request.sent] == [(sentence, 1)]


# --- refusals and the gate ------------------------------------------------------------------------------------------


def test_without_a_fast_tokenizer_there_is_no_text_model(tmp_path):
    folder = tiny_model("llama", tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TrimlineError, match=r"triton cannot serve this model: its backend reads tokenizer\.json"):
        check_targets(PackageSlice(targets=("triton",)), ModelToServe.of(Checkpoint(folder), Profile.UNIFORM))


def test_the_gate_sees_a_tokenizer_that_reads_differently(graphs, monkeypatch):
    from deploy.targets.triton import gate

    gate_text_model(graphs["fused"], OPTIONS, Events())

    class OtherTokenizer:
        @staticmethod
        def from_pretrained(folder: Path) -> Any:
            return lambda text: {"input_ids": [1, *tiny_tokenizer()(text)["input_ids"]]}

    monkeypatch.setattr(gate, "AutoTokenizer", OtherTokenizer)
    with pytest.raises(GateError, match="reads 'The capital of France is' as tokens"):
        gate_text_model(graphs["fused"], OPTIONS, Events())


def test_a_tokenizer_that_would_cut_texts_off_does_not():
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    assert Reader(tokenizer, 256).wish(b"hello").ids == tuple(tiny_tokenizer()("hello")["input_ids"])


def test_the_gate_sees_a_batch_that_mixes_its_rows(graphs, monkeypatch):
    stacked = backend_file._stacked
    monkeypatch.setattr(backend_file, "_stacked", lambda arrays: stacked(arrays)[::-1].copy())
    with pytest.raises(GateError, match="continues"):
        gate_text_model(graphs["fused"], OPTIONS, Events())


def with_gpu(monkeypatch, on_processor: set[str]) -> list[str]:
    """ONNX Runtime on the processor, saying of its nodes that all but these run on a GPU; what was called comes back."""
    opened, told = backend_file.ort.InferenceSession, []

    class Elsewhere:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            told.append("session")
            self._session, self._provider = opened(path, options, ["CPUExecutionProvider"]), providers[0][0]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def get_providers(self) -> list[str]:
            return [self._provider, "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            nodes = [node for part in self._session.get_provider_graph_assignment_info() for node in part.get_nodes()]
            at = {node.op_type: "CPUExecutionProvider" if node.op_type in on_processor else self._provider for node in nodes}
            return [SimpleNamespace(ep_name=at[node.op_type], get_nodes=lambda node=node: [node]) for node in nodes]

    monkeypatch.setattr(backend_file.ort, "InferenceSession", Elsewhere)
    monkeypatch.setattr(backend_file.ort, "preload_dlls", lambda: told.append("libraries"), raising=False)
    return told


def test_the_backend_refuses_what_a_gpu_leaves_to_the_processor(graphs, monkeypatch):
    told = with_gpu(monkeypatch, {"Shape", "Neg", "GroupQueryAttention"})
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider leaves GroupQueryAttention to the processor"):
        Decoder(graphs["fused"], 1, "cuda")
    assert told == ["libraries", "session"]


def test_the_backend_takes_shapes_on_the_processor_and_asks_none_of_it(graphs, monkeypatch):
    told = with_gpu(monkeypatch, set(SHAPE_OPERATORS))
    assert Decoder(graphs["fused"], 1, "cuda").session.get_providers()[0] == "CUDAExecutionProvider"
    assert Decoder(graphs["portable"], 1, "cuda").session.get_providers()[0] == "CUDAExecutionProvider"
    monkeypatch.undo()
    monkeypatch.setattr(backend_file, "_demand_placed", lambda *_: pytest.fail("the processor was asked"))
    monkeypatch.setattr(backend_file.ort, "preload_dlls", lambda: pytest.fail("a GPU's libraries were loaded"), raising=False)
    Decoder(graphs["fused"], 1)
    assert told == ["libraries", "session"] * 2


def test_the_backend_stands_alone_and_knows_what_the_gates_know():
    assert backend_file.SHAPE_OPERATORS == SHAPE_OPERATORS
