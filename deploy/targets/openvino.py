"""OpenVINO GenAI on one machine, and OpenVINO Model Server: one folder that both read."""

from __future__ import annotations

import tempfile
from pathlib import Path

from deploy.placing import link_or_copy
from deploy.recipe import PackageSlice
from deploy.targets.target import ModelToServe, Obstacle, Part, Shipment, as_consumer
from deploy.targets.text import write_rendered
from exporters.folder import GATE
from exporters.openvino.files import DETOKENIZER
from exporters.openvino.runtime import EXTRA, OPENVINO, has
from exporters.openvino.stage import export_openvino
from exporters.recipe import ExportSlice
from pipeline.artefacts.sums import names_below
from pipeline.common.files import read_json, write_json

EXPORTED = "openvino"  # folder of a package whose recipe exports in OpenVINO's form


class Openvino:
    """Writes OpenVINO's form of the model, gated: as the recipe wants it, or the one that the run exported."""

    name = "openvino"
    needs: frozenset[Part] = frozenset({"model"})
    brings: tuple[str, ...] = ()
    start = "sh start.sh"

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        if "tokenizer.json" not in candidate.files:
            return Obstacle("it takes text, and the model has no tokenizer.json", "save its tokenizer into the folder first")
        if not has(OPENVINO):
            return Obstacle("openvino, which writes its folder, is not installed", EXTRA.rstrip("."))
        return as_consumer("OpenVINO GenAI", candidate)

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        model = out / recipe.served_name
        exported = shipment.folder / EXPORTED
        with tempfile.TemporaryDirectory(dir=out, prefix=".openvino-") as scratch:
            folder = exported
            if not exported.is_dir():
                folder = Path(scratch) / "export"
                folder.mkdir()
                export_openvino(shipment.model, _as_export(recipe), shipment.options, folder, shipment.events)
            gate = read_json(folder / GATE) if (folder / GATE).is_file() else None
            for name in names_below(folder):
                if name != GATE:
                    (model / name).parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(folder / name, model / name)
        facts = {
            "name": recipe.served_name,
            "precision": recipe.openvino.precision,
            "gate": gate,
            "reads_text": (model / DETOKENIZER).is_file(),
        }
        write_rendered(model / "graph.pbtxt", "openvino.graph.pbtxt", **facts)
        served = {"model_config_list": [], "mediapipe_config_list": [{"name": recipe.served_name, "base_path": recipe.served_name}]}
        write_json(out / "config.json", served)
        for file in ("chat.py", "compose.yaml", "README.md", "start.sh"):
            write_rendered(out / file, f"openvino.{file}", **facts)


def _as_export(recipe: PackageSlice) -> ExportSlice:
    return ExportSlice(format="openvino", precision=recipe.openvino.precision, perplexity_bar=recipe.openvino.perplexity_bar)
