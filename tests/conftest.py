"""What several test rooms share: reference data that may be absent, and the built-in model."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.sources.model import checkpoint_folder, default_gguf, source
from pipeline.sources.recipe import ModelSlice

SHARED = Path(__file__).parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """A suite in the background of a script inherits an ignored SIGINT, which the processes that it interrupts would inherit too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _torch_threads() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of values computed with the authors' own code."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the reference values (shared/golden) are not here")
    return folder


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """Folder of the WikiText-2 texts."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the WikiText-2 texts (shared/data) are not here")
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder of the built-in model."""
    try:
        default_gguf()
    except TrimlineError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("smollm2")
    source(ModelSlice(), RunOptions(), out, Events())
    return checkpoint_folder(out)
