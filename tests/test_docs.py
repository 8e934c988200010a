"""README and docs: their commands run, their numbers are the measured ones, and every public name is documented."""

import contextlib
import importlib
import inspect
import io
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, Block, blocks, copy_world, make_world, option


SHELL = blocks("bash")
PYTHON = blocks("python")
EXTENDING = "docs/extending.md"
SCRIPTS = ROOT / "examples"

# Programs that set up an environment, and launchers whose SCRIPT and OPTIONS stand for others
SETUP = {"pip", "source", "make", "sbatch", "pre-commit"}
LAUNCHERS = {"torchrun", "accelerate", "srun", "export"}

# Commands that are not run, by a part of the command: why. Their options are checked all the same.
NOT_RUN = {
    "--cascade classic-rm,cloud-rm": "needs 40 rows; tests/commands/test_evaluate_rewards.py runs it",
    "--benchmarks reward_bench reward_bench_2": "downloads the official benchmarks",
    "--arena_hard lmarena-ai/arena-hard-auto-v0.1": "downloads ArenaHard; tests/commands/test_best_of_n_command.py runs it on files",
    "--mode oracle": "downloads the published data; tests/examples/test_build_official_ultra_llama.py runs it on files",
    "--mode self-gen": "downloads the published data, likewise",
    "--compare results": "reads two earlier runs; tests/evaluation/report/test_comparison.py has some",
    "--base_url http://127.0.0.1:8002/v1": "needs vLLM's server; tests/examples/test_self_critiques_with_vllm.py starts one",
    "--output_dir judged": "needs a judge's server; tests/evaluation/test_generative_judges.py has one",
    "--ray_address auto": "needs a Ray cluster; tests/data/builders runs it on one node",
    "grpo_with_cloud.py": "trains for minutes; tests/examples/test_grpo.py runs it with few rows",
    "vllm serve": "starts an engine; tests/serving/test_vllm.py has vLLM's server",
    "vllm bench serve": "needs vLLM's server",
    "serve run": "starts a Ray cluster; tests/serving/test_ray_serve.py starts its application from Python, on one node",
    "claims/run.py": "trains for minutes to hours; tests/test_claims.py runs a small study",
    "claims/rl_check.py": "trains for minutes, after claims/run.py; tests/test_claims.py trains small policies",
    "claims/real_model.py": "trains for an hour; tests/test_claims.py runs it on a tiny model",
    "claims/real_figures.py": "records a run of real_model.py, likewise",
    "claims/report.py": "rewrites committed results; tests/test_claims.py computes them",
    "app.py": "serves until it is stopped; tests/spaces runs the pages",
}

# Python blocks that are compiled only, by a part of them: why
COMPILED_ONLY = {
    'CascadeFit.load("fit.json")': "needs a fit and two servers; tests/rl/test_environment_scorer.py has them",
    "gradio_client": "needs a running demo; tests/spaces/test_demo_sessions.py has one",
    "from openai import OpenAI": "needs vLLM's server; tests/serving/test_vllm.py makes the same request",
    "CLoudVLLM(": "needs vLLM; tests/serving/test_vllm.py makes the same calls",
}

# What a script gets in addition, so that it takes seconds on a CPU
TRAINING = "--use_cpu --bf16 False --max_steps 1 --max_length 300 --per_device_train_batch_size 2 --report_to none"
SMALL = {
    "train_critique_sft.py": TRAINING,
    "train_cloud.py": TRAINING,
    "train_classic.py": TRAINING,
    "train_cloud_outcome.py": f"{TRAINING} --num_generations 2 --max_completion_length 8",
    "build_self_critiques.py": "--max_new_tokens 8 --longer_tries 0 --truncated keep",
    "evaluate_rewards.py": "--max_new_tokens 4 --probe_rows 4 --limit 4 --batch_size 64",
    "best_of_n.py": "--max_new_tokens 4",
}

# Modules of commands whose scripts have another name
SCRIPT_OF = {"self_critiques": "build_self_critiques"}

# What a block needs from the text around it, and what makes it fit a CPU
BEFORE = {
    "docs/rl.md": "from cloud_hf.loading import load_reward_model\n"
    "from cloud_hf import TransformersScorer\n"
    "from trl import GRPOConfig\n"
    "scorer = TransformersScorer(*load_reward_model('cloud-rm'))\n"
    "prompts = [{'prompt': [{'role': 'user', 'content': 'What is 2+2?'}]}]\n"
    "from datasets import Dataset\n"
    "prompts = Dataset.from_list(prompts * 8)\n"
    "on_cpu = GRPOConfig('grpo', use_cpu=True, bf16=False, report_to='none')\n",
}
ON_CPU = {
    'CLoudTrainingConfig("cloud-rm", ': 'CLoudTrainingConfig("cloud-rm", use_cpu=True, bf16=False, max_steps=1, report_to="none", ',
    "train_dataset=prompts": "train_dataset=prompts, args=on_cpu",
}


# ------------------------------------------------------------------------------------------------------------ commands


def not_run(command: list[str]) -> str | None:
    return next((reason for part, reason in NOT_RUN.items() if part in " ".join(command)), None)


def is_server(command: list[str]) -> bool:
    return command[1:3] == ["-m", "cloud_hf.serving.server"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny models and data under the pages' names."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def page_folder(world, tmp_path, monkeypatch):
    folder = copy_world(world, tmp_path / "page")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return folder


@pytest.mark.parametrize("page", sorted({block.page for block in SHELL}))
def test_commands_run(page, page_folder, monkeypatch):
    with contextlib.ExitStack() as servers:
        addresses = {}
        for block in [block for block in SHELL if block.page == page]:
            for command in block.commands():
                run(block, command, servers, addresses, monkeypatch)


def run(block: Block, command: list[str], servers: contextlib.ExitStack, addresses: dict[str, str], monkeypatch):
    """Run a command as the page has it, with tiny options added and addresses of servers that are there."""
    program = Path(command[0]).name
    if program in SETUP:
        return check_setup(command)
    if program in LAUNCHERS:
        return check_launch(command)
    if reason := not_run(command):
        print(f"{block}: {reason}")
        return check_options(command)
    command = [addressed(word, servers, addresses) for word in command]
    if is_server(command):
        addresses["http://127.0.0.1:8000"] = servers.enter_context(reward_server(command))
        return None
    if program == "curl":
        done = subprocess.run([*command, "--silent", "--fail"], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)
        return None
    if folder := option(command, "--output_dir"):
        shutil.rmtree(folder, ignore_errors=True)
    if program == "cloud-hf":
        return run_cloud_hf(command[1:], monkeypatch)
    words = [*command[1:], *SMALL.get(Path(command[1]).name, "").split()]
    return run_python(words, monkeypatch)


def run_cloud_hf(words: list[str], monkeypatch):
    """`cloud-hf WORDS` in this process."""
    from cloud_hf.cli import COMMANDS, main

    if "<" in words:
        *words, _, path = words
        monkeypatch.setattr(sys, "stdin", io.StringIO(Path(path).read_text()))
    script = COMMANDS.get(words[0], ("",))[0].rpartition(".")[2]
    try:
        main([*words, *SMALL.get(f"{SCRIPT_OF.get(script, script)}.py", "").split()])
    except SystemExit as error:
        assert not error.code, f"{' '.join(words)}: {error.code}"


def run_python(words: list[str], monkeypatch):
    """`python WORDS` in this process, which has the libraries loaded."""
    try:
        if words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        assert not error.code, f"{' '.join(words)}: {error.code}"


def addressed(word: str, servers: contextlib.ExitStack, addresses: dict[str, str]) -> str:
    """The word with an address of this machine replaced by that of a running server, of completions unless another runs."""
    match = re.match(r"http://127\.0\.0\.1:\d+", word)
    if match is None:
        return word
    if word.endswith("/v1"):
        addresses.setdefault(word, servers.enter_context(completions()))
        return addresses[word]
    return word.replace(match[0], addresses[match[0]])


@contextlib.contextmanager
def completions():
    from completion_server import default_answer, serve_completions

    numbers = itertools.count()

    def write(body):
        """Answers that differ, and a judge that likes the longer response."""
        text, reason = default_answer(body)
        if "messages" not in body or "<response_a>" not in (judged := body["messages"][-1]["content"]):
            return f"{text} {10 ** (next(numbers) % 9)}", reason
        first, second = (judged.split(f"<response_{side}>")[1].split("</response_")[0] for side in "ab")
        return f"[[{'A>B' if len(first) > len(second) else 'B>A'}]]", reason

    with serve_completions(write=write, model="critic-sft") as server:
        yield server.url


@contextlib.contextmanager
def reward_server(command: list[str]):
    from servers_for_tests import free_port

    port = free_port()
    process = subprocess.Popen(
        [sys.executable, *command[1:], "--port", str(port)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen):
    for _ in range(240):
        assert process.poll() is None, f"{url} did not start"
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.5)
    raise TimeoutError(url)


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_options_exist(block, world, monkeypatch):
    """Also of commands that are not run: a script's own parser reads the options."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    for command in block.commands():
        if Path(command[0]).name in SETUP:
            check_setup(command)
        elif Path(command[0]).name in LAUNCHERS:
            check_launch(command)
        elif command[0] == "python":
            check_options(command)


def check_options(command: list[str]):
    path = Path(command[1])
    if path.parts[0] == "examples":
        from trl import TrlParser

        # A script runs a module of the package, or is one itself
        runs = re.search(r'^    run\("([\w.]+)"\)', (ROOT / path).read_text(encoding="utf8"), re.MULTILINE)
        module = importlib.import_module(runs[1] if runs else path.stem)
        words = command[2:] + (["--use_cpu", "True"] if path.stem.startswith("train") else [])
        words += getattr(module, "FIXED_OPTIONS", ())
        TrlParser(module.ARGUMENTS).parse_args_and_config(args=words, fail_with_unknown_args=True)
    elif path.parts[0] == "spaces":
        offered = (ROOT / path.parent).rglob("*.py")
        text = "".join(source.read_text(encoding="utf8") for source in offered)
        text += (ROOT / "cloud_hf/serving/backends.py").read_text(encoding="utf8")
        for word in command[2:]:
            assert not word.startswith("--") or re.search(rf"\b{word[2:]}\b", text), f"{path} has no option {word}"


def check_launch(command: list[str]):
    """A launcher's own parser reads its options, and the files that it is given exist."""
    for word in command:
        if re.fullmatch(r"(examples|ds_configs)/[\w./-]+", word):
            assert (ROOT / word).exists(), word
    command = ["0" if word.startswith("$") or word == "RANK" else word for word in command]
    if command[0] == "srun":
        command = command[1:]
    if command[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(command[1:])
    elif command[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args(command[2:])


def check_setup(command: list[str]):
    """Extras and targets that a page names exist."""
    if command[0] == "pip" and (match := re.search(r"\[(.*)\]", " ".join(command))):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(match[1].split(",")) <= extras.keys(), command
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def test_reasons_are_used():
    """No reason outlives its command."""
    commands = [" ".join(command) for block in SHELL for command in block.commands()]
    for part in NOT_RUN:
        assert any(part in command for command in commands), part
    for part in COMPILED_ONLY:
        assert any(part in block.text for block in PYTHON), part


# ---------------------------------------------------------------------------------------------------------- Python code


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON} - {EXTENDING}))
def test_python_runs(page, page_folder):
    """The blocks of a page, one after another in one namespace, as a reader would run them."""
    namespace = {"__name__": "__main__"}
    exec(BEFORE.get(page, ""), namespace)
    with contextlib.ExitStack() as servers:
        for block in [block for block in PYTHON if block.page == page]:
            text = block.text
            for part, replacement in ON_CPU.items():
                text = text.replace(part, replacement)
            if "http://127.0.0.1:8000" in text:
                text = text.replace("http://127.0.0.1:8000", servers.enter_context(reward_server(server_of(page))))
            code = compile(text, str(block), "exec")
            if not any(part in text for part in COMPILED_ONLY):
                exec(code, namespace)


def server_of(page: str) -> list[str]:
    """The command on a page that starts a reward server."""
    commands = [command for block in SHELL if block.page == page for command in block.commands()]
    return next(filter(is_server, commands))


def test_page_lists_all_commands():
    from cloud_hf.cli import COMMANDS

    listed = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/cli.md").read_text(encoding="utf8"), re.MULTILINE)
    assert listed == list(COMMANDS)


# ----------------------------------------------------------------------------------------------------------- extensions


def extension(name: str) -> dict:
    """Run the block of the extending page that defines a name, and return its namespace."""
    [block] = [block for block in PYTHON if block.page == EXTENDING and name in block.text]
    namespace = {"__name__": "extension"}
    exec(compile(block.text, str(block), "exec"), namespace)
    return namespace


def test_benchmark_of_the_page(page_folder):
    benchmark = extension("def load(")
    rows = benchmark["load"](["reward_bench.jsonl"])
    scores = benchmark["score"](rows, [[2.0, 1.0]] * 7 + [[1.0, 1.0]])
    assert scores.value == 7 / 8 and scores.ties == 1
    assert scores.missing == ("easy", "hard") and scores.unknown == {"alpacaeval-easy": 8}


def test_metric_of_the_page():
    import numpy as np

    from cloud_hf.evaluation.metrics.calibration import estimate

    brier = extension("def brier")["brier"]
    assert estimate(brier, [0.0, 0.0], [0, 1]).value == 0.25
    assert brier(np.array([0.0, 100.0]), np.array([[1.0, 1.0], [0.0, 2.0]])).round(6).tolist() == [0.125, 0.0]


def test_lists_of_the_page():
    """Each list is in the file that the page names."""
    text = (ROOT / EXTENDING).read_text(encoding="utf8")
    lists = re.findall(r"Add it to `(\w+)` in `([\w./]+)`", text)
    assert len(lists) == 5
    for name, path in lists:
        assert re.search(rf"^{name}\b.* = ", (ROOT / path).read_text(encoding="utf8"), re.MULTILINE), (
            f"{name} in {path}"
        )


def test_probe_of_the_page(page_folder):
    from cloud_hf.evaluation.probes import ProbedRow, ProbeRow, ScoredVariant
    from cloud_hf.scoring import Score

    def score(reward: float) -> Score:
        return Score(reward, "", (reward,), ("",), 0.0, ("stop",))

    [row] = extension("def load(")["load"](["reward_bench.jsonl"])[:1]
    probe, row = extension("SHOUTING =")["SHOUTING"], ProbeRow("set", row, [score(1.0), score(0.0)])
    variants = probe.alter(row, None)
    assert [variant.response for variant in variants] == ["IT IS 30.", "IT IS 0."]
    scored = {(variant.label, variant.place): ScoredVariant(variant, score(2.0)) for variant in variants}
    change, lost = probe.measure([ProbedRow(row, scored)])
    assert change.estimate.value == 1.5 and lost.estimate.value == 1.0


def test_builder_of_the_page(page_folder):
    from datasets import load_from_disk

    builder = extension("class TitleArguments")
    with completions() as url:
        builder["main"](builder["TitleArguments"](dataset_name="pairs.jsonl", output_dir="titles", base_url=[url]))
    assert len(load_from_disk("titles")) == 8 and all(load_from_disk("titles")["title"])


def test_route_of_the_page(model):
    pytest.importorskip("fastapi")
    from servers_for_tests import make_engine
    from starlette.testclient import TestClient

    from cloud_hf.serving.server import make_app

    app = make_app(make_engine(model))
    app.include_router(extension("/v1/best")["router"])
    inputs = [{"prompt": "What is 2+2?", "response": response} for response in ("4", "5", "It is 4.")]
    with TestClient(app) as client:
        answer = client.post("/v1/best", json={"inputs": inputs, "max_new_tokens": 4}).json()
    assert answer["rewards"][answer["best"]] == max(answer["rewards"]) and len(answer["rewards"]) == 3


# --------------------------------------------------------------------------------------------------------------- pages


def test_figures_are_those_of_the_results():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import figures
    finally:
        sys.path.pop(0)
    for page in figures.pages():
        text = page.read_text(encoding="utf8")
        assert figures.fill(text) == text, f"{page.name} is out of date: run `python docs/figures.py`"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def test_map_of_readme_has_every_folder():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    for package in (ROOT / "cloud_hf").rglob("__init__.py"):
        assert f"{package.parent.name}/" in text, package.parent


@pytest.mark.parametrize("page", [*PAGES, "AGENTS.md", "SECURITY.md"])
def test_links_to_files(page):
    """Links that do not leave the repository lead somewhere, also where no site is built."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_files_that_pages_name_exist():
    """Paths in code font, such as `benchmarks/scoring_speed.py`."""
    for page in {*PAGES, "AGENTS.md"} - {EXTENDING}:
        text = (ROOT / page).read_text(encoding="utf8")
        for path in re.findall(r"`((?:benchmarks|cloud_hf|docs|ds_configs|examples|spaces|tests)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


# ----------------------------------------------------------------------------------------------------------------- API

PUBLIC = ["cloud_hf", "cloud_hf.training", "cloud_hf.serving", "cloud_hf.serving.server", "cloud_hf.evaluation"]
PUBLIC += ["cloud_hf.evaluation.probes", "cloud_hf.evaluation.report"]


def documented_paths() -> list[str]:
    pages = sorted((ROOT / "docs/api").glob("*.md"))
    return [path for page in pages for path in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE)]


def load(path: str):
    """The object a path names."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(load(module), name)


def test_public_packages_are_those_with_public_names():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "cloud_hf").rglob("__init__.py")
        if "__all__" in path.read_text(encoding="utf8")
    }
    assert found == set(PUBLIC)


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_documented(package):
    pytest.importorskip("fastapi") if package.endswith("server") else None
    documented, text = documented_paths(), "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    names = {path.rpartition(".")[2] for path in documented}
    module = importlib.import_module(package)
    for name in module.__all__:
        if name == "CLoudVLLM":  # imports vLLM
            assert name in names
            continue
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert {name, thing.__name__} & names, f"{package}.{name} is on no page of docs/api"
            assert inspect.getdoc(thing), f"{package}.{name} has no docstring"
        else:
            assert name in names or f"`{name}`" in text, f"{package}.{name} is on no page of docs/api"


def test_documented_names_exist():
    for path in documented_paths():
        if "server.app" in path:
            pytest.importorskip("fastapi")
        if not path.endswith("CLoudVLLM"):
            assert inspect.getdoc(load(path)), path


def test_site_builds(tmp_path, monkeypatch):
    """Strictly: a broken link or reference fails."""
    pytest.importorskip("mkdocs")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "images/score.png").exists()
