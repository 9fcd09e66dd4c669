"""Energy from counters, made up here: this machine may have none. What was not counted is said, never guessed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.formulas.roofline import Ceilings
from benchmarks.machine.energy import Meter, NoCounter, Nvml, Rapl
from benchmarks.recipe import PHASES, Workload
from benchmarks.results.document import ModelRecord, Timing
from benchmarks.results.energy import lines
from benchmarks.results.from_samples import timing
from benchmarks.results.markdown import energy
from benchmarks.timing.subject import Subject
from benchmarks.timing.timing import Sample, Samples
from benchmarks.timing.worker import Worker
from tests.benchmarks.results.sample_results import MODEL, results
from tests.tiny import tiny_model

RANGE = 262_143_328_850


def zone(root: Path, name: str, label: str, energy: int, size: int = RANGE) -> Path:
    folder = root / name
    folder.mkdir()
    for file, text in (("name", label), ("energy_uj", str(energy)), ("max_energy_range_uj", str(size))):
        (folder / file).write_text(f"{text}\n")
    return folder


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """One package with its cores and its memory, and the whole platform."""
    root = tmp_path / "powercap"
    root.mkdir()
    for name, label in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"), ("intel-rapl:1", "psys")):
        zone(root, name, label, 1_000_000)
    return root


def test_packages_and_memory_are_counted_and_nothing_twice(powercap):
    rapl = Rapl.find(powercap)
    assert rapl.parts == ("package-0", "dram")
    before = rapl.read()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("3500000\n")
    (powercap / "intel-rapl:0:1" / "energy_uj").write_text("1250000\n")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("9000000\n")
    assert rapl.joules(before, rapl.read()) == pytest.approx(2.75)


def test_a_counter_that_began_again_is_no_negative_energy(powercap):
    rapl = Rapl.find(powercap)
    (powercap / "intel-rapl:0" / "energy_uj").write_text(str(RANGE - 400_000))
    before = rapl.read()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("100000")
    assert rapl.joules(before, rapl.read()) == pytest.approx(0.5)


def test_no_folder_and_a_counter_for_root_only_are_reasons(tmp_path, powercap, monkeypatch):
    with pytest.raises(NoCounter, match="has no zone intel-rapl"):
        Rapl.find(tmp_path / "nothing")
    real = Path.read_text

    def guarded(path: Path, *given: object, **named: object) -> str:
        if path.name == "energy_uj":  # root, who runs tests in containers, may read what mode 0400 forbids to others
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(NoCounter, match="energy_uj is readable by root only"):
        Rapl.find(powercap)


def test_a_zone_without_its_range_is_a_reason(powercap):
    (powercap / "intel-rapl:0:1" / "max_energy_range_uj").unlink()
    with pytest.raises(NoCounter, match="cannot be read"):
        Rapl.find(powercap)


class FakeNvml(SimpleNamespace):
    """What nvidia-ml-py gives: numbers in millijoules, errors of one class."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards: int = 1, counts: bool = True) -> None:
        super().__init__(asked=[], now=5000, counts=counts, cards=cards)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:
        return f"card {number}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"A card"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return self.now


def test_a_cards_energy_is_in_joules(monkeypatch):
    library = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    counter = Nvml.find({})
    before = counter.read()
    library.now += 1500
    assert counter.parts == ("A card",)
    assert counter.joules(before, counter.read()) == pytest.approx(1.5)


def test_which_of_several_cards_computes_must_be_known(monkeypatch):
    library = FakeNvml(cards=2)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with pytest.raises(NoCounter, match="there are 2 GPUs"):
        Nvml.find({"CUDA_VISIBLE_DEVICES": "1"})
    Nvml.find({"CUDA_VISIBLE_DEVICES": "GPU-abc,GPU-def"})
    assert library.asked == ["GPU-abc"]


@pytest.mark.parametrize(("library", "reason"), [(None, "nvidia-ml-py is not installed"), (FakeNvml(counts=False), "Not Supported")])
def test_a_card_that_does_not_count_is_a_reason(monkeypatch, library, reason):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with pytest.raises(NoCounter, match=reason):
        Nvml.find({})


def test_a_meter_has_what_answers_and_says_what_does_not(powercap, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter.here(gpu=True, root=powercap).as_record() == {
        "counters": {"processor": ["package-0", "dram"]},
        "refused": {"GPU": "nvidia-ml-py is not installed"},
    }
    none = Meter.here(gpu=False, root=tmp_path / "nothing")
    assert none.read() == {} == none.joules({}, {})
    assert set(none.refused) == {"processor"}


class Burns:
    """A decoder that uses a joule per pass."""

    def __init__(self, counter: Path) -> None:
        self.counter = counter

    def empty(self, batch: int, capacity: int) -> None: ...

    def run(self, ids: np.ndarray, past: None) -> tuple[None, None]:
        self.counter.write_text(str(int(self.counter.read_text()) + 1_000_000))
        return None, None


def test_the_worker_counts_the_prompt_apart_from_the_steps(powercap):
    worker = Worker(lambda folder, threads: Burns(powercap / "intel-rapl:0" / "energy_uj"), Meter.here(gpu=False, root=powercap))
    worker.load("anywhere", 1)
    reply = worker.run(prompt=8, output=4, batch=1, vocab=9, seed=0)
    assert reply["joules"] == {"prefill": {"processor": pytest.approx(1.0)}, "decode": {"processor": pytest.approx(3.0)}}
    assert worker.energy()["counters"] == {"processor": ["package-0", "dram"]}
    assert set(worker.run(prompt=8, output=1, batch=1, vocab=9, seed=0)["joules"]) == {"prefill"}


def rows(folder: Path, samples: Samples) -> list[Timing]:
    subject, workload = Subject.read("dense", folder, "torch"), Workload(prompt=8, output=4, batch=2)
    return [timing(subject, workload, phase, samples, Ceilings(1e9, 1e9)) for phase in PHASES]


def test_joules_per_token_are_printed_where_they_were_counted_only(tmp_path):
    folder = tiny_model("llama", tmp_path / "model")
    joules = {"prefill": {"processor": 4.0}, "decode": {"processor": 3.0}}
    counted = rows(folder, Samples([Sample(1.0, [1.0] * 3, 0.0, joules=joules)] * 2))
    told = {
        "dense": ModelRecord.model_validate(MODEL | {"energy": {"counters": {"processor": ["package-0"]}, "refused": {"GPU": "no driver"}}})
    }
    page = energy(counted, told)
    assert "| 8/4 ×2 | prefill | dense | 10.00 | 2 | 0.25 (0.25 to 0.25) |" in page  # 4 J for 2 × 8 tokens
    assert "| 8/4 ×2 | decode | dense | 10.00 | 2 | 0.5 (0.5 to 0.5) |" in page  # 3 J for 2 × 3 tokens
    assert "No counter answered for the GPU: no driver." in page
    found = lines(results(models=told, timings=counted))
    assert found["energy, GPU"] == "no counter answered (no driver)"
    assert found["energy, processor (package-0), 8/4 ×2 decode"] == "dense 0.5 J/token"
    silent = rows(folder, Samples([Sample(1.0, [1.0] * 3, 0.0)] * 2))
    none = {"dense": ModelRecord.model_validate(MODEL)}
    assert energy(silent, none) == "No counter answered for the processor: no zone."
    assert lines(results(models=none, timings=silent)) == {"energy, processor": "no counter answered (no zone)"}
