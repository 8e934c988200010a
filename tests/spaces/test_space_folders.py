"""Each folder can be pushed to Hugging Face unchanged, and the examples in the modules' docstrings run."""

import ast
import doctest
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import evaluate
import pytest
import yaml
from browser import REPOSITORY, SPACES
from models_for_tests import make_model
from packaging.requirements import Requirement
from tokenizers_for_tests import make_tokenizer


FOLDERS = sorted(path.parent for path in SPACES.glob("*/README.md"))
METRICS = [SPACES / "cloud_reward", SPACES / "pairwise_preference"]
# ZeroGPU's package is there where its hardware is
GIVEN = {"cloud_demo", "spaces"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf8"))["project"]


def names_of(requirements) -> set[str]:
    return {Requirement(text).name.lower().replace("_", "-") for text in requirements}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_front_matter(folder):
    readme = (folder / "README.md").read_text(encoding="utf8")
    _, front, body = readme.split("---\n", 2)
    card = yaml.safe_load(front)
    assert readme.startswith("---\n") and body.strip().startswith("# ")
    assert card["sdk"] == "gradio" and re.fullmatch(r"6\.\d+\.\d+", card["sdk_version"])
    assert card["python_version"] == "3.11"  # a string, the least that the package takes; the Hub's default is older
    assert (folder / card["app_file"]).is_file() and card["app_file"] == "app.py"
    assert card["title"] and card["emoji"] and card["license"] == "apache-2.0" and card["pinned"] is False
    assert {card["colorFrom"], card["colorTo"]} <= COLORS
    assert len(card.get("short_description", "")) <= 60
    if folder in METRICS:
        assert card["tags"] == ["evaluate", "metric"] and card["description"]
    else:
        assert {"tags", "models", "preload_from_hub", "suggested_hardware", "startup_duration_timeout"} <= card.keys()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_requirements_hold_what_the_files_import(folder):
    """The Hub installs Gradio; `requirements.txt` names the rest."""
    pytest.importorskip("gradio", reason="Gradio is not installed.")
    wanted = [Requirement(line) for line in (folder / "requirements.txt").read_text().split()]
    promised = names_of(PROJECT["dependencies"]) | names_of(importlib.metadata.requires("gradio")) | {"gradio"}
    for requirement in wanted:
        promised.add(requirement.name)
        if requirement.name == "cloud-hf":
            for extra in requirement.extras:
                promised |= names_of(PROJECT["optional-dependencies"][extra])
    distributions = importlib.metadata.packages_distributions()
    for script in folder.glob("*.py"):
        for module in imported(script) - sys.stdlib_module_names - {"cloud_hf", *GIVEN}:
            assert {name.lower() for name in distributions[module]} & promised, f"{script.name} imports {module}"


def imported(script: Path) -> set[str]:
    """Return the top-level packages that a script imports."""
    nodes = list(ast.walk(ast.parse(script.read_text(encoding="utf8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("folder", METRICS, ids=lambda folder: folder.name)
def test_docstrings_in_the_format_of_evaluate(folder, tmp_path, monkeypatch, base_folder):
    model = tmp_path / "runs" / "quickstart" / "cloud"
    make_model(base_folder).save_pretrained(model)
    make_tokenizer("llama3").save_pretrained(model)
    (tmp_path / "spaces").symlink_to(SPACES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))

    module = evaluate.load(str(folder), cache_dir=str(tmp_path / "cache"))
    assert module.description.strip() and module.citation.strip().startswith("@article{")
    text = module.inputs_description
    sections = [part for part in ("Args:", "Returns:", "Examples:") if f"\n{part}\n" in text]
    assert sections == ["Args:", "Returns:", "Examples:"]
    arguments = text.split("Args:\n")[1].split("Returns:\n")[0]
    features = module.features[0] if isinstance(module.features, list) else module.features
    assert all(f"    {name} (`" in arguments for name in features)

    example = doctest.DocTestParser().get_doctest(text, {}, folder.name, None, 0)
    assert example.examples[-1].want  # it shows what comes out
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert outcome.failed == 0 and outcome.attempted == len(example.examples) >= 3
