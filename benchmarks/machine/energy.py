"""Energy from counters that the hardware keeps: RAPL's of the processor, NVML's of the GPU. Nothing is estimated.

Both count what a whole package or card uses, idle power and other programs included, and tell it about every millisecond
(RAPL) or every tenth of a second (NVML): a figure is worth something for requests that take much longer than that, on a
machine that does nothing else.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3
PROCESSOR, GPU = "processor", "GPU"


class Counter(Protocol):
    """A counter that answers."""

    parts: Sequence[str]

    def read(self) -> Sequence[int]:
        """What every part has counted so far."""

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Between two readings, all parts together."""


class NoCounter(Exception):
    """Why there is no energy to report; a sentence."""


@dataclass(frozen=True)
class Rapl:
    """The packages of this machine, and memory where it is counted apart.

    Attributes:
        zones: folders of powercap; parts: their names; ranges: microjoules at which each begins again from zero.
    """

    zones: tuple[Path, ...]
    parts: tuple[str, ...]
    ranges: tuple[int, ...]

    @classmethod
    def find(cls, root: Path = POWERCAP) -> Rapl:
        """Packages and their ``dram`` zones. Cores and graphics are parts of a package, ``psys`` holds it: none of them is added.

        Raises:
            NoCounter: there is none, or this user may not read it.
        """
        zones = {zone: name for zone in sorted(root.glob("intel-rapl:*")) if _counts(name := _text(zone / "name"))}
        if not zones:
            raise NoCounter(f"{root} has no zone intel-rapl of a package")
        try:
            ranges = tuple(int(_text(zone / "max_energy_range_uj")) for zone in zones)
            found = cls(tuple(zones), tuple(zones.values()), ranges)
            found.read()
        except PermissionError as error:
            raise NoCounter(f"{error.filename} is readable by root only") from error
        except (OSError, ValueError) as error:
            raise NoCounter(f"RAPL's counter cannot be read ({error})") from error
        return found

    def read(self) -> tuple[int, ...]:
        """Microjoules of every zone."""
        return tuple(int((zone / "energy_uj").read_text(encoding="ascii")) for zone in self.zones)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Between two readings; a counter that is lower than before has begun again once."""
        steps = (end - start + (size if end < start else 0) for start, end, size in zip(before, after, self.ranges, strict=True))
        return sum(steps) * MICRO


@dataclass(frozen=True)
class Nvml:
    """The GPU that this process computes on."""

    library: Any
    handle: Any
    parts: tuple[str, ...]

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> Nvml:
        """Through nvidia-ml-py, which is optional.

        Raises:
            NoCounter: it is not installed, there is no driver, the card has no such counter, or which card it is is not known.
        """
        try:
            library: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise NoCounter("nvidia-ml-py is not installed") from error
        try:
            library.nvmlInit()
            handle = _card(library, environment.get("CUDA_VISIBLE_DEVICES", ""))
            name = library.nvmlDeviceGetName(handle)
            library.nvmlDeviceGetTotalEnergyConsumption(handle)
        except library.NVMLError as error:
            raise NoCounter(f"NVML does not count energy here ({error})") from error
        return cls(library, handle, (name if isinstance(name, str) else name.decode(),))

    def read(self) -> tuple[int, ...]:
        """Millijoules since the driver was loaded."""
        return (int(self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)),)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Between two readings."""
        return (after[0] - before[0]) * MILLI


@dataclass
class Meter:
    """Every counter that answers in this process.

    Attributes:
        counters: by what they count.
        refused: why there is none, by what would have been counted.
    """

    counters: dict[str, Counter] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, gpu: bool, root: Path = POWERCAP) -> Meter:
        """The processor's, and the GPU's where a GPU computes."""
        meter = cls()
        meter._try(PROCESSOR, lambda: Rapl.find(root))
        if gpu:
            meter._try(GPU, Nvml.find)
        return meter

    def read(self) -> dict[str, Sequence[int]]:
        """What every counter has counted so far."""
        return {name: counter.read() for name, counter in self.counters.items()}

    def joules(self, before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Between two readings, by counter."""
        return {name: counter.joules(before[name], after[name]) for name, counter in self.counters.items()}

    def as_record(self) -> dict[str, Any]:
        """What was counted, and why the rest was not."""
        return {"counters": {name: list(counter.parts) for name, counter in self.counters.items()}, "refused": dict(self.refused)}

    def _try(self, name: str, find: Any) -> None:
        try:
            self.counters[name] = find()
        except NoCounter as error:
            self.refused[name] = str(error)


def _counts(name: str) -> bool:
    return name.startswith("package") or name == "dram"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def _card(library: Any, visible: str) -> Any:
    """The first card that CUDA sees. CUDA's own numbers are not NVML's: it sorts by speed unless told otherwise."""
    first = visible.split(",")[0].strip()
    if first.startswith("GPU-"):
        return library.nvmlDeviceGetHandleByUUID(first)
    count = library.nvmlDeviceGetCount()
    if count != 1:
        raise NoCounter(f"there are {count} GPUs, and which one computes is not known: set CUDA_VISIBLE_DEVICES to its UUID")
    return library.nvmlDeviceGetHandleByIndex(0)
