"""Packages of a checkpoint, and servers that are started from them as a user does: by their own start.sh."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests
import torch

from deploy.package import PackageParts, package
from deploy.recipe import PackageSlice
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.common.events import Events
from pipeline.live.loading import load_model, load_tokenizer
from tests.deploy.parts import OPTIONS, made_parts
from tests.servers.places import free_ports, started
from tests.tiny import tiny_model

NAME = "shipped"  # what clients call the model
OURS = Path(sys.executable).parent  # where `trimline` lies


def written(root: Path, parts: PackageParts, recipe: PackageSlice) -> Path:
    """The package of some parts, in a folder of ``root``."""
    (root / "package").mkdir()
    package(parts, recipe, root / "package", Events())
    return root / "package"


def tiny_parts(root: Path) -> PackageParts:
    """Of a tiny Llama with four FFN widths."""
    return made_parts(root / "parts", tiny_model("llama", root / "tiny"), (64, 32, 96, 16), Profile.DECILM, ExportSlice(), OPTIONS)


def packaged(root: Path, checkpoint: Path, target: Any, **recipe: Any) -> Path:
    """A package of a checkpoint that is there, without ONNX, for one server; plan and report are those of a tiny model."""
    parts = dataclasses.replace(tiny_parts(root), model=checkpoint, onnx=None)
    return written(root, parts, PackageSlice(targets=(target,), served_name=NAME, onnx=False, **recipe))


@contextlib.contextmanager
def started_from(
    package: Path, target: str, programs: Path, log: Path, ready: str, flags: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The server of ``serve/<target>``, from the moment that ``ready`` answers; its programs are first looked for in ``programs``."""
    known = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    if programs != OURS:
        known.pop("PYTHONPATH", None)  # what it names is for our Python
    with started(["sh", "start.sh", *flags], package / "serve" / target, log, ready, known) as process:
        yield process


@contextlib.contextmanager
def answering(package: Path, target: str, programs: Path, log: Path, *flags: str) -> Iterator[str]:
    """The address of a server with OpenAI's API, which has to live until the end."""
    [port] = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    with started_from(package, target, programs, log, f"{address}/v1/models", ["--port", str(port), *flags]) as process:
        yield address
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-2000:]


def completion(address: str, prompt: Any, tokens: Any = 24, **more: Any) -> requests.Response:
    """A greedy completion."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0} | more
    return requests.post(f"{address}/v1/completions", json=body, timeout=600)


def greedy(checkpoint: Path, prompts: Sequence[str], tokens: int) -> list[list[int]]:
    """What transformers generates from a checkpoint in fp32."""
    loaded, tokenizer = load_model(checkpoint, dtype=torch.float32), load_tokenizer(checkpoint)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            out = loaded.generate(**ids, max_new_tokens=tokens, do_sample=False)
        found.append(out[0, ids["input_ids"].shape[1] :].tolist())
    return found


def says_what_the_checkpoint_says(address: str, checkpoint: Path, prompts: Sequence[str], tokens: int, **more: Any) -> None:
    """The server knows the model by the package's name, and continues each prompt as transformers does."""
    models = requests.get(f"{address}/v1/models", timeout=60).json()["data"]
    assert [model["id"] for model in models] == [NAME]
    wanted = load_tokenizer(checkpoint).batch_decode(greedy(checkpoint, prompts, tokens), skip_special_tokens=True)
    for prompt, text in zip(prompts, wanted, strict=True):
        answer = completion(address, prompt, tokens, **more)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == text
