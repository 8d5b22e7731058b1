"""What every training stage shares: optimisers, learning rate, moving average, clock, printing, resuming.

Several processes may train together (``parallel``): the first one keeps the clock, prints and saves.

A stage supplies its modules and one function, step -> loss. No step waits for the GPU: losses stay there until a
line is printed.

The matrices that a stage names are updated by Muon, everything else by AdamW. Muon's updates are scaled to the size of
AdamW's, so that one schedule serves both; ``matrix_learning_rate`` is its peak for the matrices.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.train_world.checkpoint import (
    load_group,
    load_modules,
    load_optimizer,
    load_state,
    module_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from scripts.train_world.muon import BatchedMuon
from scripts.train_world.parallel import agree, barrier, mean_gradients, rank, same_parameters, world

_ASK_EVERY = 8  # steps


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    ``steps`` fixes the schedule, ``max_minutes`` only interrupts it (a later call resumes). ``fit_minutes`` is for a
    machine whose speed is unknown: it chooses ``steps`` after the warm-up, from the speed seen there and
    ``later_cost``, the mean cost of the steps to come in terms of those. Nothing before depends on ``steps``, so the
    same run can be had again by giving the number that was chosen.

    Parameters that were trained before the others get ``taught_rate`` of ``learning_rate``: at first the others have
    nothing to tell them but noise, by which they would forget.
    """

    steps: int
    batch: int
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 2e-3
    taught_rate: float = 0.1
    warmup: int = 200
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.999
    seed: int = 0
    max_minutes: float | None = None
    fit_minutes: float | None = None
    later_cost: float = 1.0
    print_seconds: float = 30.0
    save_seconds: float | None = None  # a checkpoint now and then as well, for the case that the machine goes away


@dataclass
class Loop:
    """One resumable training run of some modules; its checkpoint lives in ``folder``."""

    modules: dict[str, nn.Module]
    averaged: dict[str, nn.Module]
    config: LoopConfig
    folder: Path
    extra_state: dict[str, Any] = field(default_factory=dict)
    matrices: Collection[str] = ()  # names of the parameters that Muon updates
    taught: Collection[str] = ()  # names of those that were trained before the others
    step: int = 0
    steps: int = 0
    fitted: bool = False  # whether ``steps`` was chosen by ``fit_minutes``
    seconds: float = 0.0
    restart: int = 0  # step at which the optimiser last began without its moments

    def __post_init__(self) -> None:
        self.steps = self.config.steps
        self.names = list(module_tensors(self.modules))
        parameters = dict(zip(self.names, self._parameters(self.modules), strict=True))
        self._raw = [parameters[name] for name in self.names]
        self._ema = list(self._parameters(self.averaged))
        matrices = [name for name in self.names if name in self.matrices]
        self.optimizers: list[tuple[torch.optim.Optimizer, list[str]]] = [self._adamw(parameters)]
        if matrices:
            muon = BatchedMuon(
                [parameters[name] for name in matrices],
                lr=self.config.matrix_learning_rate,
                weight_decay=self.config.weight_decay,
            )
            self.optimizers.append((muon, matrices))
        self._peaks = [group["lr"] for optimizer, _ in self.optimizers for group in optimizer.param_groups]

    def _adamw(self, parameters: dict[str, nn.Parameter]) -> tuple[torch.optim.Optimizer, list[str]]:
        """AdamW of all that Muon leaves, and their names in its order. Only matrices decay; gains, biases and
        embeddings of words keep their size."""
        grouped: dict[tuple[bool, bool], list[str]] = {}
        for name, parameter in parameters.items():
            if name not in self.matrices:
                decays = parameter.ndim >= 2 and "embed" not in name
                grouped.setdefault((not decays, name in self.taught), []).append(name)
        config, order = self.config, sorted(grouped)
        groups = [
            {
                "params": [parameters[name] for name in grouped[keeps, taught]],
                "weight_decay": 0.0 if keeps else config.weight_decay,
                "lr": config.learning_rate * (config.taught_rate if taught else 1.0),
            }
            for keeps, taught in order
        ]
        adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=self._raw[0].is_cuda)
        return adamw, [name for key in order for name in grouped[key]]

    @staticmethod
    def _parameters(modules: dict[str, nn.Module]) -> list[nn.Parameter]:
        return [parameter for module in modules.values() for parameter in module.parameters()]

    def resume(self) -> bool:
        """Continue from the checkpoint in the folder; False if there is none."""
        state = load_state(self.folder)
        raw, averaged = load_group(self.folder, "raw"), load_group(self.folder, "ema")
        if state is None or averaged is None:
            return False
        load_modules(self.modules, averaged if raw is None else raw)
        load_modules(self.averaged, averaged)
        self.step, self.seconds, self.restart = state["step"], state["seconds"], state["restart"]
        if state.get("fitted"):  # the schedule is in use: another length would tear it
            self.steps, self.fitted = state["steps"], True
        moments = load_group(self.folder, "optimizer")
        if moments is None:
            self.restart = self.step
        else:
            for optimizer, names in self.optimizers:
                load_optimizer(optimizer, names, moments)
        if rank() == 0:
            print(f"resumed {self.folder.name} at step {self.step}", flush=True)
        return True

    def save(self) -> None:
        """Write the checkpoint, once for all processes."""
        if rank() == 0:
            self._save()
        barrier()

    def _save(self) -> None:
        groups = {
            "raw": module_tensors(self.modules),
            "ema": module_tensors(self.averaged),
            "optimizer": {
                name: tensor
                for optimizer, names in self.optimizers
                for name, tensor in optimizer_tensors(optimizer, names).items()
            },
        }
        save_checkpoint(self.folder, groups, self.state())

    def state(self) -> dict[str, Any]:
        """What JSON keeps of the run."""
        return {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "device": torch.cuda.get_device_name() if self._raw[0].is_cuda else "CPU",
            "restart": self.restart,
            "done": self.progress() >= 1.0,
            "seed": self.config.seed,
            "batch": self.config.batch,
            "processes": world(),
            "steps": self.steps,
            "fitted": self.fitted,
            **self.extra_state,
        }

    def progress(self) -> float:
        """How much of the schedule is done, in [0, 1]; 0 until the end of the warm-up."""
        warmup = min(self.config.warmup, self.steps - 1)
        return min(1.0, max(0, self.step - warmup) / (self.steps - warmup))

    def rate(self) -> float:
        """Share of the peak learning rates: linear warm-up, then half a cosine down to 1 %."""
        since = self.step - self.restart + 1
        cosine = 0.5 * (1.0 + math.cos(math.pi * self.progress()))
        return min(1.0, since / self.config.warmup) * (0.01 + 0.99 * cosine)

    def run(self, loss_at: Callable[[int], Tensor], every: Callable[[float], None] | None = None) -> bool:
        """Train to the end of the schedule or of the allowed time, then save.

        Args:
            loss_at: step -> loss to minimise.
            every: called about each time a line is printed, with the seconds trained so far.

        Returns:
            True if the schedule came to its end.
        """
        begin, before, first_step = time.monotonic(), self.seconds, self.step
        printed, printed_step = begin, self.step
        middle, middle_step = begin, self.step
        total = torch.zeros((), device=self._raw[0].device)
        saved = begin
        same_parameters(self._raw)
        while self.progress() < 1.0:
            total += self._update(loss_at(self.step))
            self.step += 1
            if self.config.fit_minutes is not None and self.step in (self.config.warmup // 2, self.config.warmup):
                float(total)  # waits for the device
                now = time.monotonic()
                if self.step == self.config.warmup and not self.fitted:
                    self._fit((now - middle) / (self.step - middle_step), before + now - begin)
                middle, middle_step = now, self.step
            now = time.monotonic()
            self.seconds = before + now - begin
            if rank() == 0 and (now - printed >= self.config.print_seconds or self.progress() >= 1.0):
                self._print(float(total) / (self.step - printed_step), (self.step - printed_step) / (now - printed))
                total.zero_()
                if every is not None:
                    every(self.seconds)
                if self.config.save_seconds is not None and now - saved >= self.config.save_seconds:
                    self._save()
                    saved = now
                printed, printed_step = time.monotonic(), self.step
            if self._is_time_over(now - begin):
                break
        if self.step > first_step:
            self.save()
        return self.progress() >= 1.0

    def _is_time_over(self, spent: float) -> bool:
        """Whether to stop early. Several processes ask the first one, which takes time, so they do it now and then."""
        limit = self.config.max_minutes
        if limit is None or (world() > 1 and self.step % _ASK_EVERY):
            return False
        return bool(agree(int(spent >= 60.0 * limit), self._raw[0].device))

    def _fit(self, each: float, spent: float) -> None:
        """Choose ``steps``, from the seconds of a step late in the warm-up and of everything so far."""
        left = 60.0 * (self.config.fit_minutes or 0.0) - spent
        steps = self.config.warmup + max(1, int(left / (each * self.config.later_cost)))
        self.steps, self.fitted = agree(steps, self._raw[0].device), True
        if rank() == 0:
            print(f"{self.folder.name}: {self.steps} steps fit into {self.config.fit_minutes} minutes", flush=True)

    def _update(self, loss: Tensor) -> Tensor:
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        mean_gradients(self._raw)
        torch.nn.utils.clip_grad_norm_(self._raw, 1.0)
        rate = self.rate()
        groups = [group for optimizer, _ in self.optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * rate
        for optimizer, _ in self.optimizers:
            optimizer.step()
        # The average looks back over a tenth of the run at most while the run is young.
        decay = min(self.config.ema, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, self._raw, 1.0 - decay)
        return loss.detach()

    def _print(self, loss: float, rate: float) -> None:
        minutes = self.seconds / 60.0
        print(
            f"{self.folder.name} step {self.step}/{self.steps} ({self.progress():.0%})  loss {loss:.5f}  "
            f"{rate * self.config.batch:.1f} clips/s  {1e3 / max(rate, 1e-9):.0f} ms/step  {minutes:.1f} min",
            flush=True,
        )
