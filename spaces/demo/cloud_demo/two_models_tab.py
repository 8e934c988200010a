"""Two models: the rows that both models judged, where they disagree, and why."""

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from cloud_hf.scores import Sampling, Score
from cloud_hf.spaces_ui import as_text

from . import Problem
from .backend import Backend, Visitor
from .judging import Progress, answers, describe_score, is_integer, judge_pair
from .rows import FILTERS, JudgedRows, Judgement, Pair, is_right, is_tie
from .score_html import card, note, paragraph, show_made, side_by_side, status
from .sharing import Result
from .tab_parts import QUIET, Controls, TabParts, in_words, visitor_of


if TYPE_CHECKING:
    from cloud_hf.evaluation.rows import BenchmarkRow


TAB, TITLE = "versus", "Two models"
ALL = "All rows"
_MOST_LISTED = 60
# Seconds between checks for newly judged rows
_REFRESH = 2.0
_PREVIEW = 160
_HEIGHT = 640
_SIDES = ("Chosen", "Rejected")
_NO_ROWS = "There are no rows to compare the models on."
# The address bar then shows the row's link, which can also be opened in another tab
_OPEN_ROW = """
element.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-row]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    window.history.replaceState(null, "", link.href);
    trigger("open", {row: link.dataset.row});
    if (window.innerWidth < 768) document.getElementById("versus-status").scrollIntoView();
});
"""


def key_of(row: "BenchmarkRow") -> str:
    """Return a hash of a row's id for use in links and HTML, where some characters of the id itself would be altered."""
    return hashlib.sha256(row.id.encode(errors="backslashreplace")).hexdigest()[:16]


def find_row(backend: Backend, key: str) -> tuple[int, "BenchmarkRow"]:
    """Find a row by its key, and return its index and the row. Raises `Problem` if no row has this key."""
    for index, row in enumerate(backend.models.rows):
        if key_of(row) == key:
            return index, row
    raise Problem("The row in this link is not one of the demo's rows.")


def row_at(backend: Backend, index: int) -> "BenchmarkRow":
    """Return the row at an index. Raises `Problem` if there is none."""
    models = backend.models
    if models.rows_problem is not None:
        raise Problem(models.rows_problem)
    if not models.rows:
        raise Problem(_NO_ROWS)
    if not 0 <= index < len(models.rows):
        raise Problem(f"There is no row {index + 1}; there are {len(models.rows)}.")
    return models.rows[index]


async def judge_row(
    backend: Backend, user: Visitor, row: "BenchmarkRow", index: int
) -> AsyncGenerator[Progress | Judgement, None]:
    """Unless a row was already judged, score both of its responses with both models, with one critique each at temperature 0."""
    if (known := backend.judged.found.get(index)) is not None and known.classic is not None:
        yield known
        return
    sampling = Sampling(max_new_tokens=backend.args.max_new_tokens)
    async with aclosing(judge_pair(backend, user, row.prompt, row.responses, sampling)) as steps:
        async for step in steps:
            if isinstance(step, Judgement):
                backend.judged.add(index, step)
            yield step


class _Listing:
    """The summary and the left column: filter, search, and links to the rows."""

    def __init__(self, backend: Backend, row_id: gr.Textbox):
        self.backend = backend
        self.row_id = row_id
        self.summary = gr.HTML(note("The rows are being loaded…"), elem_id="versus-summary", elem_classes="result")
        self.timer = gr.Timer(_REFRESH, active=False)

    def place(self):
        named = [(ALL, ALL), *((name.format("First", "second"), name) for name in FILTERS)]
        self.choice = gr.Radio(named, value=next(iter(FILTERS)), label="Show", elem_id="versus-filter")
        self.words = gr.Textbox(
            "", label="Search", placeholder="Words from a prompt, response or critique", elem_id="versus-search"
        )
        self.listed = gr.HTML(elem_id="versus-list", elem_classes="result", max_height=_HEIGHT, js_on_load=_OPEN_ROW)
        self.listed.open(_row_of_link, None, self.row_id, queue=False, **QUIET)
        gr.on([self.choice.input, self.words.change, self.timer.tick, self.row_id.change], self.update, **self.watch)

    @property
    def watch(self) -> dict[str, Any]:
        """Inputs, outputs and options shared by the events that update the column."""
        return {
            "inputs": [self.choice, self.words, self.row_id],
            "outputs": [self.summary, self.choice, self.listed, self.row_id, self.timer],
            "queue": False,
            "trigger_mode": "always_last",
            **QUIET,
        }

    async def update(self, choice: str, words: str, row: str):
        models, judged = await self.backend.loaded(), self.backend.judged
        # Open a row only if none is open: a timer tick that started before a click must not undo the click
        opened = key_of(models.rows[_most_telling(judged)]) if models.rows and not row else gr.skip()
        counts = [
            (f"{name.format(*models.names)} ({sum(map(FILTERS[name], judged.found.values()))})", name)
            for name in FILTERS
        ]
        radio = gr.update(choices=[(f"{ALL} ({len(models.rows)})", ALL), *counts])
        shown = _show_list(self.backend, choice, words, row)
        return _show_summary(self.backend), radio, shown, opened, gr.Timer(active=judged.is_growing)


class _OpenRow:
    """The right column: one row with both models' critiques, which stay hidden until the visitor guesses (if guessing is on)."""

    def __init__(self, backend: Backend, row_id: gr.Textbox):
        self.backend = backend
        self.row_id = row_id
        self.controls = Controls(backend, "versus", TAB)

    def place(self):
        controls = self.controls
        guess = gr.Checkbox(True, label="Guess first which response was chosen", elem_id="versus-guess")
        controls.kept.render()
        controls.said.render()
        with gr.Row(visible=False) as guesses:
            names = {"a": "A is better", "b": "B is better", "answer": "Show the answer"}
            buttons = {name: gr.Button(text, size="sm", elem_id=f"versus-{name}") for name, text in names.items()}
        controls.result.render()
        controls.copy_buttons({})
        run = in_words(controls.stoppable(self.run), controls.said)
        outputs = [controls.said, controls.result, controls.kept, guesses]
        gr.on(
            [self.row_id.change, guess.input], run, [self.row_id, guess], outputs, trigger_mode="always_last", **QUIET
        )
        outputs = [controls.said, controls.result, guesses]
        for name, button in buttons.items():
            button.click(partial(self.reveal, name), self.row_id, outputs, queue=False, **QUIET)

    async def run(self, request: gr.Request, row: str, guess: bool):
        await self.backend.loaded()
        index, shown = find_row(self.backend, row)
        yield status("Asking the models…"), self.show(shown, guess), None, gr.update(visible=False)
        async with aclosing(judge_row(self.backend, visitor_of(request), shown, index)) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    yield status(step.words), gr.skip(), gr.skip(), gr.skip()
                elif guess:
                    said = status("Done. Which response is better?")
                    yield said, gr.skip(), _kept(self.backend, shown, step), gr.update(visible=True)
                else:
                    yield status("Done."), self.show(shown, guess, step), _kept(self.backend, shown, step), gr.skip()

    def reveal(self, guessed: str, row: str):
        """Show which response was chosen; `guessed` is "a", "b", or "answer" for a visitor who asks to see it."""
        index, shown = find_row(self.backend, row)
        is_right_guess = (guessed == "a") == (_order_of(shown)[0] == 0)
        said = "You are right." if is_right_guess else "The other one was chosen."
        page = self.show(shown, True, self.backend.judged.found[index])
        return status("Done." if guessed == "answer" else said), page, gr.update(visible=False)

    def show(self, row: "BenchmarkRow", guess: bool, found: Judgement | None = None) -> str:
        made = "" if found is None else show_made(_how(self.backend, found), self.backend.warnings)
        return _show_row(row, guess, self.backend.models.names, found) + made


def build(backend: Backend) -> TabParts:
    """Build the tab's content."""
    row_id = gr.Textbox(visible="hidden", label="Row")
    listing, opened = _Listing(backend, row_id), _OpenRow(backend, row_id)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            listing.place()
        with gr.Column(scale=3, min_width=300):
            opened.place()
    return TabParts(
        {},
        None,
        list,
        [row_id],
        lambda result: {row_id: result.row},
        lambda tab: tab.select(listing.update, **listing.watch),
    )


def _row_of_link(event: gr.EventData) -> str:
    return str(event.row)


def endpoints(backend: Backend) -> list[Callable]:
    """Create the endpoint `/versus`."""

    async def versus(request: gr.Request, row: int = 1) -> dict:
        """
        Judge a benchmark row (numbered from 1) with both models. Returns the row's id, prompt and responses (the chosen one
        first) and, for `cloud` (the demo's model) and `classic` (the comparison model), the scores and whether they are right.
        """
        if not is_integer(row):
            raise Problem("`row` must be a whole number of at least 1.")
        await backend.loaded()
        shown = row_at(backend, int(row) - 1)
        known = {"id": shown.id, "prompt": shown.prompt, "responses": list(shown.responses)}
        steps = judge_row(backend, visitor_of(request), shown, int(row) - 1)
        async for answer in answers(steps, lambda found: known | _describe_pair(backend, found)):
            yield answer

    return [versus]


def _describe_pair(backend: Backend, found: Judgement) -> dict[str, Any]:
    # The reward distribution, and hence the percentile, belongs to the first model
    return {
        name: {
            "right": is_right(scores),
            "scores": [describe_score(backend, score, name == "cloud") for score in scores],
        }
        for name, scores in (("cloud", found.cloud), ("classic", found.classic or ()))
    }


def _kept(backend: Backend, row: "BenchmarkRow", found: Judgement) -> Result:
    """Return the result that the copy buttons use."""
    texts = {"prompt": _plain(row.prompt)} | dict(zip(_SIDES, map(str, row.responses), strict=True))
    names = [f"{model}, {side.lower()}" for model in backend.models.names for side in _SIDES]
    return Result(
        TAB, texts, None, (*found.cloud, *(found.classic or ())), None, _how(backend, found), key_of(row), names
    )


def _how(backend: Backend, found: Judgement) -> str:
    results = backend.models.results
    if results is not None and found in results[1].values():  # visitors may open rows that the evaluation lacks
        return f"Scores of {results[0]}."
    return backend.made(Sampling(max_new_tokens=backend.args.max_new_tokens))


# -------------------------------------------------------------------------------------------------------------- HTML


def _order_of(row: "BenchmarkRow") -> tuple[int, int]:
    """Return the indices of responses A and B. They depend on the row's key, so the chosen response is A about half of the time."""
    return (0, 1) if int(key_of(row), 16) % 2 else (1, 0)


def _show_row(row: "BenchmarkRow", guess: bool, names: tuple[str, str], found: Judgement | None = None) -> str:
    """Show a row with one column per response, titled chosen and rejected, or A and B for a visitor who guesses."""
    marks, columns = "", []
    if found is not None:
        marks = f'<p class="marks">{_marks(found, names)}</p>'
    for letter, side in zip("AB", _order_of(row) if guess else (0, 1), strict=True):
        title = f"{letter}: {_SIDES[side].lower()}" if guess and found else letter if guess else _SIDES[side]
        body = paragraph(str(row.responses[side])) if row.responses[side] else note("(empty)")
        if found is not None:
            for name, scores in _named(found, names):
                body += f"<h4>{as_text(name)}: {scores[side].reward:+.3f}</h4>{_critique(scores[side])}"
        columns.append(card(title, body))
    return f"<h2>{as_text(row.id)}</h2>{paragraph(_plain(row.prompt))}{marks}{side_by_side(columns)}"


def _critique(score: Score) -> str:
    return paragraph(score.critique, "critique") if score.critique else ""


def _plain(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    messages = prompt["messages"] if isinstance(prompt, dict) else prompt
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in messages)


def _named(found: Judgement, names: tuple[str, str]) -> list[tuple[str, Pair]]:
    """Pair each model's name with its scores."""
    return [(name, scores) for name, scores in zip(names, (found.cloud, found.classic), strict=True) if scores]


def _marks(found: Judgement, names: tuple[str, str]) -> str:
    return " ".join(f"{as_text(name)} {_mark(scores)}" for name, scores in _named(found, names))


def _mark(scores: Sequence[Score]) -> str:
    if is_right(scores):
        return '<span class="good">✓ right</span>'
    return f'<span class="bad">✗ {"tie" if is_tie(scores) else "wrong"}</span>'


def _show_list(backend: Backend, choice: str, words: str, current: str) -> str:
    """Show links to the rows that match a filter and search words, with a mark for each model."""
    found, matching, words = backend.judged.found, [], words.strip().lower()
    for index, row in enumerate(backend.models.rows):
        judgement = found.get(index)
        if choice == ALL or (judgement is not None and FILTERS[choice](judgement)):
            critiques = [score.critique for score in judgement.cloud] if judgement is not None else []
            if words in "\n".join((row.id, _plain(row.prompt), *map(str, row.responses), *critiques)).lower():
                matching.append((row, judgement))
    items = [
        f'<li><a href="#{Result(TAB, row=key_of(row)).link()[0]}" data-row="{key_of(row)}"'
        f"{' aria-current=true' if key_of(row) == current else ''}>"
        f'<span class="marks">{_marks(judgement, backend.models.names) if judgement is not None else "not judged yet"}</span> '
        f"{as_text(_plain(row.prompt)[:_PREVIEW])}</a></li>"
        for row, judgement in matching[:_MOST_LISTED]
    ]
    more = len(matching) - len(items)
    end = note(f"{more} more: search to see them." if more else "" if items else "No rows.")
    return f'<ul class="rows">{"".join(items)}</ul>{end}'


def _show_summary(backend: Backend) -> str:
    """Compare the models on all rows that both judged."""
    models, judged = backend.models, backend.judged
    if models.rows_problem or not models.rows:
        return f'<p class="note bad">{as_text(models.rows_problem or _NO_ROWS)}</p>'
    source = f"loaded from {judged.evaluation}" if judged.evaluation else "judged here while the demo is idle"
    more = f" of {judged.wanted}" if judged.is_growing else ""
    parts = [f"{len(judged.found)}{more} rows of {judged.source}, {source}. A tie counts as wrong."]
    if judged.problem:
        parts.append(judged.problem)
    if (compared := judged.compared()) is None:
        return note(" ".join(parts))
    n, shares = len(compared.outcomes), []
    for place, name in enumerate(models.names):
        count, low, high = compared.right(place)
        shares.append(
            f"{name} is right in {count} of {n} rows ({100 * count / n:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
        )
    alone, p = compared.alone, compared.p_value
    first, second = models.names
    test = (
        f"Only {first} is right in {alone[0]}, only {second} in {alone[1]}; "
        f"exact McNemar test: p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}."
    )
    return f'<p class="headline">{as_text("; ".join(shares))}.</p>{note(test)}{note(" ".join(parts))}'


def _most_telling(judged: JudgedRows) -> int:
    """Return the index of the first row in which only the demo's model is right, or of the first row if there is none."""
    alone = next(iter(FILTERS.values()))
    return min((index for index, row in judged.found.items() if alone(row)), default=0)
