"""``trimline new``: every family, every consumer, every aim gives a recipe that a run takes, or a sentence that says why not."""

from __future__ import annotations

import math
import shutil
from itertools import cycle
from pathlib import Path

import pytest
import yaml

import trimline
from exporters.openvino.runtime import has
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions
from pipeline.rebuild.consumers import consumers
from pipeline.rebuild.profiles import check_profile
from pipeline.sources.config import NamedModel, named_model
from pipeline.sources.recipe import ModelSlice
from tests.end_to_end.scenario import OPTIONS, assert_refused
from tests.end_to_end.scenario import trimline as called
from tests.tiny import TINY_FAMILIES, tiny_model
from trimline.recipe import read_recipe
from trimline.stages.preflight import preflight
from trimline.starting.choosing import choose
from trimline.starting.clients import CLIENTS, SERVERS
from trimline.starting.purpose import Footprint, Purpose
from trimline.starting.shipped import shipped_recipes
from trimline.starting.writing import quoted, slug

AIMS = ({"speedup": 1.3}, {"remove": 0.3}, {"fit": None}, {})
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of every family."""
    folder = tmp_path_factory.mktemp("models")
    for family in TINY_FAMILIES:
        tiny_model(family, folder / family)
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that one stands in, beside the models."""
    for family in TINY_FAMILIES:
        (tmp_path / family).symlink_to(models / family)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def takes(model: Path, consumer: str) -> int:
    """Bytes of the dense model as its consumer reads it, counted tensor by tensor: fp32 but for a GGUF, and 256 tokens in the cache."""
    checkpoint = Checkpoint(model)
    numbers = sum(math.prod(shape) for _, shape in checkpoint.geometry.tensors())
    cache = sum(2 * block.kv_groups * checkpoint.geometry.head_dim for block in checkpoint.geometry.blocks) * 256
    return (numbers + cache) * (2 if consumer == "llama.cpp" else 4)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_consumer_gets_a_recipe_that_a_run_takes_or_a_reason(family: str, here: Path) -> None:
    refused: dict[str, trimline.TrimlineError] = {}
    aims = cycle(AIMS)
    for consumer in CLIENTS:
        if consumer == "openvino" and not has("openvino_genai"):  # then it says that it is not installed
            continue
        asked = {key: value or int(0.9 * takes(here / family, consumer)) for key, value in next(aims).items()}
        try:
            made = trimline.new(family, here / f"{consumer}.yaml", consumers=[consumer], **asked)
        except trimline.TrimlineError as error:
            refused[consumer] = error
            continue
        recipe = read_recipe(made.path)
        assert recipe == made.recipe
        preflight(recipe, RunOptions(), Checkpoint(here / family))
        assert recipe.package.targets == ((consumer,) if consumer in SERVERS else ())
        assert any(CLIENTS[consumer].consumer in reason for reason in made.reasons if reason.startswith("Shape"))
    assert [name for name, error in refused.items() if CLIENTS[name].consumer not in error.problem or not error.remedy] == []
    unsupported = {"mistral": ["tensorrt-edge-llm"], "qwen3": ["optimum"], "phi3": ["tensorrt-edge-llm"]}
    assert list(refused) == unsupported.get(family, ["llama.cpp", "tensorrt-llm", "tensorrt-edge-llm"] if family == "opt" else [])


@pytest.mark.parametrize(("family", "consumer"), [("qwen3", "llama.cpp"), ("opt", "onnxruntime")])
def test_what_the_recipe_makes_is_what_its_consumer_loads(family: str, consumer: str, here: Path) -> None:
    made = trimline.new(family, remove=0.3, consumers=[consumer])
    values = yaml.safe_load(made.path.read_text())
    values["prune"]["calibration"] = {"windows": 4, "window": 32}
    dense = Checkpoint(here / family)
    result = trimline.prune(values, here / "plan", options=OPTIONS).selection.geometry(dense.geometry)
    assert 1 - result.decoder_parameters() / dense.geometry.decoder_parameters() == pytest.approx(0.3, abs=0.03)
    profile = made.recipe.rebuild.profile
    check_profile(dense.geometry.family, dense.geometry, result, profile, dense.config)
    assert {row.consumer: row.loads for row in consumers(result, profile, dense.config)}[CLIENTS[consumer].consumer]


def test_every_row_of_the_table_of_consumers_has_a_name(models: Path) -> None:
    checkpoint = Checkpoint(models / "llama")
    rows = {row.consumer for row in consumers(checkpoint.geometry, Profile.UNIFORM, checkpoint.config)}
    assert rows == {client.consumer for client in CLIENTS.values()}
    assert set(SERVERS) <= set(CLIENTS)


def test_nothing_is_promised_of_a_server_that_nobody_has_tried(here: Path) -> None:
    tiny_model("gemma3_text", here / "gemma3_text")
    with pytest.raises(trimline.TrimlineError, match="vLLM is not known to load this model once it is pruned: nobody has looked"):
        trimline.new("gemma3_text", consumers=["vllm"])
    made = trimline.new("gemma3_text", here / "made.yaml", consumers=["llama.cpp"])
    assert (
        "loads in transformers (stock), transformers (shipped file), ONNX Runtime, onnxruntime-genai, OpenVINO GenAI, llama.cpp."
        in " ".join(made.reasons)
    )


@pytest.mark.parametrize("family", ["lfm2", "youtu", "deepseek_v3"])
def test_a_model_of_which_no_graph_is_made_gets_a_recipe_without_one(family: str, here: Path) -> None:
    tiny_model(family, here / family)
    made = trimline.new(family, remove=0.2)
    assert read_recipe(made.path) == made.recipe
    preflight(made.recipe, RunOptions(), Checkpoint(here / family))
    assert (made.recipe.export, made.recipe.benchmark.runtime, made.recipe.package.onnx) == (None, "torch", False)
    assert any(reason.startswith("Graph: none (export: null), since a graph hands keys and values") for reason in made.reasons)
    assert trimline.new(family, here / "hub.yaml", consumers=["hub"]).recipe.package.targets == ("hub",)
    for consumer, said in (
        ("vllm", "vLLM is not known to load"),
        ("triton", "ONNX Runtime does not load"),
        ("llama.cpp", "llama.cpp does not load"),
    ):
        with pytest.raises(trimline.TrimlineError, match=said):
            trimline.new(family, here / "refused.yaml", consumers=[consumer])
    with pytest.raises(trimline.TrimlineError, match="blocks of other kinds|makes deepseek_v3 no faster") as slow:
        trimline.new(family, here / "refused.yaml", speedup=1.2)
    assert "--fit" in slow.value.remedy
    assert not (here / "refused.yaml").exists()


def test_fewer_heads_where_ffn_channels_are_not_enough(here: Path) -> None:
    free = trimline.new("llama", here / "free.yaml", speedup=2.5).recipe
    assert (free.rebuild.profile, free.prune.steps[0].method) == ("free", "trimline")
    even = trimline.new("llama", here / "even.yaml", remove=0.7, consumers=["vllm"]).recipe
    step = even.prune.steps[0]
    assert (even.rebuild.profile, step.method, step.allocation) == ("uniform", "cfsp_extended", "uniform")
    assert {space: budget.keep for space, budget in step.budget.items()} == {"ffn": None, "kv_group": 1}


def test_what_fits_is_counted_in_the_form_that_is_served(here: Path) -> None:
    for consumer in ("onnxruntime", "vllm", "llama.cpp"):
        whole = takes(here / "llama", consumer)
        step = trimline.new("llama", here / f"{consumer}.yaml", fit=int(0.75 * whole), consumers=[consumer]).recipe.prune.steps[0]
        assert step.target.memory == pytest.approx(0.75, abs=1e-5)
        assert step.target.memory <= int(0.75 * whole) / whole
        assert step.target.context == 256  # the model has no more positions
    model = named_model(ModelSlice(source="llama"))
    bf16 = Footprint.of([CLIENTS["vllm"]], {**model.config, "dtype": "bfloat16"}, 4096)
    both = Footprint.of([CLIENTS["vllm"], CLIENTS["triton"]], {**model.config, "dtype": "bfloat16"}, 10**6)
    assert (bf16.dtype, both.dtype, both.context) == ("bfloat16", "float32", 4096)
    assert both.bytes(model.geometry) == 2 * bf16.bytes(model.geometry)


def test_a_large_model_gets_the_method_without_gradients(models: Path) -> None:
    small = named_model(ModelSlice(source=str(models / "llama")))
    config = {**small.config, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "head_dim": 128}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32}
    large = NamedModel("large", "hub", config, small.files)
    assert choose(small, Purpose(remove=0.2), []).method == "trimline"
    assert choose(large, Purpose(remove=0.2), []).method == "cfsp"


def test_every_key_is_explained_in_a_few_words(here: Path) -> None:
    for number, aim in enumerate(({"speedup": 1.3, "fit": "700KiB"}, {"remove": 0.3}, {"remove": 0.7})):
        names = ["vllm", "tensorrt"] if number < 2 else ["vllm"]
        text = trimline.new("llama", here / f"{number}.yaml", consumers=names, **aim).path.read_text()
        for line in text.splitlines():
            key, mark, comment = line.rpartition(" # ")
            opens = line.rstrip().endswith(":")
            assert opens or line.startswith("#") or (mark and 2 <= len(comment.split()) <= 40), line
            assert opens or line.startswith("#") or key.strip(), line


def test_the_command_says_what_it_chose(here: Path) -> None:
    done = called("new", "llama", "--speedup", 1.4, "--for", "vllm")
    assert done.code == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        *("Model", "Aim", "What goes", "Shape", "Speed is that of ONNX Runtime on this machine", "What to expect", "Written", "Next"),
    ]
    assert "Next: trimline run llama.yaml --output runs/llama" in done.stdout
    answer = called("new", "llama", "--remove", 0.3, "-o", "other.yaml", "--json").answer
    assert (answer["recipe"], answer["values"]["rebuild"]["profile"]) == ("other.yaml", "decilm")
    assert "since none was given" in called("new", "qwen2").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("llama", "--speedup", 50), ("--speedup 50", "FFN channels and KV groups", "less than")),
        (("llama", "--remove", 0.95), ("--remove 0.95", "75.0%", "0.75 at most")),
        (("llama", "--fit", "8GiB"), ("fits into 8.00 GiB as it is", "the ONNX graph in float32")),
        (("llama", "--fit", "1KB"), ("can give", "cache of 256 tokens")),
        (("llama", "--fit", "much"), ("'much' is no amount",)),
        (("llama", "--speedup", 1), ("--speedup 1", "1.4")),
        (("llama", "--remove", 1.5), ("--remove 1.5", "0.3")),
        (("llama", "--remove", 0.2, "--speedup", 1.2), ("--remove says what goes",)),
        (("llama", "--for", "vlm"), ("'vlm'", "Did you mean 'vllm'?")),
        (("llama", "--for", "browser"), ("'browser'", "--for takes onnxruntime")),
        (("opt", "--for", "llama.cpp"), ("llama.cpp has no architecture for opt",)),
        (("bare", "--for", "triton"), ("tokenizer.json",)),
        (("nothing",), ("There is no model 'nothing'",)),
        ((), ("No model is named",)),
        (("llama", "--like", "quickstrat"), ("Did you mean 'quickstart'?",)),
        (("llama", "--like", "quickstart", "--remove", 0.2), ("--like",)),
        (("mistral", "--output", "none/r.yaml"), ("There is no folder none",)),
        (("llama", "--output", "there.yaml"), ("there.yaml is there already", "--output")),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(arguments: tuple[object, ...], words: tuple[str, ...], here: Path) -> None:
    shutil.copytree(here / "llama", here / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    (here / "there.yaml").write_text("mine")
    assert_refused(called("new", *arguments), *words)
    assert [path.name for path in here.glob("*.yaml")] == ["there.yaml"]
    assert (here / "there.yaml").read_text() == "mine"


def test_recipes_that_ship_are_those_of_the_repository(here: Path) -> None:
    assert shipped_recipes() == {path.stem: path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    listed = called("new", "--list").stdout
    assert all(f"\n{name} " in f"\n{listed}" for name in shipped_recipes())
    tiny_model("llama", here / "long", max_position_embeddings=1024)  # what the recipes time fits
    for name in ("quickstart", "faster", "wanda", "quickstart-int4"):
        made = trimline.new("long", here / f"{name}.yaml", like=name).recipe
        original = read_recipe(ROOT / "recipes" / f"{name}.yaml")
        assert (made.prune, made.rebuild, made.export) == (original.prune, original.rebuild, original.export)
        assert (made.model.source, made.package.licence, made.package.base_model) == ("long", None, None)


@pytest.mark.parametrize(("name", "is_called"), [("Qwen2.5 0.5B", "qwen2-5-0-5b"), ("7b", "m-7b"), ("ü", "m"), ("a" * 60, "a" * 40)])
def test_names_that_servers_take(name: str, is_called: str) -> None:
    assert slug(name) == is_called
    for odd in (name, "no", "0x1", "a: b", "~/x # y", "../models/a"):
        assert yaml.safe_load(f"model: {quoted(odd)}  # a comment") == {"model": odd}


def test_a_folder_of_any_name_gives_a_recipe_that_names_it(here: Path) -> None:
    odd = "a: 'b' # \"c\"\nd"
    (here / odd).symlink_to(here / "llama")
    made = called("new", odd, "--json").answer
    assert read_recipe(here / made["recipe"]).model.source == odd
    assert (made["recipe"], made["next"]) == ("a-b-c-d.yaml", "trimline run a-b-c-d.yaml --output runs/a-b-c-d")


def test_of_a_hub_id_only_the_config_is_fetched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Entry:
        def __init__(self, name: str) -> None:
            self.rfilename = name

    entries = [Entry(path.name) for path in (here / "llama").iterdir()]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: type("Info", (), {"siblings": entries}))
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file, *, revision, local_dir: shutil.copy(here / "llama" / file, local_dir)
    )
    made = trimline.new("org/name", remove=0.2, consumers=["triton"])
    assert (made.path, made.recipe.package.base_model) == (Path("name.yaml"), "org/name")
    entries[:] = [Entry("config.json"), Entry("pytorch_model.bin")]
    with pytest.raises(trimline.TrimlineError, match="no safetensors file"):
        trimline.new("org/name", here / "again.yaml")
