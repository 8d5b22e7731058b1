"""The page: a form on the left, what comes of it on the right; on a phone one below the other."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from adaspa_cli.errors import AdaspaError, ConfigError
from adaspa_cli.ui import panels
from adaspa_cli.ui.form import Offer, Start, Wanted
from adaspa_cli.ui.studio import Run, Studio

_TITLE = "Videos with block-sparse attention, made on this machine"
_ASKED = 100  # clicks that are remembered: more than there are while one page loads
_STEP = 0.01  # of the sparsity
_ROUNDED = 2**53  # from here on a browser has not every whole number
_SHOW_RESULT = "() => document.querySelector('#result').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


class Page:
    """The page, and the files that it shows. A run continues without it, and is shown when it is opened again.

    Attributes:
        blocks: for gradio.
    """

    def __init__(self, start: Start, studio: Studio) -> None:
        self._start, self._studio = start, studio
        self._runs: dict[str, Run] = {}  # by the tab that shows them
        self._asked: deque[str] = deque(maxlen=_ASKED)  # tabs that asked for a run, maybe before they have loaded
        self.blocks = self._build()

    def content(self, name: str) -> Any:
        """What is served under a name: the path of a video, or the text of a page; None where there is none."""
        for run in reversed(tuple(self._studio.done)):  # the studio goes on meanwhile
            if run.page is not None and name == panels.page_name(run):
                return run.page
            for made in run.made:
                if made.video is not None and name == made.video.name:
                    return made.video if made.video.is_file() else None  # it may have been removed
        return None

    def _build(self) -> Any:
        import gradio as gr

        model, method = self._start.model, self._start.method
        offer = self._start.offer(model, method)
        with gr.Blocks(title="adaspa", analytics_enabled=False) as blocks:
            gr.HTML(f"<div class='adaspa-head'><h1>adaspa</h1><p>{_TITLE}</p></div>")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    prompt = gr.Textbox(label="Prompt", lines=3, elem_id="prompt", placeholder=_placeholder(offer))
                    image = gr.Image(
                        label="Picture that the video begins with", type="filepath", format="png",
                        sources=["upload", "clipboard"], visible=offer.takes_image, elem_id="image", height=240,
                    )  # fmt: skip
                    with gr.Row():  # above what most leave as it is: it is seen without scrolling
                        go = gr.Button("Make the video", variant="primary", elem_id="go")
                        stop = gr.Button("Stop", visible=False, elem_id="stop")
                    compare = gr.Checkbox(label="Compare with dense attention", elem_id="compare")
                    words = gr.HTML(_words(offer), visible=bool(offer.words), elem_id="words")
                    models = gr.Dropdown(
                        self._start.models(), value=model, label="Model", info=offer.about, elem_id="model"
                    )
                    methods = gr.Dropdown(
                        self._start.methods(), value=method, label="Method", elem_id="method",
                        info="Which blocks of attention are computed; full is the dense baseline",
                    )  # fmt: skip
                    own = gr.Checkbox(
                        label="The method's own sparsity schedule", info=_schedule(offer), elem_id="own",
                        value=offer.schedule is not None, visible=offer.schedule is not None,
                    )  # fmt: skip
                    sparsity = gr.Slider(
                        0, 0.99, step=_STEP, label="Sparsity γ",
                        info="Share of the video blocks left out at every step",
                        value=offer.sparsity or 0, visible=offer.sparsity is not None, elem_id="sparsity",
                        interactive=offer.schedule is None,
                    )  # fmt: skip
                    *sizes, chosen_seed = _sizes(offer, self._start.seed)
                with gr.Column(scale=3, min_width=300):
                    result = gr.HTML(panels.idle(), elem_id="result")
                    with gr.Accordion("Report", open=True, visible=False, elem_id="report") as folded:
                        report = gr.HTML("")
            fields = [models, methods, prompt, chosen_seed, *sizes, own, sparsity, image, compare]
            shown = [result, report, folded, go, stop]
            follow = {"show_progress": "hidden", "concurrency_limit": None}
            gr.on([go.click, prompt.submit], _with_tab(self._generate), fields, shown, **follow)
            blocks.load(_with_tab(self._rejoin), None, shown, **follow)
            go.click(None, js=_SHOW_RESULT)
            stop.click(_with_tab(self._stop), None, None, queue=False)
            changed = [*sizes, own, sparsity, image, models, words, prompt]
            models.change(self._offer, [models, methods], changed, show_progress="hidden")
            methods.change(self._offer_method, [models, methods], [own, sparsity], show_progress="hidden")
            own.input(lambda on: gr.update(interactive=not on), [own], [sparsity], show_progress="hidden")
        return blocks

    def _offer(self, model: str, method: str) -> list[Any]:
        """The form for another model."""
        import gradio as gr

        offer = self._offered(model, method)
        return [
            *(offer.steps, offer.height, offer.width, offer.frames),
            *_sparsity(offer),
            gr.update(value=None, visible=offer.takes_image),
            gr.update(info=offer.about),
            gr.update(value=_words(offer), visible=bool(offer.words)),
            gr.update(placeholder=_placeholder(offer)),
        ]

    def _offer_method(self, model: str, method: str) -> tuple[Any, Any]:
        """The form for another method."""
        return _sparsity(self._offered(model, method))

    def _offered(self, model: str, method: str) -> Offer:
        import gradio as gr

        try:
            return self._start.offer(model, method)
        except AdaspaError as error:
            raise gr.Error(error.message, print_exception=False) from error

    def _stop(self, tab: str) -> None:
        run = self._runs.get(tab)
        if run is not None:
            self._studio.stop(run)

    def _generate(self, tab: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Make a video, and tell how far it is."""
        self._asked.append(tab)
        try:
            run = self._studio.begin(self._wanted(*values))
        except AdaspaError as error:
            run = Run(None, error=error)
        yield from self._follow(tab, run)

    def _rejoin(self, tab: str) -> Iterator[tuple[Any, ...]]:
        """Show the run that is at work, or else the last one, unless a click was faster than this page's loading."""
        import gradio as gr

        run = self._studio.at_work or next(reversed(self._studio.done), None)
        if run is None or tab in self._asked:
            yield (gr.skip(),) * 5
        else:
            yield from self._follow(tab, run)

    def _follow(self, tab: str, run: Run) -> Iterator[tuple[Any, ...]]:
        """What the tab's right side shows, and the buttons: while a run is made, and of what it has made."""
        import gradio as gr

        hidden, visible = gr.update(visible=False), gr.update(visible=True)
        self._runs[tab], last = run, None
        try:
            for progress in run.follow():
                if self._runs.get(tab) is not run:
                    return  # the tab shows a later one
                shown = panels.progress_panel(progress)
                if shown != last:
                    last = shown
                    yield shown, "", hidden, gr.update(interactive=False), visible
        finally:
            if self._runs.get(tab) is run:
                del self._runs[tab]
        ready = gr.update(interactive=True), hidden
        yield panels.result_panel(run), panels.report_panel(run), visible if run.page else hidden, *ready

    def _wanted(
        self, model: str, method: str, prompt: str, seed: Any, steps: Any, height: Any, width: Any, frames: Any,
        own: bool, sparsity: float, image: str | None, compare: bool,
    ) -> Wanted:  # fmt: skip
        """What the form holds; raises AdaspaError where it is of no use."""
        numbers = {"seed": seed, "steps": steps, "height": height, "width": width, "frames": frames}
        for name, value in numbers.items():
            if value is None or value != int(value):
                raise ConfigError(f"{name} must be a whole number")
            if value >= _ROUNDED:
                raise ConfigError(f"{name} must be below 2^53 here: a browser rounds larger numbers")
        if not prompt.strip():
            raise ConfigError("the prompt is empty", hint="say what the video shows")
        offer = self._start.offer(model, method)
        if offer.schedule is None:
            own = offer.sparsity is None or abs(sparsity - offer.sparsity) < _STEP / 2
        return Wanted(
            model=model,
            method=method,
            prompt=prompt.strip(),
            sparsity=None if own else round(sparsity, 2),
            image=image if offer.takes_image else None,
            compare=compare,
            **{name: int(value) for name, value in numbers.items()},
        )


def _with_tab(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler for gradio, which tells it by an annotation that it wants the request, and with it the tab's name."""
    import gradio as gr

    def answers(request: Any, *values: Any) -> Iterator[Any]:
        yield from handler(request.session_hash, *values)

    def answer(request: Any, *values: Any) -> Any:
        return handler(request.session_hash, *values)

    chosen = answers if inspect.isgeneratorfunction(handler) else answer
    chosen.__annotations__["request"] = gr.Request
    return chosen


def _sizes(offer: Offer, seed: int) -> tuple[Any, ...]:
    """Fields for steps, height, width, frames and seed."""
    import gradio as gr

    with gr.Accordion("Size, steps and seed", open=False):
        with gr.Row():
            height = _number("Height", offer.height, "height")
            width = _number("Width", offer.width, "width")
            frames = _number("Frames", offer.frames, "frames")
        with gr.Row():
            steps = _number("Steps", offer.steps, "steps")
            chosen = _number("Seed", seed, "seed")
    return steps, height, width, frames, chosen


def _number(label: str, value: int, name: str) -> Any:
    import gradio as gr

    # gradio would round with precision=0, and refuse with minimum=0 in a traceback that does not name the field
    return gr.Number(label=label, value=value, min_width=80, elem_id=name)


def _sparsity(offer: Offer) -> tuple[Any, Any]:
    """The choice of the method's own schedule, and the sparsity of a run without it."""
    import gradio as gr

    scheduled = offer.schedule is not None
    return gr.update(value=scheduled, visible=scheduled, info=_schedule(offer)), gr.update(
        value=offer.sparsity or 0, visible=offer.sparsity is not None, interactive=not scheduled
    )


def _schedule(offer: Offer) -> str:
    return f"γ {offer.schedule}; without it, the value below holds at every step"


def _placeholder(offer: Offer) -> str:
    return f"For example: {offer.example}" if offer.example else "What the video shows"


def _words(offer: Offer) -> str:
    """What a small model knows."""
    return panels.words_panel(offer.words) if offer.words else ""
