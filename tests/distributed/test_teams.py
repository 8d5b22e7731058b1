"""The groups of processes behind teams."""

from datetime import timedelta
from pathlib import Path

import torch

from adaspa_cli.distributed.teams import Teams
from tests.distributed.ranks import together


def test_every_exchange_has_the_time_out_of_the_run(tmp_path: Path) -> None:
    patience = timedelta(seconds=7)

    def case(teams: Teams) -> None:
        split = Teams.of(teams.all.rank, 2, 2, patience)
        for team in (split.tokens, split.branches):
            assert team.group is not None
            assert team.group._get_backend(torch.device("cpu")).options._timeout == patience

    together(2, tmp_path, case)
