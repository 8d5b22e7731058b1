"""What torchrun's launcher is asked for."""

import logging
import os
import signal
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from adaspa_cli.distributed.launch import launch
from adaspa_cli.errors import RunError

OF_TORCH_2_11 = {
    "min_nodes", "max_nodes", "nproc_per_node", "logs_specs", "run_id", "role", "rdzv_endpoint", "rdzv_backend",
    "rdzv_configs", "rdzv_timeout", "max_restarts", "monitor_interval", "start_method", "log_line_prefix_template",
    "metrics_cfg", "local_addr", "event_log_handler", "numa_options", "signals_to_handle", "duplicate_stdout_filters",
    "duplicate_stderr_filters", "virtual_local_rank",
}  # fmt: skip


@pytest.mark.parametrize(("number", "hint"), [(signal.SIGKILL, "ran out of memory"), (signal.SIGABRT, "timed out")])
def test_a_killed_process_is_named(number: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL aborts the process whose exchange nobody answers."""

    def fail(*_arguments: str) -> None:
        failure = ProcessFailure(local_rank=1, pid=0, exitcode=-number, error_file="")
        raise ChildFailedError("adaspa", {1: failure})

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(logging, "disable", lambda _level: None)
    monkeypatch.setattr(api, "elastic_launch", lambda _config, _program: fail)
    with pytest.raises(RunError, match="process 2 of 2 was killed") as caught:
        launch(2, ["generate"], "cpu")
    assert hint in str(caught.value.hint)


def test_the_oldest_torch_knows_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(logging, "disable", lambda _level: None)
    monkeypatch.setattr(api, "LaunchConfig", lambda **settings: given.update(settings))
    monkeypatch.setattr(api, "elastic_launch", lambda _config, _program: lambda *_arguments: None)
    assert launch(2, ["generate"], "cpu") == 0
    assert given.keys() <= OF_TORCH_2_11
    assert given["local_addr"] == "localhost"  # the machine's name may lead nowhere
