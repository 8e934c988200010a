"""Score with a journal, so that a killed run can resume."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

from tqdm.auto import tqdm

from ..data.journal import Journal, JournalError, key_of
from ..generation import Sample
from ..model_identity import identify_model
from ..scores import NotFinite
from ..scoring import Score, Scorer
from ..serving.backends import connect
from .formatting import file_name
from .scoring_arguments import ScoringArguments


# vLLM and servers refill batches continuously, so batches run partly empty only at the end of a chunk
LARGE_CHUNK = 4096
BATCHES_PER_CHUNK = 8
# Raise this whenever the same model and settings give other scores, so that no run mixes the two. Version 2: vLLM keeps fp32 weights in
# fp32, critiques also end at the end tokens of `generation_config.json`, and the arguments of a tool call are encoded last
_SCORING_VERSION = 2
# Settings that scores depend on in every command
_MORE_SETTINGS = ("label_weights", "read_every", "stop_when_stable")


def open_score_journal(
    kind: str, name: str, short_name: str, args: ScoringArguments, settings: Sequence[str]
) -> Journal:
    """
    Open the journal of a model's scores. `kind` is the prefix of its file name, and `settings` names the arguments that scores depend on.
    Raises [`JournalError`] if the journal was started with other settings or for another model, or if another process is writing to it, and
    `ValueError` if the model's server serves another model.
    """
    values = {setting: getattr(args, setting) for setting in (*settings, *_MORE_SETTINGS)}
    if args.server_url is not None:
        _, served = connect(name, args.backend_of(name))
        values["served_version"] = served.model_version
    path = Path(args.output_dir) / file_name(kind, short_name, "jsonl")
    try:
        model_version = identify_model(name)["model_version"]
        return Journal(path, {"model": model_version, "scoring_version": _SCORING_VERSION, **values})
    except JournalError as error:
        if error.changed != ("model",):
            raise
        raise JournalError(
            f"{name} has changed since it was scored: the scores in {path} belong to an earlier model of that name. Choose another "
            "`output_dir`, or remove that file to score the model again."
        ) from None


@dataclass
class JournaledScorer:
    """
    A [`Scorer`] that resumes where a killed run stopped. Identical chats are scored once.

    The journal's settings should contain everything that affects scores, except chats and options. A `chunk_size` that is a multiple of
    the batch size keeps batches full; backends that refill their batches continuously need large chunks. A killed run loses at most one
    chunk with transformers, and only the chats in progress with vLLM and servers.
    """

    scorer: Scorer
    journal: Journal
    chunk_size: int  # chats passed to the backend per call
    title: str = "Scoring"  # label of the progress bar
    # Whether to score chats from longest to shortest, in the batches that a length-sorting backend would form, if their lengths are given.
    # Other backends order their work themselves, so sorting would only delay the first scores
    sort_by_length: bool = True
    # Seconds that the backend spent on the chats of the last `score` call, including time spent on them in earlier runs
    seconds: float = field(default=0.0, init=False)

    @classmethod
    def of(
        cls, scorer: Scorer, journal: Journal, title: str, args: ScoringArguments, chunk_size: int | None = None
    ) -> "JournaledScorer":
        """Create a scorer for a backend. `chunk_size` defaults to one that suits the backend."""
        sorts = args.backend == "transformers"
        default = BATCHES_PER_CHUNK * args.batch_size if sorts else LARGE_CHUNK
        return cls(scorer, journal, chunk_size or default, title, sorts)

    def score(
        self,
        prompts: Sequence,
        responses: Sequence[str],
        *,
        lengths: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        **options,
    ) -> list[Score]:
        """
        Score responses; `options` are those of [`Scorer`], except `critiques`. The returned scores include the critiques' numbers of
        tokens, but not their ids.

        `lengths` are the numbers of tokens in the chats; without them, chats keep their order. `names` identify the chats in error messages
        and default to indices.

        Raises `ValueError` if a reward is NaN or infinite. By then, the journal contains all other scores, unless the run ended early
        because all responses in a chunk had such rewards.
        """
        keys = [key_of(prompt, response, options) for prompt, response in zip(prompts, responses, strict=True)]
        places = {}
        for place, key in enumerate(keys):
            places.setdefault(key, place)
        waiting = [place for key, place in places.items() if key not in self.journal]
        if lengths is not None and self.sort_by_length:
            # Score the longest chats first, so that running out of memory shows up immediately
            waiting.sort(key=lambda place: -lengths[place])
        bad, bar_options = [], {"desc": self.title, "unit": "response", "dynamic_ncols": True}
        try:
            with tqdm(total=len(places), initial=len(places) - len(waiting), **bar_options) as bar:
                for start in range(0, len(waiting), self.chunk_size):
                    chunk = waiting[start : start + self.chunk_size]
                    found = self._score_chunk(chunk, keys, prompts, responses, options, bar)
                    bad += found
                    # The model itself probably overflows, so the rest would fail too
                    if len(found) == len(chunk):
                        break
        except KeyboardInterrupt:
            kept = sum(key in self.journal for key in places)
            raise KeyboardInterrupt(
                f"Interrupted. {self.journal.path} keeps {kept} of {len(places)} scores; run the same command to resume."
            ) from None
        if bad:
            place = min(bad)
            name = f"row {place}" if names is None else names[place]
            raise ValueError(
                f"{len(bad)} of {len(places)} responses have rewards that are not finite numbers. The first: {name}. The other "
                f"scores are kept in {self.journal.path}; run the same command again to continue, or use another `dtype` (and "
                "output folder) if numbers overflow."
            )
        values = [self.journal[key] for key in keys]
        self.seconds = sum(value.get("seconds", 0.0) for value in dict(zip(keys, values, strict=True)).values())
        return [_read_score(value) for value in values]

    def _score_chunk(self, chunk, keys, prompts, responses, options, bar: tqdm) -> list[int]:
        """Score the chats at these indices, and return the indices whose rewards are not finite."""
        if not chunk:
            return []
        last = monotonic()

        def keep(index: int, score: Score):
            nonlocal last
            value = {name: getattr(score, name) for name in ("rewards", "critiques", "finish_reasons")}
            optional = ("response_changed", "partial_rewards", "log_likelihoods", "critique_tokens")
            value |= {name: part for name in optional if (part := getattr(score, name))}
            # Scores may come one by one or all at the end; in both cases, the seconds add up to the right total
            value["seconds"], last = round(monotonic() - last, 6), monotonic()
            self.journal.add(keys[chunk[index]], value)
            bar.update()

        try:
            self.scorer.score(
                [prompts[place] for place in chunk], [responses[place] for place in chunk], on_score=keep, **options
            )
        except NotFinite:
            if len(chunk) == 1:
                return list(chunk)
            # The backend rejects the complete batch: bisect it, and keep the scores of the other chats
            waiting = [place for place in chunk if keys[place] not in self.journal]
            middle = (len(waiting) + 1) // 2
            halves = waiting[:middle], waiting[middle:]
            return [bad for half in halves for bad in self._score_chunk(half, keys, prompts, responses, options, bar)]
        return []


def _read_score(value: dict) -> Score:
    partial, count = value.get("partial_rewards"), len(value["rewards"])
    inner = [None] * count if partial is None else [tuple(rewards[:-1]) for rewards in partial]
    columns = (value["rewards"], value["critiques"], [()] * count, value["finish_reasons"], inner)
    # Always drop the token ids, so that a score is the same whether or not it was resumed from the journal
    parts = zip(*columns, value.get("log_likelihoods") or [None] * count, strict=True)
    samples = [Sample(*part) for part in parts]
    # Journals from earlier versions lack the numbers of tokens
    tokens = tuple(value.get("critique_tokens", ()))
    return replace(Score.of(samples, value.get("response_changed", False)), critique_ids=(), critique_tokens=tokens)
