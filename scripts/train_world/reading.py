"""Teaches the text encoders, and the transformer's refiner behind them, to read before any clip is seen.

The loss of a diffusion model says little about words at first: it has to learn to draw before a colour at the wrong
object costs anything. Here questions about a scene are put to its caption instead. An object is asked for by its
colour, because no two in a scene share one: is it there, what shape, motion, size and speed has it, and of several that
stand in a line, is it the first, second or third. One more question is about the background. Each is answered from one
weighted mean of the refined tokens, so that what belongs together must lie in the same tokens. The pooled embedding
answers all of them by itself.

The questions' own weights are thrown away afterwards. Two CPU cores are enough.

A transformer that clips were trained on knows these tokens and embeddings; they then change only as far as a new
question needs.

Shapes: B captions, L tokens of them, Q questions (8 colours and the background).
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, LlamaModel

from scripts.tiny_world.captions import caption_of
from scripts.tiny_world.plan import held_out_scenes
from scripts.tiny_world.scenes import random_scene
from scripts.tiny_world.words import (
    BACKGROUNDS,
    COLORS,
    CROSSINGS,
    DRIFTS,
    MOTIONS,
    PATTERNS,
    SHAPES,
    SIZES,
    SPEEDS,
    Scene,
)
from scripts.train_world.checkpoint import generator_at, load_modules, module_tensors, random_at
from scripts.train_world.earlier import METRICS, QUESTIONS, TEXT_STAGE, first_weights, went_through
from scripts.train_world.loop import Loop, LoopConfig
from scripts.train_world.network import TransformerConfig, build_modules
from scripts.train_world.parallel import rank, share, stream
from scripts.train_world.recipe import STAGES
from scripts.train_world.text import TEMPLATE_TOKENS, Text, Tokens, states_after_template, tokenize

_REFINER = "transformer.context_embedder"
_WORDS = {"shape": SHAPES, "motion": MOTIONS, "size": SIZES, "speed": SPEEDS}
_OBJECT = {"there": ("no", "yes"), **_WORDS, "place": ("first", "second", "third")}
_GROUND = {"background": tuple(BACKGROUNDS), "pattern": PATTERNS, "drift": DRIFTS, "crossing": CROSSINGS}
_POOLED_WEIGHT = 0.5
_KEPT_WEIGHT = 100.0  # of the squared change of what is known, as a share of its square
_BATCHES = 8  # drawn at once and sorted by length, so that no caption is padded


@dataclass(frozen=True)
class Answers:
    """For each colour and for the background, the number of the right answer: ``objects`` [B, 8, 6] and ``ground``
    [B, 4]. What doesn't apply is -100, which cross entropy leaves out: all but the first answer of an object that isn't
    there, and the place of one that doesn't stand in a line with others."""

    objects: Tensor
    ground: Tensor


def answers_of(scenes: Sequence[Scene]) -> Answers:
    """What is true of scenes."""
    colors, absent = list(COLORS), [0, *[-100] * (len(_OBJECT) - 1)]
    objects = torch.tensor([[absent] * len(colors)] * len(scenes))
    for row, scene in enumerate(scenes):
        in_line = len(scene.things) > 1 and not scene.crossing
        for place, thing in enumerate(scene.things):
            found = [words.index(getattr(thing, name)) for name, words in _WORDS.items()]
            objects[row, colors.index(thing.color)] = torch.tensor([1, *found, place if in_line else -100])
    ground = [[words.index(getattr(scene, name)) for name, words in _GROUND.items()] for scene in scenes]
    return Answers(objects, torch.tensor(ground))


class Questions(nn.Module):
    """Logits for each answer, by name, from refined tokens [B, L, width] or pooled embeddings [B, pooled width]."""

    def __init__(self, width: int, pooled_width: int) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.randn(len(COLORS) + 1, width))
        self.norm, self.key, self.value = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.object = nn.Linear(width, sum(map(len, _OBJECT.values())))
        self.ground = nn.Linear(width, sum(map(len, _GROUND.values())))
        everything = len(COLORS) * self.object.out_features + self.ground.out_features
        self.pooled = nn.Sequential(
            nn.LayerNorm(pooled_width), nn.Linear(pooled_width, width), nn.GELU(), nn.Linear(width, everything)
        )

    def of_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits about objects [B, 8, all answers] and the background [B, all answers]."""
        tokens = self.norm(tokens)
        weights = (self.asked @ self.key(tokens).mT * tokens.shape[-1] ** -0.5).softmax(dim=-1)  # [B, Q, L]
        heard = weights @ self.value(tokens)
        return self.object(heard[:, :-1]), self.ground(heard[:, -1])

    def of_pooled(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The same from pooled embeddings alone."""
        answers = self.pooled(pooled)
        objects = answers[:, : -self.ground.out_features].unflatten(1, (len(COLORS), -1))
        return objects, answers[:, -self.ground.out_features :]


def _by_name(logits: Tensor, answers: Tensor, names: Mapping[str, Sequence[str]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits [N, answers] and the right ones [N] of each question."""
    parts = logits.split([len(words) for words in names.values()], dim=-1)
    columns = answers.unbind(dim=-1)
    return {n: (p.flatten(0, -2), c.flatten()) for n, p, c in zip(names, parts, columns, strict=True)}


def _loss(said: tuple[Tensor, Tensor], answers: Answers) -> Tensor:
    asked = (
        *_by_name(said[0], answers.objects, _OBJECT).values(),
        *_by_name(said[1], answers.ground, _GROUND).values(),
    )
    # Of a question that none of these captions answers, the mean would be none.
    return torch.stack([F.cross_entropy(logits, right) for logits, right in asked if (right >= 0).any()]).sum()


@dataclass(frozen=True)
class Reader:
    """The modules that are taught, by the names that checkpoints have, and the tokenizers."""

    modules: dict[str, nn.Module]
    text: Text

    def read(self, tokens: Tokens, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Refined tokens [B, L, width] and pooled embeddings [B, pooled width] of captions of one length, told
        ``timestep`` [B]."""
        encoder, clip = self.modules["text_encoder"], self.modules["text_encoder_2"]
        assert isinstance(encoder, LlamaModel)
        assert isinstance(clip, CLIPTextModel)
        states = states_after_template(encoder, tokens.llama)
        longest = int((tokens.clip != self.text.tokenizer_2.pad_token_id).sum(dim=1).max()) + 1
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return self.modules[_REFINER](states, timestep, mask), clip(tokens.clip[:, :longest]).pooler_output

    def said(self, refined: Tensor, pooled: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Logits from what was read, from the tokens and from the pooled embeddings."""
        questions = self.modules[QUESTIONS]
        assert isinstance(questions, Questions)
        return questions.of_tokens(refined), questions.of_pooled(pooled)


def change(known: tuple[Tensor, Tensor], read: tuple[Tensor, Tensor]) -> Tensor:
    """Squared difference of tokens and of pooled embeddings to those that are known, as a share of their square."""
    parts = [(new - old).square().mean() / old.square().mean() for old, new in zip(known, read, strict=True)]
    return torch.stack(parts).sum()


def train_text(config: TransformerConfig, loop_config: LoopConfig, work: Path, device: torch.device) -> bool:
    """Train, resuming what ``work/text`` holds, or starting from the model in ``work/earlier``.

    Returns:
        True if the schedule came to its end.
    """
    modules, text = build_modules(config, loop_config.seed)
    taught = {
        "text_encoder": modules["text_encoder"],
        "text_encoder_2": modules["text_encoder_2"],
        _REFINER: modules["transformer"].context_embedder,
    }
    earlier = first_weights(work, ())
    if earlier is not None:
        load_modules(taught, {name: earlier[name] for name in module_tensors(taught)})
    known = Reader(copy.deepcopy(taught), text) if went_through(work, *STAGES) else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loop_config.seed)
        taught[QUESTIONS] = Questions(config.heads * config.head_dim, config.text.clip_width)
    for module in (*taught.values(), *(known.modules.values() if known is not None else ())):
        module.to(device)
    averaged = copy.deepcopy(taught)
    loop = Loop(taught, averaged, loop_config, work / TEXT_STAGE)
    loop.resume()
    captions, reader = _Captions(text, share(loop_config.batch), loop_config.seed, device), Reader(taught, text)

    def loss_at(step: int) -> Tensor:
        tokens, answers = captions.at(step)
        generator = generator_at(loop_config.seed, step, stream("text timestep"), device)
        timestep = 1000.0 * torch.rand(len(tokens.llama), generator=generator, device=device)
        read = reader.read(tokens, timestep)
        of_tokens, of_pooled = reader.said(*read)
        loss = _loss(of_tokens, answers) + _POOLED_WEIGHT * _loss(of_pooled, answers)
        if known is not None:
            with torch.no_grad():
                before = known.read(tokens, timestep)
            loss = loss + _KEPT_WEIGHT * change(before, read)
        return loss

    done = loop.run(loss_at)
    metrics = work / TEXT_STAGE / METRICS
    if done and rank() == 0 and not metrics.exists():
        right = measure(Reader(averaged, text), device)
        metrics.write_text(json.dumps(right, indent=1) + "\n")
        print(f"text done, right of held-out captions: {right}", flush=True)
    return done


class _Captions:
    """Captions of random scenes, all of a batch equally long."""

    def __init__(self, text: Text, batch: int, seed: int, device: torch.device) -> None:
        self._text, self._batch, self._seed, self._device = text, batch, seed, device
        self._block, self._tokens, self._scenes = -1, Tokens(*[torch.empty(0)] * 3), list[Scene]()

    def at(self, step: int) -> tuple[Tokens, Answers]:
        """Captions of a step, and what is true of their scenes: a batch by lot of those that were drawn together."""
        block, place = divmod(step, _BATCHES)
        rng = random_at(self._seed, block, stream("text captions"))
        if block != self._block:
            self._scenes = [random_scene(rng) for _ in range(self._batch * _BATCHES)]
            self._tokens, self._block = tokenize(self._text, [caption_of(scene, rng) for scene in self._scenes]), block
        order = self._tokens.length.argsort(stable=True)
        first = random_at(self._seed, block, "text order").sample(range(_BATCHES), _BATCHES)[place] * self._batch
        rows = order[first : first + self._batch]
        length = self._tokens.length[rows]
        rows = rows[length == length.mode().values]
        return _rows(self._tokens, rows, self._device), _on(answers_of([self._scenes[i] for i in rows]), self._device)


def _rows(tokens: Tokens, rows: Tensor, device: torch.device) -> Tokens:
    """Some captions of one length, without padding."""
    length = tokens.length[rows]
    llama = tokens.llama[rows, : TEMPLATE_TOKENS + int(length[0])]
    return Tokens(llama.to(device), length, tokens.clip[rows].to(device))


def _on(answers: Answers, device: torch.device) -> Answers:
    return Answers(answers.objects.to(device), answers.ground.to(device))


@torch.no_grad()
def measure(reader: Reader, device: torch.device) -> dict[str, dict[str, float]]:
    """Shares of right answers about the held-out scenes, each in two wordings, from tokens and from the pooled
    embeddings."""
    scenes = [*held_out_scenes()] * 2
    rng = random_at(0, 0, "wordings")
    tokens = tokenize(reader.text, [caption_of(scene, rng) for scene in scenes])
    right: dict[str, dict[str, list[Tensor]]] = {"tokens": {}, "pooled": {}}
    for length in tokens.length.unique():
        rows = (tokens.length == length).nonzero().flatten()
        answers = _on(answers_of([scenes[row] for row in rows]), device)
        timestep = torch.full((len(rows),), 500.0, device=device)
        said = reader.said(*reader.read(_rows(tokens, rows, device), timestep))
        for name, logits in zip(right, said, strict=True):
            asked = _by_name(logits[0], answers.objects, _OBJECT) | _by_name(logits[1], answers.ground, _GROUND)
            for question, (given, wanted) in asked.items():
                hits = (given.argmax(dim=-1) == wanted)[wanted >= 0]
                right[name].setdefault(question, []).append(hits.float())
    return {name: {q: round(float(torch.cat(h).mean()), 4) for q, h in found.items()} for name, found in right.items()}
