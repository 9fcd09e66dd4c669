"""A real Triton serves what was packaged: the checkpoint's tokens over HTTP and gRPC, and errors that it survives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.recipe import PackageSlice
from deploy.verify import verify
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_tokenizer
from tests.deploy.parts import OPTIONS, made_parts
from tests.servers.packages import greedy, started_from, written
from tests.servers.places import ROOT, environment, free_ports
from tests.tiny import tiny_model

pytestmark = pytest.mark.servers
CLIENT = Path(__file__).with_name("triton_client.py")
PROMPTS = ("The capital of France is", "a", "Water boils at one hundred degrees, and")
ACCEPTED = "unable to find backend library for backend"  # what a server without that backend says of a config that it read


@dataclass(frozen=True)
class Triton:
    """A running server."""

    home: Path
    package: Path
    ports: tuple[int, ...]
    process: Any

    def ask(self, *jobs: tuple[Any, ...]) -> list[Any]:
        """Answers to (what, *arguments), by NVIDIA's client in the server's environment."""
        addresses = {"http": f"127.0.0.1:{self.ports[0]}", "grpc": f"127.0.0.1:{self.ports[1]}"}
        asked = json.dumps(addresses | {"do": [[job[0], job[1:]] for job in jobs]})
        done = subprocess.run([self.home / "bin" / "python", CLIENT], input=asked, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def text(self, prompt: str, tokens: int, over: str = "http", **more: Any) -> Any:
        given = {"text_input": [prompt], "max_tokens": [tokens]} | {name: [value] for name, value in more.items()}
        return self.ask(("text", over, "model", given))[0]

    def http(self, path: str, body: bytes, headers: Mapping[str, str] = {}) -> tuple[int, str]:  # noqa: B006
        """(status, body) of a raw request."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[0]}{path}", body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[2]}/metrics", timeout=60) as answer:
            return answer.read().decode()


@contextmanager
def serving(package: Path, log: Path, *repositories: str) -> Iterator[Triton]:
    home, ports = environment("triton", "tritonserver"), free_ports(3)
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    flags += [*(f"--model-repository={name}" for name in repositories), "--exit-on-error=false", "--strict-readiness=false"]
    ready = f"http://127.0.0.1:{ports[0]}/v2/health/ready"
    with started_from(package, "triton", home, log, ready, flags) as process:
        yield Triton(home, package, tuple(ports), process)


def packaged(root: Path, dense: Path, ffn: tuple[int, ...], profile: Profile, options: RunOptions, **export: Any) -> Path:
    parts = made_parts(root / "parts", dense, ffn, profile, ExportSlice(**export), options)
    return written(root, parts, PackageSlice(targets=("triton",)))


@pytest.fixture(scope="module", params=["fused", "portable"])
def triton(request, tmp_path_factory) -> Iterator[Triton]:
    """The pruned tiny model, whose blocks differ, in either lowering."""
    environment("triton", "tritonserver")
    root = tmp_path_factory.mktemp(request.param)
    dense = tiny_model("llama", root / "dense")
    folder = packaged(root, dense, (64, 32, 96, 16), Profile.DECILM, OPTIONS, lowering=request.param)
    with serving(folder, root / "triton.log", "streaming", "step") as server:
        yield server


def test_both_protocols_give_the_checkpoints_tokens(triton):
    wanted = greedy(triton.package / "model", PROMPTS, 24)
    for over in ("http", "grpc"):
        answers = triton.ask(*(("text", over, "model", {"text_input": [prompt], "max_tokens": [24]}) for prompt in PROMPTS))
        assert [answer["tokens"][0] for answer in answers] == wanted
        tokenizer = load_tokenizer(triton.package / "model")
        assert [answer["text"][0] for answer in answers] == tokenizer.batch_decode(wanted, skip_special_tokens=True)


def test_rows_of_one_request_are_answered_in_order(triton):
    given = {"text_input": list(PROMPTS), "max_tokens": [5, 9, 2]}
    answer = triton.ask(("text", "http", "model", given))[0]
    whole = greedy(triton.package / "model", PROMPTS, 9)
    assert answer["tokens"] == [row[:count] for row, count in zip(whole, (5, 9, 2), strict=True)]
    assert answer["finish"] == ["length"] * 3


@pytest.mark.parametrize("over", ["http", "grpc"])
def test_64_requests_at_once_lose_none(triton, over):
    prompts = [f"Number {number} of {'many ' * (number % 5)}words" for number in range(64)]
    given = [{"text_input": [prompt], "max_tokens": [4 + number % 13]} for number, prompt in enumerate(prompts)]
    found = triton.ask(("parallel", over, "model", given))[0]
    wanted = greedy(triton.package / "model", tuple(prompts), 16)
    assert [answer["tokens"][0] for answer in found["answers"]] == [row[: 4 + number % 13] for number, row in enumerate(wanted)]


def test_a_stream_gives_the_same_tokens_one_by_one(triton):
    responses = triton.ask(("stream", "model-stream", {"text_input": [PROMPTS[0]], "max_tokens": [12]}))[0]
    parts = [response for response in responses if response]
    whole = triton.text(PROMPTS[0], 12)
    assert [token for part in parts for token in part["tokens"][0]] == whole["tokens"][0]
    assert "".join(part["text"][0] for part in parts) == whole["text"][0]
    assert len(parts) == 12
    assert [part["finish"][0] for part in parts] == [""] * 11 + ["length"]


def test_the_benchmarks_own_client_measures_it(triton, tmp_path):
    """``--protocol triton`` counts the tokens that transformers generates, and no request fails."""
    words = tuple(f"word{number}" for number in range(40))
    tokenizer, generated = load_tokenizer(triton.package / "model"), greedy(triton.package / "model", words, 9)
    # An answer without any text is a failure to the client, and random weights give some: those prompts are left out.
    wanted = [(word, ids) for word, ids in zip(words, generated, strict=True) if tokenizer.decode(ids, skip_special_tokens=True)][:8]
    (tmp_path / "text.txt").write_text(" ".join(word for word, _ in wanted))
    out = tmp_path / "served.json"
    asked = ["--protocol", "triton", "--requests", "6", "--concurrency", "2", "--words", "1", "--tokens", "9", "--warm-up", "2"]
    command = [sys.executable, "-m", "benchmarks.studies.serving.load", f"http://127.0.0.1:{triton.ports[0]}", *asked]
    done = subprocess.run(
        [*command, "--text", str(tmp_path / "text.txt"), "--output", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["workload"]["model"] == "model-stream"
    (run,) = record["runs"]
    assert run["failures"] == []
    assert sorted(sample["output_tokens"] for sample in run["samples"]) == sorted(len(ids) for _, ids in wanted[2:])
    for sample in run["samples"]:
        assert 0 < sample["pieces"][0] <= sample["pieces"][-1]
        assert len(sample["pieces"]) <= sample["output_tokens"]


def test_stop_texts_temperature_and_seed(triton):
    whole = triton.text(PROMPTS[2], 30)["text"][0]
    stop = whole[4:6]
    stopped = triton.text(PROMPTS[2], 30, stop=["not in it at all", stop])
    assert stopped["text"][0] == whole[: whole.index(stop)]
    assert stopped["finish"] == ["stop"]
    drawn = [triton.text("a", 20, temperature=2.0, seed=seed)["tokens"][0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


WRONG = {
    "empty": ({"text_input": [""]}, "text_input is empty"),
    "too long": ({"text_input": ["x" * 300]}, "text_input has 300"),
    "no room": ({"text_input": ["x" * 250], "max_tokens": [7]}, "250 tokens and max_tokens is 7; the model has 256"),
    "ten megabytes": ({"text_input": ["x" * 10_000_000]}, "10,000,000 bytes"),
    "not text": ({"text_input": ["\udcff\udcfe"]}, "not UTF-8"),
    "no tokens wanted": ({"text_input": ["a"], "max_tokens": [0]}, "max_tokens is 0"),
    "fewer than none": ({"text_input": ["a"], "max_tokens": [-5]}, "max_tokens is -5"),
    "cold": ({"text_input": ["a"], "temperature": [-1.0]}, "temperature is -1"),
    "no number": ({"text_input": ["a"], "temperature": [float("nan")]}, "temperature is nan"),
    "no seed": ({"text_input": ["a"], "seed": [-1]}, "seed is -1"),
    "many stops": ({"text_input": ["a"], "stop": [["s"] * 17]}, "stop takes 16"),
    "two texts in a row": ({"text_input": [["a", "b"]]}, "text_input"),
    "more rows than a batch": ({"text_input": ["a"] * 9}, "batch-size must be <= 8"),
    "no text": ({"max_tokens": [4]}, "text_input"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_by_the_protocol(triton, name):
    given, sentence = WRONG[name]
    fine = ("text", "http", "model", {"text_input": ["still there"], "max_tokens": [3]})
    wrong = (("text", "http", "model", given), ("text", "grpc", "model", given), ("stream", "model-stream", given))
    before, over_http, over_grpc, streamed, after = triton.ask(fine, *wrong, fine)
    for answer in (over_http, over_grpc):
        assert sentence in answer["error"], answer
        assert answer["status"] in {"400", "StatusCode.INVALID_ARGUMENT"}, answer
    assert sentence in streamed["error"], streamed
    assert len(after["tokens"][0]) == 3
    assert after == before
    assert triton.process.poll() is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/model/infer", b"no json"),
        ("/v2/models/model/infer", b'{"inputs": [{"name": "text_input", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]}'),
        ("/v2/models/model/infer", b'{"inputs": [{"name": "other", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]}'),
        ("/v2/models/model/generate", b'{"text_input": 5}'),
        ("/v2/models/model/generate", b'{"text_input": "a", "max_tokens": "many"}'),
        ("/v2/models/another/generate", b'{"text_input": "a"}'),
    ],
)
def test_raw_nonsense_is_refused(triton, path, body):
    status, said = triton.http(path, body, {"Content-Type": "application/json"})
    assert 400 <= status <= 500  # Triton itself says 500 where a body is no JSON of its kind
    assert json.loads(said)["error"]
    assert triton.http("/v2/models/model/generate", b'{"text_input": "a", "max_tokens": 2}')[0] == 200


@pytest.mark.parametrize("path", ["generate", "infer"])
def test_ten_megabytes_of_json_do_not_end_the_server(triton, path):
    text = "word " * 2_000_000
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    body = {"generate": {"text_input": text}, "infer": {"inputs": [tensor]}}[path]
    status, said = triton.http(f"/v2/models/model/{path}", json.dumps(body).encode())
    assert (status, json.loads(said)["error"]) == (400, "text_input has 10,000,000 bytes; 256 tokens have at most 1,280.")
    assert triton.process.poll() is None
    assert triton.http("/v2/models/model/generate", b'{"text_input": "a", "max_tokens": 2}')[0] == 200


def test_a_request_beside_a_wrong_one_is_answered(triton):
    given = [{"text_input": ["" if number % 2 else "fine"], "max_tokens": [3]} for number in range(16)]
    answers = triton.ask(("parallel", "grpc", "model", given))[0]["answers"]
    assert [("error" in answer) for answer in answers] == [bool(number % 2) for number in range(16)]


def test_a_client_that_leaves_does_not_hold_up_the_others(triton):
    long = {"text_input": ["a"], "max_tokens": [200], "temperature": [1.0], "seed": [3]}
    left, after = triton.ask(("left", "model", long, 0.05), ("text", "grpc", "model", {"text_input": ["b"], "max_tokens": [3]}))
    assert "cancel" in left.lower()
    assert len(after["tokens"][0]) == 3


def test_configs_of_other_backends_are_accepted(triton):
    states = triton.ask(("states",))[0]
    assert states["model"][0] == states["model-stream"][0] == "READY"
    for name, backend in (("model-onnxruntime", "onnxruntime"), ("model-tensorrt", "tensorrt")):
        assert f"{ACCEPTED} '{backend}'" in states[name][1]


def test_tritons_own_definition_reads_every_config(triton):
    paths = sorted((triton.package / "serve" / "triton").glob("*/*/config.pbtxt"))
    answers = triton.ask(*(("parses", path.read_text()) for path in paths))
    assert [answer.get("name") for answer in answers] == [path.parent.name for path in paths]
    broken = paths[0].read_text().replace("max_queue_delay_microseconds", "max_queue_delay_us")
    assert "max_queue_delay_us" in triton.ask(("parses", broken))[0]["error"]


def test_metrics_count_what_was_answered(triton):
    def count() -> float:
        lines = [line for line in triton.metrics().splitlines() if line.startswith('nv_inference_request_success{model="model",')]
        return sum(float(line.split()[-1]) for line in lines)

    before = count()
    triton.text("a", 2)
    assert count() == before + 1


def test_serving_leaves_the_package_as_it_was(triton):
    triton.text("a", 2)
    assert verify(triton.package) == []
    assert triton.ask(("metadata",))[0]["version"] == "2.51.0"


def test_a_config_that_triton_refuses_is_seen(tmp_path, triton):
    """The negative control of the two tests above: what they take for accepted is not said of everything."""
    folder = tmp_path / "serve" / "triton" / "step" / "broken"
    (folder / "1").mkdir(parents=True)
    good = (triton.package / "serve" / "triton" / "step" / "model-onnxruntime" / "config.pbtxt").read_text()
    (tmp_path / "serve" / "triton" / "models").mkdir()
    shutil.copy(triton.package / "serve" / "triton" / "start.sh", tmp_path / "serve" / "triton")
    (folder / "config.pbtxt").write_text(good.replace('"model-onnxruntime"', '"broken"').replace("max_batch_size", "most_rows"))
    with serving(tmp_path, tmp_path / "triton.log", "step") as server:
        assert ACCEPTED not in json.dumps(server.ask(("states",))[0])
    assert 'has no field named "most_rows"' in (tmp_path / "triton.log").read_text()


@pytest.mark.timeout(3600)
def test_the_pruned_smollm2_is_served(smollm2, tmp_path):
    environment("triton", "tritonserver")
    blocks = len(Checkpoint(smollm2).geometry.blocks)
    ffn = tuple(1408 if number % 2 else 1280 for number in range(blocks))
    folder = packaged(tmp_path, smollm2, ffn, Profile.DECILM, RunOptions(dtype="float32"))
    wanted = greedy(folder / "model", PROMPTS, 32)
    with serving(folder, tmp_path / "triton.log") as server:
        for over in ("http", "grpc"):
            answers = server.ask(*(("text", over, "model", {"text_input": [prompt], "max_tokens": [32]}) for prompt in PROMPTS))
            assert [answer["tokens"][0] for answer in answers] == wanted
        given = [{"text_input": [f"{PROMPTS[number % 3]} {number}"], "max_tokens": [8]} for number in range(64)]
        found = server.ask(("parallel", "grpc", "model", given))[0]
        assert [len(answer["tokens"][0]) for answer in found["answers"]] == [8] * 64
        status, said = server.http("/v2/models/model/generate", json.dumps({"text_input": "word " * 2_000_000}).encode())
        assert status == 400, said
        seconds = found["seconds"]
        print(f"64 requests at once, 8 tokens each: {64 / seconds:.1f} requests/s, median wait {np.median(found['waits']):.1f} s")
