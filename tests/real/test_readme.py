"""README's first lines of Python on the model that they name."""

import math

from doc_pages import blocks


def test_first_lines(smollm2, monkeypatch, capsys):
    monkeypatch.chdir(smollm2.parents[1])
    block = next(block for block in blocks("python") if block.page == "README.md")
    namespace = {}
    exec(compile(block.text, str(block), "exec"), namespace)
    score = namespace["score"]
    assert namespace["name"] == "/".join(smollm2.parts[-2:])
    # A sentence of a language model, whichever, that ended before the limit
    assert score.finish_reasons == ("stop",) and len(score.critique.split()) > 3 and "4" in score.critique
    assert math.isfinite(score.reward) and capsys.readouterr().out == f"{score.critique} {score.reward}\n"
