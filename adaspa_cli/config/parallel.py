"""Settings of several processes for one video."""

from __future__ import annotations

from dataclasses import dataclass

from adaspa_cli.config.fields import above_zero, at_least, check_fields, one_of, setting

DEALS = ("cost", "even")
MOST_GPUS = 1_024
MOST_SECONDS = 86_400.0


@dataclass(frozen=True)
class ParallelConfig:
    """How many GPUs compute one video together, and how.

    Attributes:
        gpus: number of GPUs, or of processes on a CPU, that compute each video together. Optional where torchrun starts
            the processes.
        cfg_parallel: run the two branches of classifier-free guidance at the same time, each on half of the GPUs.
        head_deal: how the heads of a layer are distributed over the GPUs once their masks are known: ``cost`` balances
            the work, ``even`` gives each GPU consecutive heads.
        collective_timeout: seconds after which an exchange between the processes fails.
    """

    gpus: int = setting(1, at_least(1, MOST_GPUS), late=True)
    cfg_parallel: bool = setting(False, late=True)
    head_deal: str = setting("cost", one_of(DEALS), late=True)
    collective_timeout: float = setting(600.0, above_zero(MOST_SECONDS), late=True)

    def __post_init__(self) -> None:
        check_fields(self)
