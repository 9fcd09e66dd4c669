"""A sweep with invented figures, shaped like a real one, for the tests of the renderings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.trimline.reporting.sample_report import RECIPE
from trimline.reporting.data import BlockRow, Measure, TaskRow
from trimline.sweeps.collect import fronts
from trimline.sweeps.data import PointRow, Speed, SweepData

METHODS, REMOVED = ("cfsp", "flap", "llm_surgeon"), (0.1, 0.2, 0.3, 0.5)
COST = {"cfsp": 1.0, "flap": 1.15, "llm_surgeon": 0.85}
WORKLOADS = (("512/1", "prefill", 0.9), ("128/17", "decode", 0.0176))


def blocks(removed: float, seed: int) -> tuple[BlockRow, ...]:
    draw = np.random.default_rng(seed)
    kept = np.clip(np.round(1536 * (1 - removed) * draw.uniform(0.8, 1.2, 30) / 64) * 64, 64, 1536).astype(int)
    rows = [BlockRow(number, 1536, 3, int(width), 3 - (number % 7 == 0 and removed > 0.4)) for number, width in enumerate(kept)]
    rows[20] = BlockRow(20, 1536, 3, 0 if removed > 0.4 else int(kept[20]), 3)
    return tuple(rows)


def speeds(removed: float, seed: int, verdict: str = "faster") -> tuple[Speed, ...]:
    draw = np.random.default_rng(seed + 100)
    found = []
    for workload, phase, seconds in WORKLOADS:
        ratio = (1 + 0.9 * removed) * draw.uniform(0.98, 1.02)
        interval = Measure(ratio, ratio - 0.02, ratio + 0.02) if removed else None
        control = Measure(1.002, 0.995, 1.009) if removed else None
        found.append(Speed(workload, phase, seconds / ratio, interval, control, verdict if removed else "", "store/benchmark-1"))
    return tuple(found)


def tasks(removed: float) -> Iterator[TaskRow]:
    """One task, which removing more makes worse."""
    dense, pruned = Measure(0.62, error=0.02), Measure(0.62 - removed / 2, error=0.02)
    yield TaskRow("opposites", "acc", 60, dense, pruned, pruned, Measure(-removed / 2, error=0.03), higher_is_better=True)


def point(method: str, removed: float, seed: int) -> PointRow:
    value = 13.9 * float(np.exp(2.2 * COST[method] * removed**1.5))
    return PointRow(
        name=f"method={method},remove={removed}",
        settings={"method": method, "remove": removed},
        perplexity=Measure(value, value * 0.97, value * 1.03, error=0.6),
        window_losses=tuple(float(np.log(value)) + 0.1 * (n % 3 - 1) for n in range(12)),
        parameters=int(134.5e6 - 80e6 * removed),
        decoder_parameters=int(106.2e6 - 80e6 * removed),
        checkpoint_bytes=int(4 * (134.5e6 - 80e6 * removed)),
        speeds=speeds(removed, seed, "not resolved" if seed == 5 else "faster"),
        blocks=blocks(removed, seed),
        tasks=tuple(tasks(removed)) if seed != 6 else (),
        checkpoint=f"store/rebuild-{seed:012d}",
        timed=f"store/export-{seed:012d}",
    )


def sample_sweep() -> SweepData:
    """Twelve points, one of which failed and one of which was not timed."""
    rows = [point(method, removed, number) for number, (method, removed) in enumerate((m, r) for m in METHODS for r in REMOVED)]
    rows[3] = PointRow(rows[3].name, rows[3].settings, failure="The budget <b>cannot</b> be met. Remove less.")
    dense = PointRow(
        "dense", perplexity=Measure(13.88, error=0.57), window_losses=tuple(2.63 + 0.1 * (n % 3 - 1) for n in range(12)),
        parameters=134_515_008, decoder_parameters=106_168_320, checkpoint_bytes=538_060_032, speeds=speeds(0.0, 99),
        blocks=tuple(BlockRow(n, 1536, 3, 1536, 3) for n in range(30)), checkpoint="store/source", timed="store/export-dense",
    )  # fmt: skip
    return SweepData(
        title="quickstart: SmolLM2-135M-Instruct",
        command="trimline sweep recipe.yaml --grid method=cfsp,flap,llm_surgeon --grid remove=0.1,0.2,0.3,0.5 --output runs/sweep",
        model_source="SmolLM2-135M-Instruct",
        recipe=RECIPE,
        grid={"method": list(METHODS), "remove": list(REMOVED)},
        evaluation="some text, 12 windows of 1024 tokens, not overlapping",
        text_sha256="0" * 64,
        window=1024,
        runtime="onnxruntime",
        dense=dense,
        points=tuple(rows),
        fronts=tuple(fronts((dense, *rows))),
        environment={"processor": "An invented processor", "threads": "2", "memory": "24.0 GiB", "GPU": "none", "system": "Linux"},
    )
