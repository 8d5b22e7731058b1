"""``apply``: a method on one pipeline instance, and the handle that removes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from adaspa_cli.attention import Backend, check_kernel, resolve
from adaspa_cli.caching import StepCache, TokenMerging, make_cache, make_merging
from adaspa_cli.config.families import count_layers
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.mask_file import MaskFileConfig
from adaspa_cli.config.merging import Merging
from adaspa_cli.config.methods import Algorithm, SparseConfig
from adaspa_cli.config.presets import PAPERS_METHOD, unnamed_method
from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.distributed.branches import BranchCalls
from adaspa_cli.distributed.deals import Deals
from adaspa_cli.distributed.decoding import spread_decoding
from adaspa_cli.distributed.exchange import Exchange
from adaspa_cli.distributed.latents import same_latents
from adaspa_cli.distributed.refuse import check_heads, check_method
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.distributed.tokens import TokenShare
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.hooks.override import Override
from adaspa_cli.maskfiles import MaskFile
from adaspa_cli.maskfiles.check import check_model, open_masks
from adaspa_cli.maskfiles.stored import stored_policy
from adaspa_cli.masks import FoundMask, MaskPolicy
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.plan import DENSE
from adaspa_cli.models.attachment import Attachment
from adaspa_cli.models.fp8 import Fp8Linears
from adaspa_cli.models.registry import attach, family_of
from adaspa_cli.sampling.engine import AttentionEngine
from adaspa_cli.sampling.records import run_density, run_error

CheckBlocks = Callable[[tuple[int, int]], None]


class Handle:
    """A method at work on a pipeline; also a context manager. Two pipelines in one process know nothing of each other.

    Attributes:
        attached: whether attention is ours; the method ``diffusers`` leaves it alone and counts steps only.
        engine: its records say what each attention call of the last run did, and how long it took; there are none if
            not attached.
        clock: counts the pipeline's denoising steps.
        layers: number of attention layers.
        backend: name of the attention backend that runs; ``sdpa`` where PyTorch's kernels attend to merged tokens;
            None if not attached.
        cache: what skips work between steps, with its counts of the last run; None without.
        mask_file: where masks are loaded from; None where they are searched.
        linears: those that multiply in FP8; None without.
        merging: what merges tokens, with its count of the last run; None without.
    """

    def __init__(
        self,
        pipe: Any,
        config: MethodConfig,
        *,
        policy: Callable[[int], MaskPolicy] | None = None,
        teams: Teams | None = None,
        deal_by_cost: bool = True,
    ) -> None:
        """
        Args:
            pipe: the pipeline, on its device.
            config: the method.
            policy: the policy of a run with that many steps, instead of the one that ``config`` describes.
            teams: the processes that make each video together, each by the same calls; None makes it alone.
            deal_by_cost: redistribute heads once the costs of their masks are known.

        Raises:
            ModelError: an unknown pipeline.
            MaskFileError: a mask file that is corrupt or does not fit.
            BackendError: a backend, or a dtype of linear layers, that cannot run there.
            RunError: adaspa or a cache of diffusers is applied to the pipeline already.
        """
        family, self.teams = family_of(pipe), teams or Teams()
        self._check_teams(config, family.shape(pipe).heads)
        backend = resolve(config.attention_backend, pipe._execution_device)
        check_blocks = _kernel_check(backend, pipe)
        if isinstance(config.algorithm, SparseConfig):
            check_blocks((config.algorithm.block_size, config.algorithm.block_size))
        self.mask_file = _open_masks(config, pipe)
        self.merging: TokenMerging | None = make_merging(config.merge)
        self.attached = config.algorithm.attached
        if not self.attached:
            _check_untouched(family.transformers(pipe))
        self.backend = _backend_name(backend.name, self.attached, self.merging)
        self._overrides = [] if self.teams.all.alone else self._together(pipe)
        self.clock = StepClock(pipe, family.facts.transformers)
        self.engine = AttentionEngine(
            self._policy_maker(config, pipe) if policy is None else _checked(policy, check_blocks),
            backend,
            self.clock,
            self.merging,
            share_cfg_masks=config.share_cfg_masks,
            deals=Deals(self.teams.tokens, by_cost=deal_by_cost),
        )
        self.layers = sum(count_layers(family.facts, one.config) for one in family.transformers(pipe))
        self.cache: StepCache | None = None
        self._attachment: Attachment | None = None
        self._branches: BranchCalls | None = None
        self.linears: Fp8Linears | None = None
        if not self.attached:
            self.clock.listen(Listener(Order.ENGINE, start=lambda _steps: self.engine.on_call(DENSE)))
            return
        self._attach(pipe, config)

    def _attach(self, pipe: Any, config: MethodConfig) -> None:
        """Attach all parts, or none of them."""
        try:
            self._attach_parts(pipe, config)
        except BaseException:
            self.remove()
            raise

    def _attach_parts(self, pipe: Any, config: MethodConfig) -> None:
        family, share = family_of(pipe), TokenShare(self.teams.tokens)
        for transformer in family.transformers(pipe):
            self.clock.watch(transformer)
        attend = self.engine if self.teams.tokens.alone else Exchange(share, self.engine.heads, self.engine)
        self._attachment = attach(pipe, attend, config.order)
        if not self.teams.tokens.alone:
            self._attachment.split(share)
        if not self.teams.branches.alone:
            transformers = family.transformers(pipe)
            self._branches = BranchCalls(
                transformers, self.teams.branches, self._attachment, family.batch_inputs, self.clock
            )
        self.layers = self._attachment.layers
        if config.linear == "fp8":
            self.linears = Fp8Linears(family, pipe)
        self.cache = make_cache(config.cache, pipe, self._attachment, self.clock)

    def _together(self, pipe: Any) -> list[Override]:
        """What all processes do alike; inside of the clock's overrides: a step ends when all have its latents."""
        latents = same_latents(pipe.scheduler, self.teams.all)
        return [latents] if pipe.vae is None else [latents, spread_decoding(pipe.vae, self.teams.all)]

    def _check_teams(self, config: MethodConfig, heads: int) -> None:
        if not self.teams.all.alone:
            check_method(config)
        check_heads(heads, self.teams.tokens.size)

    def _policy_maker(self, config: MethodConfig, pipe: Any) -> Callable[[int], MaskPolicy]:
        file, family = self.mask_file, family_of(pipe)
        if file is None:
            return lambda steps: make_policy(config.algorithm, steps, family.stages(pipe, steps))
        return lambda steps: stored_policy(config, file, steps, family.stages(pipe, steps))

    @property
    def density(self) -> float | None:
        """Mean share of the blocks that the attention of the last run computed; None if none was made, or not ours."""
        return run_density(self.engine.calls) if self.attached else None

    @property
    def error_estimate(self) -> float | None:
        """Estimated distance of the last run's sparse attention from dense attention, relative to the norm of the
        dense output: 0.08 is 8 %. It is the figure of the report: the root mean square over all repaired calls and
        heads, as their probe rows estimate it (docs/adaspa-plus.md).

        None before a run, where no call was sparse, and with methods without ``repair="probes"``: only ``adaspa-plus``
        has it by default.
        """
        return run_error(self.engine.calls)

    def masks(self) -> dict[tuple[int, str, int], FoundMask]:
        """The masks in use, by (layer, guidance branch, sample); none outside a run, see :class:`Order`.READERS."""
        return self.engine.masks()

    def remove(self) -> None:
        """Restore the pipeline as it was. May be called twice, as after torch.OutOfMemoryError: with ``linear="fp8"``
        the weights that were moved to main memory return to the device."""
        if self.cache is not None:
            self.cache.remove()
        if self._branches is not None:
            self._branches.remove()
        if self._attachment is not None:
            self._attachment.detach()
        self.clock.stop()
        for override in self._overrides:
            override.restore()
        if self.linears is not None:
            self.linears.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _open_masks(config: MethodConfig, pipe: Any) -> MaskFile | None:
    """The mask file of a method, if it has one; raises MaskFileError if it is of another model."""
    masks, family = open_masks(config), family_of(pipe)
    if masks is not None:
        check_model(masks, family.facts.pipeline, family.transformers(pipe))
    return masks


def _check_untouched(transformers: Sequence[Any]) -> None:
    """Raise RunError unless the transformers are as diffusers has them."""
    processors = (processor for transformer in transformers for processor in transformer.attn_processors.values())
    if any(type(processor).__module__.startswith("adaspa_cli.") for processor in processors):
        raise RunError("adaspa is already applied to this pipeline", hint="call remove() on the first handle")
    if any(transformer.is_cache_enabled for transformer in transformers):
        raise RunError(
            "a diffusers cache is already enabled on this pipeline", hint="call pipe.transformer.disable_cache() first"
        )


def _kernel_check(backend: Backend, pipe: Any) -> CheckBlocks:
    """Raises BackendError where a backend has no kernel for a pipeline's heads in blocks of a (query, key) size."""
    shape = family_of(pipe).shape(pipe)
    dtype = None if pipe._execution_device.type == "cpu" else shape.dtype
    return lambda block_size: check_kernel(backend, shape.head_dim, block_size, dtype)


def _checked(make: Callable[[int], MaskPolicy], check_blocks: CheckBlocks) -> Callable[[int], MaskPolicy]:
    """What ``make`` makes, if there is a kernel for its blocks."""

    def make_checked(steps: int) -> MaskPolicy:
        policy = make(steps)
        check_blocks(policy.block_size)
        return policy

    return make_checked


def _backend_name(backend: str, attached: bool, merging: TokenMerging | None) -> str | None:
    if not attached:
        return None
    return backend if merging is None else "sdpa"


def apply(
    pipe: Any,
    method: str | None = None,
    *,
    policy: MaskPolicy | Callable[[int], MaskPolicy] | None = None,
    **settings: Any,
) -> Handle:
    """Run a diffusers pipeline with a method of adaspa, or with your own, until the handle is removed.

    ``pab``, ``adacache`` and ``tomesd`` are methods too; ``cache="first-block"`` and the like join a cache to a method.

    Args:
        pipe: a pipeline of a family that adaspa knows, on its device.
        method: a method preset, such as ``adaspa``, ``sparse-videogen``, ``full`` or ``pab``. None is the default of
            ``adaspa generate``: ``adaspa-plus``, or with ``masks`` ``adaspa``.
        policy: a method of your own instead of a preset, or a function that builds one from the number of denoising
            steps; docs/own-method.md has an example. It excludes ``method``.
        settings: any field of :class:`~adaspa_cli.config.schema.MethodConfig`, such as ``sparsity=0.8``,
            ``search_steps=(10, 30)``, ``linear="fp8"`` or ``cache="pab"``; with a policy only those that belong to no
            method.

    Raises:
        ConfigError: an unknown method or setting, or an impossible value.
        ModelError: the pipeline belongs to an unsupported family.
        BackendError: the attention backend, or ``linear="fp8"``, cannot run on the pipeline's device.
        MaskFileError: ``masks`` names a file that is corrupt or does not fit.
        RunError: adaspa, or a cache of diffusers, is applied to the pipeline already.
    """
    from adaspa_cli.config.load import method_config

    if policy is None:
        named = unnamed_method(settings) if method is None else method
        return Handle(pipe, method_config(named, settings))
    _check_own_method(method, policy, settings)
    make = (lambda _steps: policy) if isinstance(policy, MaskPolicy) else policy
    return Handle(pipe, method_config(PAPERS_METHOD, settings), policy=make)


def _check_own_method(method: str | None, policy: object, settings: dict[str, Any]) -> None:
    """Refuse settings that a policy ignores; raises ConfigError."""
    if not callable(policy) and not isinstance(policy, MaskPolicy):
        raise ConfigError(f"policy must be a MaskPolicy, or a function that makes one, not {type(policy).__name__}")
    if method is not None:
        raise ConfigError(f"method '{method}' and a policy exclude each other", hint="drop one of them")
    own = {key for part in (*get_args(Algorithm), *get_args(Merging), MaskFileConfig) for key in keys_of(part)}
    for key in settings:
        if key in own or key == "merge":
            raise ConfigError(f"'{key}' has no effect on a policy of your own", hint="make it a setting of the policy")
