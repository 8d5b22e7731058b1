"""What torchrun's launcher is asked for."""

import logging
import os
from typing import Any

import pytest
from torch.distributed.launcher import api

from adaspa_cli.distributed.launch import launch

OF_TORCH_2_11 = {
    "min_nodes", "max_nodes", "nproc_per_node", "logs_specs", "run_id", "role", "rdzv_endpoint", "rdzv_backend",
    "rdzv_configs", "rdzv_timeout", "max_restarts", "monitor_interval", "start_method", "log_line_prefix_template",
    "metrics_cfg", "local_addr", "event_log_handler", "numa_options", "signals_to_handle", "duplicate_stdout_filters",
    "duplicate_stderr_filters", "virtual_local_rank",
}  # fmt: skip


def test_the_oldest_torch_knows_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(logging, "disable", lambda _level: None)
    monkeypatch.setattr(api, "LaunchConfig", lambda **settings: given.update(settings))
    monkeypatch.setattr(api, "elastic_launch", lambda _config, _program: lambda *_arguments: None)
    assert launch(2, ["generate"], "cpu") == 0
    assert given.keys() <= OF_TORCH_2_11
    assert given["local_addr"] == "localhost"  # the machine's name may lead nowhere
