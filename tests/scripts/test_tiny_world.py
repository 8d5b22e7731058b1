"""Scenes, captions and clips of the drawn world, and the judge against clips whose scene is known."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.tiny_world.captions import caption_of, every_wording, standard_caption
from scripts.tiny_world.draw import distance_to, draw, to_uint8
from scripts.tiny_world.judge import Verdict, judge
from scripts.tiny_world.plan import OUTER, Plan, extent_of, fits, held_out_scenes, plan_clips, plan_scenes, spread
from scripts.tiny_world.scenes import is_held_out
from scripts.tiny_world.words import BACKGROUNDS, COLORS, MOTIONS, PATTERNS, SHAPES, Scene, Thing

CROSSING = Scene(
    (Thing("star", "red", "left", "small", "fast"), Thing("square", "white", "still")),
    "blue",
    "striped",
    "down",
    "behind",
)


def clips_of(plan: Plan, frames: int = 17, height: int = 128, width: int = 128) -> np.ndarray:
    return to_uint8(draw(plan, frames, height, width, "cpu")[0]).numpy()


class TestScenes:
    def test_held_out_combinations_are_never_planned_for_training(self) -> None:
        plan = plan_clips(600, 5)
        drawn = {(t.shape, t.color, t.motion, scene.background) for scene in plan.scenes for t in scene.things}
        assert not [combination for combination in drawn if is_held_out(*combination)]

    def test_the_evaluation_is_held_out_fits_and_covers_every_word(self) -> None:
        scenes = held_out_scenes()
        assert len(scenes) == len({standard_caption(scene) for scene in scenes}) == 256
        things = [(thing, scene) for scene in scenes for thing in scene.things]
        assert all(is_held_out(t.shape, t.color, t.motion, scene.background) for t, scene in things)
        assert all(thing.is_drawable(scene.background) for thing, scene in things)
        assert all(map(fits, scenes))
        for field, words in (("shape", SHAPES), ("color", COLORS), ("motion", MOTIONS)):
            assert min(Counter(getattr(thing, field) for thing, _ in things)[word] for word in words) >= 20
        assert min(Counter(scene.pattern for scene in scenes)[pattern] for pattern in PATTERNS) >= 30
        assert len(spread(scenes, 24)) == 24

    @pytest.mark.parametrize("wrong", [{"background": "pink"}, {"things": ()}, {"things": CROSSING.things[:1] * 2}])
    def test_impossible_scenes_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r"background is 'pink'|one to three objects"):
            dataclasses.replace(CROSSING, **wrong)  # type: ignore[arg-type]


class TestCaptions:
    def test_standard_wording(self) -> None:
        expected = (
            "a small red star moves left quickly behind a white square on a blue striped background that drifts down"
        )
        assert standard_caption(CROSSING) == expected

    def test_no_wording_leaves_out_or_adds_what_is_shown(self) -> None:
        plain = Scene((Thing("ring", "green", "bounces"),), "black")
        for seed in range(60):
            caption = caption_of(CROSSING, random.Random(seed))
            assert all(word in caption for word in ("red star", "blue", "striped", "behind")), caption
            assert ("drift" in caption and "down" in caption) or "camera moves up" in caption
            words = set(caption_of(plain, random.Random(seed)).rstrip(".").replace(",", "").split())
            assert words >= {"green", "ring", "black"}
            assert not words & {"small", "slowly", "striped", "drifts", "behind", "camera"}

    def test_few_words(self) -> None:
        assert len({word.strip(",.") for caption in every_wording() for word in caption.split()}) < 120


class TestClips:
    def test_same_seed_same_clips(self) -> None:
        one, other, third = (plan_clips(4, seed) for seed in (1, 1, 2))
        assert one.captions == other.captions != third.captions
        assert np.array_equal(clips_of(one, 5, 64, 96), clips_of(other, 5, 64, 96))

    def test_range_and_shape(self) -> None:
        clip, cover = draw(plan_clips(6, 0, extent_of(64, 96)), 5, 64, 96, "cpu")
        assert clip.shape == (6, 3, 5, 64, 96)
        assert cover.shape == (6, 1, 5, 64, 96)
        assert clip.abs().max() <= 1.0
        assert 0.0 <= cover.min() < cover.max() == 1.0

    def test_rows_are_the_same_clips(self) -> None:
        plan = plan_clips(8, 3)
        assert np.array_equal(clips_of(plan, 5)[3:6], clips_of(plan.rows(3, 6), 5))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_outlines_have_their_centre_and_reach_where_the_plan_has_them(self, shape: str) -> None:
        side = torch.linspace(-2.0, 2.0, 801)
        kind, one = torch.tensor([SHAPES.index(shape)]), torch.ones(1, 1, 1, 1)
        inside = distance_to(kind, side.view(1, 1, 1, -1), side.view(1, 1, -1, 1), one, 0 * one)[0, 0] <= 0
        assert 0 <= OUTER[shape] - torch.hypot(side, side[:, None])[inside].max() < 0.01
        centroid = [float(side[index].mean()) for index in torch.where(inside)]
        assert centroid == pytest.approx([0.0, 0.0], abs=0.005)  # or what turns would move as well

    def test_every_object_stays_in_the_frame(self) -> None:
        for extent in ((1.0, 1.0), (1.5, 1.0), (1.0, 5 / 3)):
            plan = plan_clips(96, 9, extent)
            _, cover = draw(plan, 9, round(96 * extent[1]), round(96 * extent[0]), "cpu")
            cover[..., 1:-1, 1:-1] = 0.0
            assert cover.max() == 0.0, "an object reaches the rim"

    @pytest.mark.parametrize("extent", [(1.0, 1.0), (5 / 3, 1.0), (1.0, 1.25)])
    def test_objects_stand_in_the_order_of_the_caption(self, extent: tuple[float, float]) -> None:
        plan = plan_clips(200, 8, extent)
        for scene, numbers in zip(plan.scenes, plan.objects, strict=True):
            if scene.crossing or len(scene.things) == 1:
                continue
            first, last = numbers[: len(scene.things), 4:6], numbers[: len(scene.things), 6:8]
            apart = torch.minimum(first[1:], last[1:]) - torch.maximum(first[:-1], last[:-1])  # along x, y
            assert (apart > 0.0).all(0).any(), (scene, numbers)

    @pytest.mark.parametrize(
        ("motions", "axis"),
        [("left right", 1), ("still left", 1), ("up down", 0), ("still bounces", 0), ("grows still", 0)],
    )
    def test_what_moves_sideways_stands_in_a_column(self, motions: str, axis: int) -> None:
        """And everything else in a row, where there is room for both."""
        first, second = motions.split()
        scene = Scene((Thing("circle", "red", first, "small"), Thing("ring", "blue", second, "small")), "gray")
        for seed in range(12):
            one, other = plan_scenes([scene], seed, (2.0, 2.0)).objects[0, :2]
            start, end = 4 + axis, 6 + axis
            assert max(one[start], one[end]) < min(other[start], other[end])

    def test_one_alone_stands_near_the_middle(self) -> None:
        scene = Scene((Thing("circle", "red", "still", "small"),), "gray")
        placed = torch.stack([plan_scenes([scene], seed).objects[0, 0, 4:6] for seed in range(200)])
        assert placed.min() >= 0.29
        assert placed.max() <= 0.71
        assert (placed.amax(0) - placed.amin(0) > 0.25).all()

    def test_what_passes_behind_is_hidden(self) -> None:
        def red(scene: Scene) -> float:
            middle = clips_of(plan_scenes([scene], 4), 9)[0, 4].astype(int)
            return float(((middle[..., 0] > 120) & (middle[..., 1] < 90)).mean())

        assert red(CROSSING) < 0.3 * red(dataclasses.replace(CROSSING, crossing="front"))

    def test_middle_of_motion_is_between_its_ends(self) -> None:
        _, cover = draw(plan_scenes([Scene((Thing("circle", "red", "right"),), "gray")], 0), 9, 64, 64, "cpu")
        centre = (cover[0, 0] * torch.arange(64)).sum((1, 2)) / cover[0, 0].sum((1, 2))
        assert (centre.diff() > 1.0).all()
        assert centre.diff().std() < 0.3


def right(plan: Plan, clips: np.ndarray) -> dict[str, float]:
    hits: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for scene, frames in zip(plan.scenes, clips, strict=True):
        for category, found in judge(frames).hits(scene).items():
            hits[category] += sum(found)
            count[category] += len(found)
    return {category: hits[category] / count[category] for category in count if count[category]}


class TestJudge:
    @pytest.mark.parametrize(
        ("seed", "frames", "height", "width"), [(11, 17, 128, 128), (12, 25, 96, 160), (13, 17, 160, 128)]
    )
    def test_drawn_clips_are_judged_right(self, seed: int, frames: int, height: int, width: int) -> None:
        plan = plan_clips(16, seed, extent_of(height, width))
        shares = right(plan, clips_of(plan, frames, height, width))
        assert min(shares.values()) == 1.0, shares

    def test_blurred_and_noisy_clips_are_judged_right(self) -> None:
        plan = plan_clips(16, 21)
        clips, _ = draw(plan, 17, 128, 128, "cpu")
        small = F.interpolate(clips, scale_factor=(1, 0.5, 0.5), mode="trilinear")
        noisy = F.interpolate(small, size=clips.shape[2:], mode="trilinear")
        noisy = noisy + 0.03 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
        shares = right(plan, to_uint8(noisy).numpy())
        assert min(shares[name] for name in ("background", "color", "shape", "motion", "order")) >= 0.98, shares

    def test_a_bounce_close_to_another_object_is_seen(self) -> None:
        things = (
            Thing("triangle", "orange", "bounces"),
            Thing("square", "pink", "up"),
            Thing("circle", "yellow", "bounces"),
        )
        plan = plan_scenes([Scene(things, "white", "speckled", "up")], 186)
        assert right(plan, clips_of(plan, frames=33))["motion"] == 1.0

    def test_captions_of_other_clips_are_judged_wrong(self) -> None:
        plan = plan_scenes([CROSSING], 3)
        verdict = judge(clips_of(plan)[0])
        assert all(all(found) for found in verdict.hits(CROSSING).values())
        star, square = CROSSING.things

        def wrong(**changes: object) -> set[str]:
            hits = verdict.hits(dataclasses.replace(CROSSING, **changes))  # type: ignore[arg-type]
            return {category for category, found in hits.items() if not all(found)}

        assert wrong(background="brown") == {"background", "all"}
        assert wrong(pattern="checkered") == {"pattern"}
        assert wrong(drift="up") == {"drift"}
        assert wrong(crossing="front") == {"order", "all"}
        whole = {"two right", "all"}
        assert wrong(things=(dataclasses.replace(star, shape="heart"), square)) == {"shape"} | whole
        assert wrong(things=(dataclasses.replace(star, motion="right"), square)) == {"motion"} | whole
        assert wrong(things=(dataclasses.replace(star, speed="slow"), square)) == {"speed"}
        assert wrong(things=(dataclasses.replace(star, size="large"), square)) == {"size"}
        swapped = (dataclasses.replace(star, color="white"), dataclasses.replace(square, color="red"))
        assert {"shape", "motion", "order"} | whole <= wrong(things=swapped)
        assert {"color", "shape", "motion"} | whole <= wrong(things=(dataclasses.replace(star, color="green"), square))

    def test_an_object_too_many_is_wrong(self) -> None:
        plan = plan_scenes([CROSSING], 3)
        verdict = judge(clips_of(plan)[0])
        alone = dataclasses.replace(CROSSING, things=CROSSING.things[:1], crossing="")
        assert verdict.hits(alone)["color"] == [False]
        circle = Scene((Thing("circle", "red", "still"),), "gray")
        once = clips_of(plan_scenes([circle], 1))[0]
        assert judge(once).hits(circle)["color"] == [True]
        small = Scene((Thing("circle", "red", "still", "small"),), "gray")
        small_one = clips_of(plan_scenes([small], 1))[0]
        for other, shift in ((once, (0, -40)), (small_one, (0, -30)), (small_one, (40, -50))):  # close by; in a corner
            aside = np.roll(other, shift, axis=(1, 2))
            twice = np.where((aside[..., :1] > 140) & (aside[..., 1:2] < 90), aside, once)
            assert judge(twice).twice
            assert judge(twice).hits(circle)["color"] == [False]

    def test_a_colour_in_opposite_corners_is_no_object(self) -> None:
        rows, columns = np.mgrid[:128, :128]
        frame = np.full((128, 128, 3), BACKGROUNDS["white"], dtype=np.uint8)
        for at in (14, 114):  # nothing of it lies near its centre
            frame[(rows - at) ** 2 + (columns - at) ** 2 < 81] = COLORS["red"]
        assert judge(np.stack([frame] * 9)) == Verdict({}, "white", "plain", "still")

    def test_empty_and_noisy_clips_show_no_object(self) -> None:
        assert judge(np.full((9, 64, 64, 3), 132, dtype=np.uint8)) == Verdict({}, "gray", "plain", "still")
        judge(np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8))

    @pytest.mark.parametrize("shape", [(9, 64, 64), (2, 64, 64, 3), (9, 32, 64, 3)])
    def test_other_input_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"must be uint8|at least 5 frames"):
            judge(np.zeros(shape, np.uint8))
