"""A report with invented figures, shaped like a real run, for the tests of the renderings."""

from __future__ import annotations

import numpy as np

from trimline.reporting import (
    BlockRow,
    ConsumerRow,
    GateRow,
    Measure,
    ModelRow,
    Removed,
    ReportData,
    SpeedPoint,
    StageTime,
    TextRow,
    WorkloadRow,
)

RECIPE = """title: invented, for tests
prune:
  steps:
    - method: cfsp
      budget: {ffn: {remove: 0.5}}
      compensation: least_squares
rebuild: {profile: decilm}
"""


def blocks(count: int = 30, without_ffn: int = 20) -> tuple[BlockRow, ...]:
    generator = np.random.default_rng(7)
    importance = 0.06 + 0.2 * np.exp(-np.arange(count) / 3) + generator.uniform(0, 0.05, count)
    widths = np.clip(np.round(importance / importance.mean() * 768 / 64) * 64, 128, 1536).astype(int)
    rows = [BlockRow(i, 1536, 3, int(widths[i]), 3, float(importance[i])) for i in range(count)]
    rows[without_ffn] = BlockRow(without_ffn, 1536, 3, 0, 2, 0.041)
    return tuple(rows)


def timed(name: str, phase: str, tokens: int, past: int, seconds: float, ratio: float, verdict: str) -> WorkloadRow:
    generator = np.random.default_rng(tokens + past)
    dense = tuple(float(v) for v in seconds * (1 + generator.gamma(2.0, 0.02, 120)))
    pruned = tuple(float(v) for v in seconds / ratio * (1 + generator.gamma(2.0, 0.02, 120)))
    middle, smaller = float(np.median(dense)), float(np.median(pruned))
    return WorkloadRow(
        name=name,
        phase=phase,  # type: ignore[arg-type]
        tokens=tokens,
        past=past,
        dense=Measure(middle),
        pruned=Measure(smaller),
        dense_samples=dense,
        pruned_samples=pruned,
        speedup=Measure(middle / smaller, middle / smaller - 0.02, middle / smaller + 0.02),
        control=Measure(1.003, 0.994, 1.012),
        allowed=1.42,
        realised_gain=Measure(middle / smaller / 1.42, middle / smaller / 1.42 - 0.014, middle / smaller / 1.42 + 0.014),
        verdict=verdict,
    )


def sample() -> ReportData:
    dense = ModelRow("dense", "Invented-135M", 134_515_008, 106_168_320, 237_109_248, 538_090_408, 540_000_000, Measure(25.94, error=0.41))
    pruned = ModelRow("pruned", "Invented-135M, FFN −50 %", 94_701_888, 66_355_200, 157_483_008, 378_840_000, 380_600_000)
    measured = {"perplexity": Measure(54.02, error=0.97), "peak_memory_bytes": 611_000_000, "cold_start_seconds": 0.71}
    pruned = ModelRow(**(vars(pruned) | measured))
    dense = ModelRow(**(vars(dense) | {"peak_memory_bytes": 842_000_000, "cold_start_seconds": 0.94}))
    return ReportData(
        title="Invented-135M at half of its FFN channels",
        command="trimline run recipes/quickstart.yaml --threads 2",
        model_source="Invented-135M-Instruct",
        recipe=RECIPE,
        models=(dense, pruned),
        removed=Removed(0.5, 0.011, 0.0, 0.375, 0.336, 0.296),
        blocks=blocks(),
        importance_name="angular distance between a block's input and output",
        evaluation="invented prose, evaluation half; 16 windows of 1024 tokens, stride 1024",
        workloads=(
            timed("512 tokens, nothing cached", "prefill", 512, 0, 0.482, 1.31, "faster"),
            timed("1 token after 128", "decode", 1, 128, 0.0142, 1.38, "faster"),
            timed("1 token after 1024", "decode", 1, 1024, 0.0171, 1.01, "not resolved: the control left 1 ± 0.02"),
        ),
        decode_points=(
            SpeedPoint("Invented-135M", 25.94, 68.1),
            SpeedPoint("CFSP −30 %", 38.3, 80.2),
            SpeedPoint("CFSP −50 %", 54.02, 93.9),
        ),
        gates=(
            GateRow("zeros against rebuilt checkpoint", True, 4.8e-5, 2.1e-4, "logits over 96 tokens; 96 of 96 greedy tokens agree"),
            GateRow("checkpoint against ONNX, with cache", True, 1.4e-4, 1e-3, "64 of 64 greedy tokens agree"),
            GateRow("checkpoint against GGUF", None, detail="this recipe exports no GGUF"),
        ),
        consumers=(
            ConsumerRow("transformers, stock", False, "widths differ per block", "profile: uniform", "config"),
            ConsumerRow("transformers, shipped modelling file", True, checked="loaded"),
            ConsumerRow("vLLM (DeciLM)", True, checked="shapes"),
            ConsumerRow("ONNX Runtime GenAI", True, checked="64 tokens generated"),
        ),
        texts=(
            TextRow("calibration", "invented prose, calibration half", 812_345, "ab" * 32, 32_768),
            TextRow("evaluation", "invented prose, evaluation half", 790_112, "cd" * 32, 16_384),
        ),
        overlap=0.0004,
        warnings=("Another program used a third of the processor while latencies were taken.",),
        environment={
            "Processor": "Invented CPU @ 2.0 GHz, AVX512-BF16",
            "Threads": "2",
            "torch": "0.0.1",
            "onnxruntime": "0.0.2",
            "Memory bandwidth (measured)": "21.4 GB/s",
            "Matrix multiply (measured)": "182 GFLOP/s",
        },
        stages=(StageTime("source", None), StageTime("prune", 71.2), StageTime("rebuild", 4.31), StageTime("benchmark", 140.0)),
    )
