"""The options of every script: names, types, defaults and choices stay as recorded, and each has a help text."""

import argparse
import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest
from scripts_for_tests import EXAMPLES, command_module
from transformers import HfArgumentParser
from trl import TrlParser


OPTIONS = json.loads(Path(__file__).with_name("options.json").read_text())
RECORDED, PARSERS = OPTIONS["dataclasses"], OPTIONS["parsers"]
UPSTREAM = ("trl.", "transformers.")


def arguments_of(script: str) -> tuple:
    if script == "plan":
        return (importlib.import_module("cloud_hf.training.plan").PlanArguments,)
    return command_module(script).ARGUMENTS


def parser_of(script: str) -> argparse.ArgumentParser:
    # `plan` takes its recipe as its own option, which TRL's parser keeps for itself
    return HfArgumentParser(arguments_of(script)) if script == "plan" else TrlParser(arguments_of(script))


def own_fields(classes) -> list[tuple[type, dataclasses.Field]]:
    """Options that this package defines, or gives another default than the class upstream, and their classes."""
    return [
        (cls, field)
        for cls in classes
        for field in dataclasses.fields(cls)
        if field.init and not defining_class(cls, field.name).__module__.startswith(UPSTREAM)
    ]


def defining_class(cls: type, name: str) -> type:
    return next(parent for parent in cls.__mro__ if name in inspect.get_annotations(parent))


def describe(cls: type, field: dataclasses.Field) -> dict:
    # Not the field's type, which a parser changes
    annotation = inspect.get_annotations(defining_class(cls, field.name))[field.name]
    described = {"type": annotation.__name__ if type(annotation) is type else str(annotation)}
    if field.default_factory is not dataclasses.MISSING:
        described["default"] = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        described["default"] = field.default
    if "choices" in field.metadata:
        described["choices"] = list(field.metadata["choices"])
    return described


@pytest.mark.parametrize("script", RECORDED)
def test_options_are_the_recorded_ones(script):
    found = {field.name: describe(cls, field) for cls, field in own_fields(arguments_of(script))}
    assert json.loads(json.dumps(found)) == RECORDED[script]


def test_every_script_with_options_is_recorded():
    scripts = {
        path.stem for path in EXAMPLES.glob("*.py") if re.search("cloud_hf.cli import run|ARGUMENTS", path.read_text())
    }
    assert RECORDED.keys() == scripts | {"plan"}


@pytest.mark.parametrize("script", RECORDED)
def test_help_explains_every_option(script):
    parser = parser_of(script)
    own = {field.name for _, field in own_fields(arguments_of(script))}
    actions = {action.dest: action for action in parser._actions if action.dest in own}
    assert actions.keys() == own
    page = " ".join(parser.format_help().split())
    for name, action in actions.items():
        assert f"--{name}" in page and action.help, name


class Parsed(Exception):
    """Carries a parser out of a `main` that would parse the command line."""


@pytest.mark.parametrize("module", PARSERS)
def test_options_of_modules_are_the_recorded_ones(module, monkeypatch):
    def stop(parser, *_):
        raise Parsed(parser)

    monkeypatch.delenv("CLOUD_API_KEY", raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as caught:
        importlib.import_module(module).main()
    [parser] = caught.value.args
    actions = [action for action in parser._actions if action.dest != "help"]
    found = {
        action.dest: {key: getattr(action, key) for key in ("default", "required", "choices")} for action in actions
    }
    assert json.loads(json.dumps(found)) == PARSERS[module]
