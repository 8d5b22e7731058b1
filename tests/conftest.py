"""Shared fixtures: the device under test, and small random-weight pipelines in the exact diffusers format."""

import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.browser import Browser, chromium

if not torch.cuda.is_available():
    # Triton reads this when a kernel is decorated. So the kernels are decorated here, before a test that takes it away.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    importlib.import_module("adaspa_kernels")

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background, and so would be all that the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU where there is one, otherwise the CPU (Triton kernels then run in its interpreter)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # first, so that all workers end together
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def fp8_device() -> torch.device:
    """A GPU that multiplies in FP8."""
    from adaspa_cli.errors import AdaspaError
    from adaspa_cli.models.fp8_linear import check_fp8

    device = torch.device("cuda")
    try:
        check_fp8(device)
    except AdaspaError as reason:
        pytest.skip(reason.message)
    return device


# --- pipelines
# diffusers takes seconds to import: only the tests that use these fixtures pay for it.


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Also where the environment says otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each attention backend in turn; Triton on a GPU only, because its interpreter is slow (tests/kernels has it)."""
    name: str = request.param
    if name == "triton" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return name


@pytest.fixture(scope="session")
def hunyuan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved HunyuanVideo pipeline with random weights. Read-only: copy it before changing it."""
    from tests.pipelines import hunyuan_video, save

    return save(hunyuan_video(), tmp_path_factory.mktemp("saved") / "hunyuan")


@pytest.fixture(scope="session")
def cogvideox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved CogVideoX 1.5 pipeline with random weights. Read-only: copy it before changing it."""
    from tests.pipelines import cogvideox, save

    return save(cogvideox("1.5"), tmp_path_factory.mktemp("saved") / "cogvideox")


# --- pages


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium that all tests of a process share; a tab is cheap, a start is not."""
    executable = chromium()
    if executable is None:
        pytest.skip("needs Chromium")
    with Browser(executable) as running:
        yield running
