"""The order of rows: what stands together, what comes first, and what an entry says."""

import torch

from adaspa_kernels.schedule import LONG, kept_schedule, schedule


def entries(counts: torch.Tensor, key_blocks: int, teams: int) -> list[tuple[int, int, bool]]:
    """Row, count, and whether others wait for it, of each entry."""
    return [
        (entry & 0x7FFFFFFF, entry >> 32 & 0x3FFFFFFF, entry >> 62 == 0)
        for entry in schedule(counts, key_blocks, teams).tolist()
    ]


def test_every_row_comes_once_with_its_count() -> None:
    counts = torch.randint(0, 50, (2, 3, 40), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    found = entries(counts, 60, 8)
    assert sorted(row for row, *_ in found) == list(range(240))
    assert [count for _, count, _ in found] == [int(counts.flatten()[row]) for row, *_ in found]


def test_heads_stand_together_sorted_in_turns_and_the_last_one_falls() -> None:
    counts = torch.randint(8, 12, (1, 4, 30), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    counts[0, 2] *= 2
    found = entries(counts, 60, 8)
    for head in range(4):
        part = found[head * 30 : head * 30 + 30]
        assert {row // 30 for row, *_ in part} == {head}
        lengths = [count for _, count, _ in part]
        assert lengths == sorted(lengths, reverse=head % 2 == 1)
        ties = [row for row, count, _ in part if count == lengths[0]]
        assert ties == sorted(ties)


def test_rows_far_longer_than_the_mean_come_first_and_nobody_waits_for_them() -> None:
    counts = torch.full((1, 3, 50), 4, dtype=torch.int32)
    counts[:, :, -2:] = 60
    found = entries(counts, 60, 8)
    assert [row for row, *_ in found[:6]] == [48, 49, 98, 99, 148, 149]
    assert [waited for *_, waited in found[:6]] == [False] * 6
    assert all(waited for *_, waited in found[6:])
    assert counts.max() > LONG * counts.float().mean()


def test_counts_that_no_list_can_have_are_brought_into_range() -> None:
    counts = torch.tensor([[[-5, 99, 3]]], dtype=torch.int32)
    assert sorted(count for _, count, _ in entries(counts, 10, 2)) == [0, 3, 10]


def test_a_schedule_is_kept_as_long_as_its_counts_are_what_they_were() -> None:
    counts = torch.tensor([[3, 9, 6]], dtype=torch.int32)
    first = kept_schedule(counts, (2, 1, 3), 10, 2)
    assert kept_schedule(counts, (2, 1, 3), 10, 2) is first
    assert torch.equal(first, schedule(counts.expand(2, 1, 3), 10, 2))
    counts[0, 0] = 10
    changed = kept_schedule(counts, (2, 1, 3), 10, 2)
    assert torch.equal(changed, schedule(counts.expand(2, 1, 3), 10, 2))
    assert not torch.equal(changed, first)
    assert len(kept_schedule(counts, (1, 1, 3), 10, 2)) == 3


def test_counts_of_inference_mode_have_a_schedule_too() -> None:
    with torch.inference_mode():
        counts = torch.tensor([[3, 9, 6]], dtype=torch.int32)
        assert len(kept_schedule(counts, (1, 1, 3), 10, 2)) == 3
