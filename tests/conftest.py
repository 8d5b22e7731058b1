"""Shared fixtures: the device under test, and small random-weight pipelines in the exact diffusers format."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when a kernel is decorated: it must be set before any kernel module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU where there is one, otherwise the CPU (Triton kernels then run in its interpreter)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
