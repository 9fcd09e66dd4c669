"""What a stranger can hand in, kind by kind: how a valid thing is damaged, and the calls that open it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from deploy.add import add_targets
from pipeline.artefacts.sums import SUMS, file_digest, write_sums
from pipeline.checkpoints.checkpoint import INDEX, Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.plan.plan import Plan
from pipeline.sources import model as model_source
from pipeline.sources.recipe import ModelSlice, TextSource
from pipeline.sources.text import load_text
from pipeline.sources.windows import tokenize
from tests.fuzz import mutate
from tests.fuzz.material import Material
from trimline import api
from trimline.inspect import inspect_folder, inspect_sparsity, render_inspection, render_sparsity
from trimline.recipe import parse_recipe
from trimline.verify.folders import verify_folder

OPTIONS = RunOptions(threads=1, dtype="float32")
QUIET = Events()
NOWHERE = Console(file=io.StringIO(), width=120)
WITNESS = "witness"
EVIL = f"import pathlib; pathlib.Path(__file__).with_name({WITNESS!r}).write_text('ran')\n"
Opening = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        damage: writes a damaged input into an empty folder and returns what opens it, given an output folder.
        suite, nightly: how many cases each form has.
    """

    damage: Callable[[random.Random, Material, Path], Opening]
    suite: int
    nightly: int


def recipe(draw: random.Random, material: Material, room: Path) -> Opening:
    """A recipe's values, or its text."""
    given = yaml.safe_load(draw.choice(material.recipes))
    how = draw.randrange(8)
    if how < 5:
        text = yaml.safe_dump(mutate.document(draw, given), allow_unicode=True)
    elif how == 5:
        text = mutate.raw(draw, draw.choice(material.recipes).encode()).decode("utf-8", "replace")
    elif how == 6:
        text = draw.choice(_YAML_TRICKS)(draw)
    else:
        text = draw.choice(material.recipes) + draw.choice(_YAML_TRICKS)(draw)
    return lambda out: parse_recipe(text)


_YAML_TRICKS: tuple[Callable[[random.Random], str], ...] = (
    lambda draw: (
        "a: &a [x, x, x, x]\n" + "".join(f"b{n}: &b{n} [*{'a' if not n else f'b{n - 1}'}, *a]\n" for n in range(draw.randint(1, 40)))
    ),
    lambda draw: "&a [*a]",
    lambda draw: "prune: &p\n  <<: *p\n",
    lambda draw: "name: &n x\n<<: {name: y}\n",
    lambda draw: draw.choice("[{") * draw.randint(1, 20_000),
    lambda draw: "a: " * draw.randint(1, 500),
    lambda draw: "- " * draw.randint(1, 5000),
    lambda draw: "? " * draw.randint(1, 500),
    lambda draw: f"name: !!python/object/apply:os.system ['touch {WITNESS}']",
    lambda draw: (
        f"name: !!{draw.choice(('binary', 'timestamp', 'set', 'omap', 'pairs', 'int', 'float', 'null', 'map'))} {draw.choice(mutate.TEXTS)!r}"
    ),
    lambda draw: "prune: {steps: [{budget: {ffn: {remove: 0." + "1" * draw.randint(1, 9000) + "}}}]}",
    lambda draw: "prune: {calibration: {windows: " + "9" * draw.randint(1, 9000) + "}, steps: [{budget: {ffn: {remove: 0.5}}}]}",
    lambda draw: "name: 0x" + "f" * draw.randint(1, 5000),
    lambda draw: "name: " + ":".join(["59"] * draw.randint(2, 3000)),
    lambda draw: "---\nname: a\n---\nname: b\n",
    lambda draw: "%YAML 9.9\n---\nname: a\n",
    lambda draw: "".join(chr(draw.choice((0, 7, 0x85, 0xFEFF, 0x2028, 0xD7FF, 0x1F600))) for _ in range(20)),
    lambda draw: "name: |\n" + " x\n" * 5000 + "\t",
    lambda draw: "'" * draw.randint(1, 99),
)


def config(draw: random.Random, material: Material, room: Path) -> Opening:
    """config.json of a stock checkpoint, or of one with uneven blocks and its modelling files."""
    folder = _copied(draw.choice((material.dense, material.dense, material.uneven)), room / "model")
    given = json.loads((folder / "config.json").read_text())
    _replace(folder / "config.json", mutate.as_json(draw, mutate.document(draw, given)))
    return _opened_as_model(draw, folder, load=True)


def weights(draw: random.Random, material: Material, room: Path) -> Opening:
    """The safetensors file of a checkpoint."""
    folder = _copied(material.dense, room / "model")
    _replace(folder / "model.safetensors", mutate.safetensors(draw, (material.dense / "model.safetensors").read_bytes()))
    return _opened_as_model(draw, folder, load=draw.random() < 0.2)


def index(draw: random.Random, material: Material, room: Path) -> Opening:
    """The index of a checkpoint in shards: names that lead elsewhere, links, shards that are missing or doubled."""
    folder = _copied(material.sharded, room / "model")
    (room / "secret.safetensors").write_bytes((material.dense / "model.safetensors").read_bytes())
    given = json.loads((folder / INDEX).read_text())
    shards, how = sorted(set(given["weight_map"].values())), draw.randrange(6)
    if how < 2:
        given = mutate.document(draw, given)
    elif how == 2:
        name = draw.choice(list(given["weight_map"]))
        given["weight_map"][name] = draw.choice(
            ("../secret.safetensors", str(room / "secret.safetensors"), "a/../../secret.safetensors", "..", "")
        )
    elif how == 3:
        (folder / shards[0]).unlink()
        (folder / shards[0]).symlink_to(
            draw.choice((room / "secret.safetensors", Path("/etc/passwd"), Path("/dev/zero"), folder, Path(shards[0])))
        )
    elif how == 4:
        given["weight_map"] = dict.fromkeys(given["weight_map"], draw.choice(shards))
    _replace(folder / INDEX, mutate.as_json(draw, given))
    return _opened_as_model(draw, folder, load=draw.random() < 0.2)


def tokenizer(draw: random.Random, material: Material, room: Path) -> Opening:
    """The files around the tokenizer; what opens still splits a text."""
    folder = _copied(draw.choice((material.dense, material.uneven)), room / "model")
    name = draw.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"))
    if draw.random() < 0.15:
        extra = draw.choice(
            ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "tokenizer.model")
        )
        _replace(folder / extra, draw.choice((b"{}", b"[]", b"\xff", b"{% for x in y %}", mutate.as_json(draw, mutate.value(draw)))))
    given = json.loads((folder / name).read_text())
    _replace(folder / name, mutate.as_json(draw, mutate.document(draw, given)))

    def opened(out: Path) -> None:
        tokenize(load_tokenizer(folder), "A sentence, of 12 words; naïve — and more.\n")

    return opened


def gguf(draw: random.Random, material: Material, room: Path) -> Opening:
    """A GGUF file: counts, offsets, types and strings that lie."""
    path = room / "model.gguf"
    path.write_bytes(mutate.raw(draw, material.gguf.read_bytes(), head=draw.choice((32, 200, material.gguf_head))))

    def opened(out: Path) -> None:
        out.mkdir()
        named = ModelSlice(source=str(path))
        model_source.identify(named)
        model_source.source(named, OPTIONS, out, QUIET)

    return opened


def plan(draw: random.Random, material: Material, room: Path) -> Opening:
    """plan.json or the tensors beside it."""
    folder = _copied(material.plan, room / "plan")
    if draw.random() < 0.7:
        given = json.loads((folder / "plan.json").read_text())
        changed = mutate.document(draw, given)
        if draw.random() < 0.3 and isinstance(changed, dict):
            changed[draw.choice(("blocks", "ffn", "kv_groups", "residual"))] = draw.choice(_RANGES)
        _replace(folder / "plan.json", mutate.as_json(draw, changed))
    else:
        name = draw.choice(("updates.safetensors", "scores.safetensors"))
        _replace(folder / name, mutate.safetensors(draw, (folder / name).read_bytes()))

    def opened(out: Path) -> None:
        Plan.read(folder)
        shown(folder, draw.choice((None, material.dense)))
        api.rebuild(material.dense, folder, out, profile="free", options=OPTIONS)

    return opened


_RANGES: tuple[Any, ...] = (
    "0-16777215 " * 300, "5 4 3", "0 0 0", "0-99999999999999999999", "-1", "0--1", "0-1-2", "١-٢", "0-1, 3", ["0-16777215"] * 300, ["0", "0"], "",
    [], [[]], ["0-3"] * 100_000, "1e3",
)  # fmt: skip


def package(draw: random.Random, material: Material, room: Path) -> Opening:
    """Any file of a package."""
    folder = _copied(material.package, room / "package")
    name = draw.choice(("manifest.json", "manifest.json", "recipe.yaml", "model/config.json", "plan.json", "README.md", "run.json", SUMS))
    path = folder / name
    if path.suffix == ".json":
        _replace(path, mutate.as_json(draw, mutate.document(draw, json.loads(path.read_text()))))
    else:
        _replace(
            path,
            draw.choice((mutate.raw(draw, path.read_bytes()), _YAML_TRICKS[0](draw).encode(), b"package: [1]\n", b"- a\n", b"package: *x")),
        )
    if draw.random() < 0.5 and name not in ("manifest.json", SUMS):
        _resum(folder, name)

    quick = draw.random() < 0.8

    def opened(out: Path) -> None:
        verify_folder(folder, quick=quick, options=OPTIONS, events=QUIET)
        shown(folder)
        out.mkdir()
        add_targets(folder, ["vllm"], OPTIONS, out, QUIET)

    return opened


def run(draw: random.Random, material: Material, room: Path) -> Opening:
    """The records of a run's output folder, with their sums mended."""
    folder = Path(shutil.copytree(material.run, room / "run", copy_function=os.link))
    path = draw.choice(sorted(path for path in folder.rglob("*.json") if path.name not in ("tokenizer.json", "tokenizer_config.json")))
    _replace(path, mutate.as_json(draw, mutate.document(draw, json.loads(path.read_text()))))
    (path.parent / SUMS).unlink()
    write_sums(path.parent)
    return lambda out: verify_folder(folder, options=OPTIONS, events=QUIET)


def onnx(draw: random.Random, material: Material, room: Path) -> Opening:
    """The graph, its weights, or the files that onnxruntime-genai reads."""
    folder = _copied(material.onnx, room / "onnx")
    name = draw.choice(("model.onnx", "model.onnx", "model.onnx", "model.onnx.data"))
    path = folder / name
    if draw.random() < 0.2:
        content = path.read_bytes().replace(
            b"model.onnx.data", draw.choice((b"../../etc/pass", b"/etc/passwd/../", b"model.onnx.dat_", b"/dev/zero//////")).ljust(15, b"/")
        )
        _replace(path, content)
    else:
        _replace(path, mutate.raw(draw, path.read_bytes(), head=3000 if draw.random() < 0.3 else 0))

    def opened(out: Path) -> None:
        shown(folder)
        listed(folder)

    return opened


def text(draw: random.Random, material: Material, room: Path) -> Opening:
    """A text to calibrate on."""
    suffix = draw.choice((".txt", ".jsonl", ".parquet"))
    path = room / f"text{suffix}"
    path.write_bytes(mutate.raw(draw, (material.texts / f"text{suffix}").read_bytes(), head=draw.choice((0, 64))))
    named = TextSource(source=str(path), column=draw.choice(("text", "text", "number", "", "\x00")))
    return lambda out: load_text(named, "calibration")


def code(draw: random.Random, material: Material, room: Path) -> Opening:
    """Python files in a checkpoint, named in every place where transformers looks for such names. None may run."""
    folder = _copied(draw.choice((material.dense, material.uneven)), room / "model")
    for name in draw.sample(
        ("evil.py", "modeling_decilm.py", "configuration_decilm.py", "custom_generate/generate.py", "tokenization_evil.py"), 3
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        _replace(folder / name, EVIL.encode())
    named = draw.choice(("evil.E", "somebody/else--evil.E", ["evil.E", None], "modeling_decilm.DeciLMForCausalLM"))
    place = draw.choice(("config.json", "config.json", "tokenizer_config.json", "generation_config.json"))
    given = json.loads((folder / place).read_text())
    keys = draw.sample(("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer", "AutoProcessor"), 2)
    given["auto_map"] = draw.choice((dict.fromkeys(keys, named), {"AutoTokenizer": named}, named))
    if draw.random() < 0.3:
        given |= {
            "custom_generate": "evil",
            "tokenizer_class": "EvilTokenizer",
            "custom_pipelines": {"text-generation": {"impl": "evil.E"}},
        }
    _replace(folder / place, json.dumps(given).encode())
    opened = _opened_as_model(draw, folder, load=True)

    def watched(out: Path) -> None:
        try:
            opened(out)
        finally:
            ran = [str(path) for path in room.rglob(WITNESS)]
            assert not ran, f"code of the checkpoint ran: {ran}"

    return watched


def links(draw: random.Random, material: Material, room: Path) -> Opening:
    """Files of a checkpoint that are links, folders, pipes or devices."""
    folder = _copied(draw.choice((material.dense, material.uneven)), room / "model")
    (room / "secret").write_text('{"secret": 1}')
    path = folder / draw.choice(
        (*sorted(path.name for path in material.dense.iterdir()), "LICENSE", "chat_template.jinja", "more.safetensors")
    )
    path.unlink(missing_ok=True)
    how = draw.randrange(5)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.mkdir()
    else:
        targets = (room / "secret", Path("/dev/zero"), Path("/dev/stdin"), Path("/proc/self/mem"), Path(path.name), folder, Path("nowhere"))
        path.symlink_to(draw.choice((*targets, Path("../secret"), Path("config.json"))))
    return _opened_as_model(draw, folder, load=True)


KINDS: dict[str, Kind] = {
    "recipe": Kind(recipe, 130, 3500),
    "config": Kind(config, 80, 1300),
    "weights": Kind(weights, 80, 1500),
    "index": Kind(index, 40, 600),
    "tokenizer": Kind(tokenizer, 40, 800),
    "gguf": Kind(gguf, 30, 600),
    "plan": Kind(plan, 30, 500),
    "package": Kind(package, 20, 400),
    "run": Kind(run, 10, 200),
    "onnx": Kind(onnx, 30, 500),
    "text": Kind(text, 30, 600),
    "links": Kind(links, 20, 300),
    "code": Kind(code, 20, 300),
}


def _opened_as_model(draw: random.Random, folder: Path, *, load: bool) -> Opening:
    """What verbs do with a checkpoint folder: identify, check every tensor, inspect; with ``load``, transformers opens it too."""

    def opened(out: Path) -> None:
        out.mkdir()
        named = ModelSlice(source=str(folder))
        model_source.identify(named)
        first = draw.randrange(3)
        if first == 0:
            shown(folder)
        if load and first == 1:
            load_model(folder)
        if load and first == 2:
            tokenize(load_tokenizer(folder), "A sentence.")
        model_source.source(named, OPTIONS, out, QUIET)
        shown(folder)
        listed(folder)
        Checkpoint(folder).geometry.decoder_flops(512)
        if load:
            load_tokenizer(folder)
            load_model(folder)

    return opened


def shown(folder: Path, source: Path | None = None) -> None:
    """``trimline inspect``, with its tables and its JSON."""
    inspection = inspect_folder(folder, source)
    render_inspection(inspection, NOWHERE)
    json.dumps(asdict(inspection), default=str, allow_nan=False)


def listed(folder: Path) -> None:
    """``trimline inspect --sparsity``, likewise."""
    weights = inspect_sparsity(folder)
    render_sparsity(weights, NOWHERE)
    json.dumps([weight.as_record() for weight in weights], default=str, allow_nan=False)


def _copied(source: Path, target: Path) -> Path:
    """Hard links, since a case replaces the files that it changes."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _resum(folder: Path, name: str) -> None:
    """The sums of a changed file, so that what is behind the sums is reached."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] |= {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
    _replace(folder / "manifest.json", json.dumps(manifest).encode())
    (folder / SUMS).unlink()  # a hard link
    write_sums(folder)
