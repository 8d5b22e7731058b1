"""Runs the Hopper kernels' own source on the CPU: a small stand-in for the interpreter that Gluon does not have.

Each role of a program is a thread, each barrier keeps its parity, arrivals and bytes, tensors are those of PyTorch, and
shared memory, full of NaN at first, is laid out in boxes as the kernels describe it. Copies and products happen at
once: that their delays do no harm is test_hopper_ring.py's part. Layouts of registers, swizzling and speed are not
modelled; test_compile_sm90.py has what the compiler says.

Only what the kernels use is here. Integers are Python's, wrapped so that they can be cast.
"""

import itertools
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

PATIENCE = 30  # seconds; a wait that lasts longer is a deadlock
PAUSE = 0.0005  # seconds between two looks at another program's progress
RESIDENT = 2  # programs at one time, as on a GPU with that many multiprocessors
ELEMENT_BYTES = 2  # what the kernels count, also where the tests pass float32


class Number(int):
    """An integer that can be cast, as can what is computed from it."""

    def to(self, _: object) -> "Number":
        return self


def _computed(name: str) -> Callable[[int, Any], Any]:
    plain = getattr(int, name)

    def method(self: int, other: Any) -> Any:
        result = plain(self, other)
        return Number(result) if isinstance(result, int) else result

    return method


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "mod", "and", "xor", "lshift", "rshift"):
    setattr(Number, f"__{_name}__", _computed(f"__{_name}__"))


class Pointer(NamedTuple):
    """A place, or a tensor of places, in a tensor's memory."""

    memory: Tensor
    offset: Any

    def __add__(self, offset: Any) -> "Pointer":  # type: ignore[override]
        return Pointer(self.memory, self.offset + offset)


class Barrier:
    """A barrier in shared memory: parity of the current phase, and what is missing to end it."""

    def __init__(self, program: "Program") -> None:
        self.program = program
        self.parity, self.arrivals, self.missing, self.bytes = 0, 0, 0, 0

    def change(self, arrivals: int, size: int) -> None:
        with self.program.changed:
            self.missing -= arrivals
            self.bytes += size
            assert self.missing >= 0, "more arrivals than the barrier expects"
            if self.missing == 0 and self.bytes == 0:
                self.parity ^= 1
                self.missing = self.arrivals
            self.program.changed.notify_all()

    def wait(self, parity: int) -> None:
        with self.program.changed:
            ended = self.program.changed.wait_for(lambda: self.parity != parity or self.program.failed, PATIENCE)
            if self.program.failed:
                raise RuntimeError("another role of the program failed")
            assert ended, "deadlock"


class Shared:
    """Boxes [boxes, rows, columns] in shared memory, seen as ``shape``: [slots, rows, columns] or a part of it.

    Where the shape's columns exceed a box's, its panels of columns lie one after the other, all rows of each.
    """

    def __init__(self, memory: Tensor, shape: list[int], layout: object = None) -> None:
        self.memory, self.shape, self.layout = memory, shape, layout

    def index(self, place: int) -> "Shared":
        size = self.memory.numel() // self.shape[0]
        return Shared(self.memory.flatten()[place * size : (place + 1) * size], self.shape[1:], self.layout)

    def seen_as(self, _: object, shape: list[int], layout: object) -> "Shared":
        return Shared(self.memory, list(shape), layout)

    def _view(self) -> Tensor:
        rows, columns = self.shape[-2:]
        box = columns if self.layout == "plain" else min(columns, 64)
        return self.memory.view(columns // box, rows, box).transpose(0, 1)

    def load(self, _: object = None) -> Tensor:
        if len(self.shape) == 1:
            return self.memory.clone()
        return self._view().reshape(self.shape[-2:])

    def store(self, value: Tensor) -> None:
        if len(self.shape) == 1:
            self.memory.copy_(value)
            return
        self._view().copy_(value.reshape(self._view().shape))

    def permute(self, _: object) -> Tensor:
        return self.load().T


class Program:
    """The names of Gluon, for one program of the grid."""

    static_range = range
    float32, int32, int64 = torch.float32, torch.int32, torch.int64
    exp2, log2 = staticmethod(torch.exp2), staticmethod(torch.log2)

    def __init__(self, place: tuple[int, ...], grid: tuple[int, ...], atomics: threading.Lock) -> None:
        self.place, self.grid, self.atomics = place, grid, atomics
        self.spins = 0
        self.changed = threading.Condition()
        self.failed: BaseException | None = None

    def program_id(self, axis: int) -> Number:
        return Number(self.place[axis])

    def num_programs(self, axis: int) -> Number:
        return Number(self.grid[axis])

    def allocate_shared_memory(self, dtype: Any, shape: list[int], layout: object) -> Any:
        if dtype == torch.int64:  # barriers
            return Barriers([Barrier(self) for _ in range(shape[0])])
        garbage = torch.nan if dtype.is_floating_point else 99_999
        return Shared(torch.full([torch.Size(shape).numel()], garbage, dtype=dtype), list(shape), layout)

    def warp_specialize(self, roles: list[tuple[Callable[..., None], tuple[Any, ...]]], *_: object) -> None:
        def run(role: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            try:
                role(*arguments)
            except BaseException as error:
                with self.changed:
                    self.failed = self.failed or error
                    self.changed.notify_all()

        threads = [threading.Thread(target=run, args=role) for role in roles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed

    def __getattr__(self, name: str) -> Callable[..., str]:
        """Layouts: only how boxes lie in shared memory matters."""
        assert name.endswith("Layout"), f"{name} is not modelled"
        return lambda *_: "plain" if name == "SwizzledSharedLayout" else "panels"

    # --- tensors

    def arange(self, start: int, end: int, _: object) -> Tensor:
        return torch.arange(start, end)

    def zeros(self, shape: list[int], dtype: torch.dtype, _: object) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, Tensor):
            return torch.where(condition, a, b)
        return a if condition else b

    def maximum(self, a: Any, b: Any) -> Any:
        return torch.maximum(a, torch.as_tensor(b)) if isinstance(a, Tensor) else Number(max(a, b))

    def minimum(self, a: Any, b: Any) -> Any:
        return torch.minimum(a, torch.as_tensor(b)) if isinstance(a, Tensor) else Number(min(a, b))

    def full(self, shape: list[int], value: int, dtype: torch.dtype, _: object) -> Tensor:
        return torch.full(shape, value, dtype=dtype)

    def max(self, x: Tensor, axis: int) -> Any:
        largest = x.amax(axis)
        return Number(largest) if largest.dtype == torch.int32 else largest

    def num_warps(self) -> int:
        return 4

    def sum(self, x: Tensor, axis: int) -> Tensor:
        return x.sum(axis)

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def convert_layout(self, x: Tensor, _: object) -> Tensor:
        return x

    def atomic_add(self, pointer: Pointer, value: int, **_: str) -> Number:
        with self.atomics:
            before = Number(pointer.memory[pointer.offset])
            pointer.memory[pointer.offset] += value
        return before

    def load(self, pointer: Pointer, mask: Any = True, other: Any = 0, volatile: bool = False) -> Any:
        if volatile:
            self._let_others_run()
        if not isinstance(pointer.offset, Tensor):
            return Number(pointer.memory[pointer.offset]) if mask else Number(other)
        mask = torch.as_tensor(mask)
        places = torch.where(mask, pointer.offset, 0)
        return torch.where(mask, pointer.memory[places], other)

    def store(self, pointer: Pointer, value: Any, mask: Any = True) -> None:
        if not isinstance(value, Tensor):
            pointer.memory[pointer.offset] = value
            return
        kept = torch.as_tensor(mask).expand(value.shape)
        pointer.memory[pointer.offset[kept]] = value[kept]

    def warpgroup_mma(self, a: Any, b: Any, acc: Tensor, use_acc: bool = True, **_: bool) -> Tensor:
        left, right = (x.load() if isinstance(x, Shared) else x for x in (a, b))
        product = left.float() @ right.float()
        return acc + product if use_acc else product

    def warpgroup_mma_wait(self, _: int, deps: list[Tensor]) -> Tensor:
        return deps[0]

    # --- barriers and copies

    def init(self, barrier: Barrier, count: int) -> None:
        barrier.arrivals = barrier.missing = count

    def wait(self, barrier: Barrier, parity: int) -> None:
        barrier.wait(parity)

    def expect(self, barrier: Barrier, size: int) -> None:
        barrier.change(1, size)

    def arrive(self, barrier: Barrier, count: int) -> None:
        barrier.change(count, 0)

    def mbarrier_arrive(self, barrier: Barrier, **_: bool) -> None:
        barrier.change(128, 0)  # one of each thread

    def load_box(self, source: Tensor, at: list[int], barrier: Barrier, box: Shared) -> None:
        batch, head, row, column = at
        rows = source[batch, head, row : row + 64, column : column + 64]
        box.store(torch.nn.functional.pad(rows, (0, 0, 0, 64 - rows.shape[0])))
        barrier.change(0, -64 * 64 * ELEMENT_BYTES)

    def store_box(self, target: Tensor, at: list[int], box: Shared) -> None:
        batch, head, row, column = at
        place = target[batch, head, row : row + 64, column : column + 64]
        place.copy_(box.load()[: place.shape[0]])

    def store_wait(self, _: int) -> None:
        pass

    def _let_others_run(self) -> None:
        """Somebody waits for another program: not for ever."""
        self.spins += 1
        assert self.spins * PAUSE < PATIENCE, "deadlock between programs"
        time.sleep(PAUSE)


class Barriers:
    """Barriers in shared memory."""

    def __init__(self, barriers: list[Barrier]) -> None:
        self.barriers = barriers

    def index(self, place: int) -> Barrier:
        return self.barriers[place]


COMPILER_OPTIONS = ("num_warps", "maxnreg", "enable_fp_fusion")


class Kernel:
    """Stands for a jitted kernel: ``kernel[grid](*args, **options)`` runs all programs, ``RESIDENT`` at a time."""

    def __init__(self, module: types.ModuleType, name: str) -> None:
        self.module, self.name = module, name
        self.fn = getattr(module, name).fn  # found by _function, in whose module this object takes the kernel's place

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            arguments = [_argument(x) for x in args]
            constants = {name: value for name, value in options.items() if name not in COMPILER_OPTIONS}
            atomics = threading.Lock()
            programs = [Program(place, grid, atomics) for place in itertools.product(*map(range, grid))]
            with ThreadPoolExecutor(RESIDENT) as pool:
                for done in [pool.submit(self._function(program), *arguments, **constants) for program in programs]:
                    done.result()

        return launch

    def _function(self, program: Program) -> Callable[..., None]:
        """The kernel's function, with Gluon's names replaced in it and in all that it calls."""
        function: Callable[..., None] = as_python(self.module, program)[self.name]
        return function


def as_python(module: types.ModuleType, gluon: Any, **replaced: Any) -> dict[str, Any]:
    """The names of a module of kernels as plain Python: ``gluon`` stands for Gluon in all functions of ours.

    Args:
        replaced: what stands for other names, in whatever module.
    """
    instead = dict.fromkeys(("gl", "mbarrier", "tma", "async_copy"), gluon) | {
        "warpgroup_mma": gluon.warpgroup_mma,
        "warpgroup_mma_wait": gluon.warpgroup_mma_wait,
        "fence_async_shared": lambda: None,
        "load_box": gluon.load_box,
        "store_box": gluon.store_box,
        "seen_as": lambda memory, *seen: memory.seen_as(*seen),
        **replaced,
    }
    modules: dict[str, dict[str, Any]] = {}

    def names_of(module: types.ModuleType) -> dict[str, Any]:
        if module.__name__ in modules:
            return modules[module.__name__]
        names = modules[module.__name__] = {}
        for key, value in vars(module).items():
            function = getattr(value, "fn", None)
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                names[key] = types.FunctionType(function.__code__, names, key, function.__defaults__)
            elif isinstance(function, types.FunctionType) and function.__module__.startswith("adaspa_kernels."):
                names[key] = names_of(sys.modules[function.__module__])[function.__name__]
            elif hasattr(value, "value"):  # a constexpr
                names[key] = value.value
        names |= instead
        return names

    return names_of(module)


class Descriptor(Tensor):
    """A tensor that a kernel copies boxes from or to."""

    layout = "panels"  # type: ignore[assignment]


def boxes(x: Tensor) -> Any:
    """What ``hopper.boxes`` gives, for :class:`Program`."""
    return x.as_subclass(Descriptor)


def _argument(x: Any) -> Any:
    if isinstance(x, Descriptor | float):
        return x
    if isinstance(x, Tensor):
        return Pointer(x.as_strided([x.untyped_storage().nbytes() // x.element_size()], [1], 0), x.storage_offset())
    return Number(x)
