"""Which TensorRT, CUDA and cuDNN the installed onnxruntime-gpu links: a wrong pair is installed without a word and falls back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from packaging.version import Version

from trimline.doctor.finding import Finding

RUNTIME = "onnxruntime-gpu"
PLAIN_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
CUDNN = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


@dataclass(frozen=True)
class Pairing:
    """What a range of onnxruntime-gpu's versions links: major versions, read from the libraries of its wheel."""

    since: str
    tensorrt: int
    cuda: int
    cudnn: int


# libonnxruntime_providers_tensorrt.so of 1.31.1 needs libnvinfer.so.10, libcudart.so.13 and libcudnn.so.9.
PAIRINGS = (Pairing("1.31", tensorrt=10, cuda=13, cudnn=9),)


def pairing(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on the TensorRT and CUDA providers of the installed onnxruntime-gpu; none without it.

    Args:
        installed: normalised name to version.
    """
    version = installed.get(RUNTIME)
    if version is None:
        return
    wanted = next((pair for pair in reversed(PAIRINGS) if Version(version) >= Version(pair.since)), None)
    if wanted is None:
        advice = f"Trimline knows the pairs of {PAIRINGS[0].since} and later only: update it, or read its release notes."
        yield Finding("GPU pairing", f"{RUNTIME} {version}", "warn", advice)
        return
    yield _tensorrt(installed, wanted)
    yield _cudnn(installed, wanted)


def _tensorrt(installed: Mapping[str, str], wanted: Pairing) -> Finding:
    name = "TensorRT provider"
    advice = f"pip install 'tensorrt-cu{wanted.cuda}=={wanted.tensorrt}.*' (from NVIDIA's own index)"
    present = {package: Version(installed[package]) for package in PLAIN_TENSORRT if package in installed}
    if not present:
        return Finding(name, "no TensorRT is installed", "missing", f"{advice}; without it the provider falls back.")
    shown = ", ".join(f"{package} {number}" for package, number in present.items())
    if any(number.major != wanted.tensorrt for number in present.values()):
        return Finding(name, f"{shown}, but {RUNTIME} links TensorRT {wanted.tensorrt}", "warn", advice)
    other = [package for package in present if package.endswith(("cu12", "cu13")) and not package.endswith(f"cu{wanted.cuda}")]
    if other:
        return Finding(name, f"{shown}, but {RUNTIME} links CUDA {wanted.cuda}", "warn", advice)
    return Finding(name, f"{shown} fits {RUNTIME} {installed[RUNTIME]}")


def _cudnn(installed: Mapping[str, str], wanted: Pairing) -> Finding:
    name, package = "CUDA provider", f"nvidia-cudnn-cu{wanted.cuda}"
    advice = f"pip install '{RUNTIME}[cuda,cudnn]', or make CUDA {wanted.cuda} and cuDNN {wanted.cudnn} of the system findable"
    if package not in installed:
        others = ", ".join(f"{other} {installed[other]}" for other in CUDNN if other in installed)
        return Finding(name, f"{package} is not installed" + (f" ({others} is)" if others else ""), "warn", advice)
    if Version(installed[package]).major != wanted.cudnn:
        return Finding(name, f"{package} {installed[package]}, but cuDNN {wanted.cudnn} is linked", "warn", advice)
    return Finding(name, f"{package} {installed[package]} fits {RUNTIME} {installed[RUNTIME]}")
