"""Masks of the conditional branch for the other: fitted to its text once a search, kept no longer than needed."""

import dataclasses
import weakref

import pytest
import torch

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.errors import RunError
from adaspa_cli.masks import Call, FoundMask
from adaspa_cli.masks.plan import MaskSource
from adaspa_cli.masks.text import fit_to_text
from adaspa_cli.sampling.lending import Lending
from adaspa_cli.sampling.mask_memory import KnownMask, MaskMemory

LAYOUT = TokenLayout(frames=6, height=4, width=4, text_tokens=10, text_position="last")
BLOCK = 16
LENDER = Call(0, 0, "cond", 0, LAYOUT)
BORROWER = Call(0, 0, "uncond", 0, dataclasses.replace(LAYOUT, text_tokens=40))


def found(seed: int) -> FoundMask:
    blocks = LAYOUT.blocks(BLOCK)
    kept = torch.rand(2, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[:, -1], kept[:, :, -1] = True, True  # the block with text
    return FoundMask(BlockMask.from_bool(kept, (BLOCK, BLOCK)), None)


def remember(memory: MaskMemory, step: int, source: MaskSource = MaskSource.SEARCH) -> FoundMask:
    mask = found(step)
    memory.keep(LENDER, KnownMask(LAYOUT, step, source, mask, mask.mask.density()))
    return mask


def test_a_mask_is_fitted_once_a_search() -> None:
    memory = MaskMemory()
    lending = Lending(memory)
    for step in (0, 3):
        lent = remember(memory, step)
        borrowed = lending.borrow(BORROWER)
        expected = fit_to_text(lent, LAYOUT, BORROWER.layout).mask
        assert torch.equal(borrowed.found.mask.to_bool(), expected.to_bool())
        assert torch.equal(borrowed.density, expected.density())
        assert lending.borrow(dataclasses.replace(BORROWER, step=step + 1)) is borrowed


def test_each_run_has_masks_of_its_own_also_where_the_step_that_found_them_is_the_same() -> None:
    memory = MaskMemory()
    lending = Lending(memory)
    remember(memory, 0)
    before = lending.borrow(BORROWER)
    memory.forget()
    lending.forget()
    remember(memory, 0)
    assert lending.borrow(BORROWER) is not before


def test_an_estimated_mask_is_lent_once_and_given_back() -> None:
    memory = MaskMemory()
    lending = Lending(memory)
    remember(memory, 1, MaskSource.ESTIMATE)
    borrowed = weakref.ref(lending.borrow(BORROWER).found.mask.indices)
    assert borrowed() is None
    assert memory.masks() == {}
    with pytest.raises(RunError, match="must borrow a mask at step 0, but there is none"):
        lending.borrow(BORROWER)
