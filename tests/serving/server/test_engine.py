import asyncio
import threading

import pytest
from models_for_tests import CRITIQUES, PROMPTS, RESPONSES, make_model, save_language_model
from same_scores import assert_same_scores
from servers_for_tests import BUDGET, make_talker, tokenizer_of

from cloud_hf.scores import Sampling, Score
from cloud_hf.serving.server.engine import EngineDeadError, TransformersEngine


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    return make_talker(tmp_path_factory.mktemp("talker"))


class CountingEngine(TransformersEngine):
    """Remembers the batches it computed; they wait for `go`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = []
        self.go = threading.Event()
        self.go.set()

    def _compute(self, batch):
        self.go.wait()
        self.batches.append([job.request.prefixes[0].text for job in batch])
        return super()._compute(batch)


def run(model, function, batch_size=16, family="llama3", engine_class=CountingEngine):
    """Run `function(engine)` on its own loop, and close the engine."""

    async def main():
        engine = engine_class(model, tokenizer_of(family), batch_size)
        try:
            return await function(engine)
        finally:
            engine.go.set()
            await engine.close()

    return asyncio.run(main())


async def collect(stream):
    pieces = [piece async for piece in stream]
    assert isinstance(pieces[-1], Score) and all(isinstance(piece, str) and piece for piece in pieces[:-1])
    return pieces[:-1], pieces[-1]


def test_many_at_once_get_what_each_gets_alone_in_few_batches(talker):
    prompts, responses = PROMPTS * 4, RESPONSES * 3 + RESPONSES[::-1]
    expected = talker.score(prompts, responses, tokenizer_of("llama3"), max_new_tokens=BUDGET)

    async def together(engine):
        engine.go.clear()
        tasks = [
            asyncio.create_task(engine.score(prompt, response, Sampling(max_new_tokens=BUDGET)))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        await asyncio.sleep(0.2)
        engine.go.set()
        return await asyncio.gather(*tasks), engine.batches

    scores, batches = run(talker, together, batch_size=8)
    assert [score.critiques for score in scores] == [score.critiques for score in expected]
    assert [score.reward for score in scores] == pytest.approx([score.reward for score in expected], abs=1e-4)
    assert sum(map(len, batches)) == 16 and len(batches) <= 4 and max(map(len, batches)) == 8


def test_requests_of_different_options_are_not_mixed_up(talker):
    tokenizer = tokenizer_of("llama3")
    options = [
        {"max_new_tokens": BUDGET},
        {"max_new_tokens": 3},
        {"max_new_tokens": BUDGET, "temperature": 1.0, "num_critiques": 3, "seed": 1},
        {"max_new_tokens": BUDGET, "temperature": 1.0, "num_critiques": 3, "seed": 2},
        {"critiques": [CRITIQUES[1]]},
        {"critiques": [CRITIQUES[2], CRITIQUES[3]]},
    ]

    async def ask(engine):
        def score(critiques=None, **option):
            return engine.score(PROMPTS[1], RESPONSES[1], Sampling(**option), critiques)

        return await asyncio.gather(*(score(**option) for option in options * 2))

    for option, score in zip(options * 2, run(talker, ask), strict=True):
        given = {"critiques": [option["critiques"]]} if "critiques" in option else option
        [expected] = talker.score([PROMPTS[1]], [RESPONSES[1]], tokenizer, **given)
        assert score.critiques == expected.critiques
        assert score.rewards == pytest.approx(expected.rewards, abs=1e-4)


def test_unseeded_samples_of_one_text_differ(talker):
    async def ask(engine):
        options = {"temperature": 2.0, "max_new_tokens": BUDGET}
        return await asyncio.gather(*(engine.score("x", "y", Sampling(**options)) for _ in range(4)))

    assert len({score.critique for score in run(talker, ask)}) > 1


def test_what_is_cancelled_in_the_queue_is_never_computed(talker):
    async def ask(engine):
        engine.go.clear()
        first = asyncio.create_task(engine.score("first", "y", Sampling(max_new_tokens=BUDGET)))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(engine.score("second", "y", Sampling(max_new_tokens=BUDGET)))
        third = asyncio.create_task(engine.score("third", "y", Sampling(max_new_tokens=BUDGET)))
        await asyncio.sleep(0.1)
        second.cancel()
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.gather(first, third)
        assert second.cancelled()
        return engine.batches

    [[first], [third]] = run(talker, ask)
    assert "first" in first and "third" in third


def test_what_is_cancelled_while_it_runs_stops(talker):
    passes = []
    hook = talker.trunk.register_forward_hook(lambda *args: passes.append(1))

    async def ask(engine):
        silent = asyncio.create_task(engine.score("x", "y", Sampling(max_new_tokens=400, temperature=50.0, seed=0)))
        while not passes:
            await asyncio.sleep(0.001)
        silent.cancel()
        score = await engine.score("x", "y", Sampling(max_new_tokens=2))
        assert silent.cancelled()
        return score

    score = run(talker, ask)
    hook.remove()
    assert len(passes) < 200
    assert score.reward == pytest.approx(
        talker.score(["x"], ["y"], tokenizer_of("llama3"), max_new_tokens=2)[0].reward, abs=1e-4
    )


def test_a_bad_request_fails_alone(talker):
    async def ask(engine):
        good = [engine.score(prompt, "y", Sampling(max_new_tokens=BUDGET)) for prompt in PROMPTS]
        bad = [
            engine.score("", "y", Sampling()),
            engine.score("x", None, Sampling()),
            engine.score("long " * 600, "y", Sampling(max_new_tokens=BUDGET)),
            engine.score("x", "y", Sampling(max_new_tokens=511)),
            engine.score("x", "y", Sampling(), critiques=["a \ud800"]),
            engine.score("x", "y", Sampling(), critiques=["word " * 600]),
        ]
        return await asyncio.gather(*good, *bad, return_exceptions=True)

    results = run(talker, ask)
    assert all(isinstance(result, Score) for result in results[:4])
    said = [str(result) for result in results[4:] if isinstance(result, ValueError)]
    expected = [
        "is empty",
        "NoneType",
        "context holds 512",
        "tokens with its critique, but",
        "surrogate",
        "its critique",
    ]
    for message, words in zip(said, expected, strict=True):
        assert words in message


def test_what_the_model_raises_reaches_those_who_wait(talker, monkeypatch):
    async def ask(engine):
        with monkeypatch.context() as patch:
            patch.setattr(talker, "reward_from_hidden", lambda hidden: 1 / 0)
            results = await asyncio.gather(
                *(engine.score(prompt, "y", Sampling(max_new_tokens=2)) for prompt in PROMPTS), return_exceptions=True
            )
        return results, await engine.score("x", "y", Sampling(max_new_tokens=2))

    results, later = run(talker, ask)
    assert all(isinstance(result, ZeroDivisionError) for result in results) and isinstance(later, Score)


def test_a_closed_engine_says_so(talker):
    async def ask(engine):
        engine.go.clear()
        tasks = [asyncio.create_task(engine.score(prompt, "y", Sampling(max_new_tokens=2))) for prompt in PROMPTS]
        await asyncio.sleep(0.2)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        engine.go.set()
        await closing
        results = await asyncio.gather(
            *tasks, engine.score("x", "y", Sampling(max_new_tokens=2)), return_exceptions=True
        )
        assert all(isinstance(result, EngineDeadError) for result in results)

    run(talker, ask)


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gemma2", "mistral_v3", "phi3"])
def test_streamed_pieces_are_the_critique(tmp_path, family):
    model = make_model(save_language_model(tmp_path, family=family, seed=4))
    tokenizer = tokenizer_of(family)

    async def ask(engine):
        sampled = [
            engine.stream(prompt, "y", Sampling(max_new_tokens=60, temperature=3.0, seed=seed))
            for seed, prompt in enumerate(PROMPTS * 3)
        ]
        return await collect(engine.stream("x", "y", Sampling(max_new_tokens=30))), [
            await collect(one) for one in sampled
        ]

    (pieces, score), sampled = run(model, ask, family=family)
    assert_same_scores([score], model.score(["x"], ["y"], tokenizer, max_new_tokens=30))
    assert "".join(pieces) == score.critique
    for pieces, score in sampled:
        assert "".join(pieces) == score.critique
    assert max(len(pieces) for pieces, _ in sampled) > 10


def test_opt_streams_although_its_language_model_skips_the_trunk(tmp_path):
    model = make_model(save_language_model(tmp_path, "opt", word_embed_proj_dim=16, ffn_dim=64, seed=4))

    async def ask(engine):
        return await collect(engine.stream("x", "y", Sampling(max_new_tokens=60, temperature=3.0, seed=0)))

    pieces, score = run(model, ask)
    assert len(pieces) > 1 and "".join(pieces) == score.critique


def test_streaming_published_checkpoints(tmp_path):
    """Their text is cleaned of spaces before punctuation, and their reward is read in a second pass."""
    model = make_model(save_language_model(tmp_path, seed=4), format="reference")

    async def ask(engine):
        return [
            await collect(engine.stream(prompt, "y", Sampling(max_new_tokens=60, temperature=3.0, seed=seed)))
            for seed, prompt in enumerate(PROMPTS * 4)
        ]

    for seed, (pieces, score) in enumerate(run(model, ask)):
        prompt = (PROMPTS * 4)[seed]
        [expected] = model.score(
            [prompt], ["y"], tokenizer_of("llama3"), max_new_tokens=60, temperature=3.0, seed=seed
        )
        assert "".join(pieces) == score.critique == expected.critique
        assert score.reward == pytest.approx(expected.reward, abs=1e-4)


def test_closing_a_stream_stops_it(talker):
    passes = []
    hook = talker.trunk.register_forward_hook(lambda *args: passes.append(1))

    async def ask(engine):
        stream = engine.stream("x", "y", Sampling(max_new_tokens=400, temperature=50.0, seed=0))
        first = await anext(stream)
        await stream.aclose()
        await engine.score("x", "y", Sampling(max_new_tokens=2))
        return first

    assert run(talker, ask)
    hook.remove()
    assert len(passes) < 200


def test_classic(classic_model):
    async def ask(engine):
        assert not engine.critique
        return await engine.score("x", "y", Sampling()), await collect(engine.stream("x", "y", Sampling()))

    score, (pieces, streamed) = run(classic_model, ask)
    assert_same_scores([score, streamed], 2 * classic_model.score(["x"], ["y"], tokenizer_of("llama3")))
    assert pieces == []
