"""A quickstart that is given again keeps what is finished, and never mixes two runs; with scripts that end at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


pytestmark = pytest.mark.timeout(60)

EXAMPLES = Path(__file__).parents[2] / "examples"

# Writes a file and a card from the recipe and its inputs, an hour apart if there is a file named `pause`
SCRIPT = """
import pathlib, sys, time
here = pathlib.Path(__file__).parent
option = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, folder, inputs = option["--name"], pathlib.Path(option["--output"]), option["--inputs"].split(",")
with (here / "log").open("a") as log:
    log.write(name + "\\n")
folder.mkdir(exist_ok=True)
read = [pathlib.Path(path).read_text() for path in inputs if path]
text = f"{name}({pathlib.Path(option['--config']).read_text()} {' '.join(read)})"
assert not (folder / f"{name}.txt").exists(), "the folder holds something of an earlier run"
(folder / f"{name}.part").write_text(text[:5])
if (here / "pause").exists() and (here / "pause").read_text() == name:
    (here / "paused").write_text(str(__import__("os").getpid()))
    time.sleep(3600)
(folder / f"{name}.part").unlink()
(folder / f"{name}.txt").write_text(text)
(folder / "README.md").write_text("A card")
if (here / "fail").exists() and (here / "fail").read_text() == name:
    sys.exit(7)
"""

# Two arms from one base, and two evaluations in one folder, as in the quickstart
STAGES = {"base": ("base", ()), "left": ("left", ("base",)), "right": ("right", ("base",)),
          "pairs": ("both", ("left", "right")), "best": ("both", ("left", "right"))}  # fmt: skip

DRIVER = """
import pathlib, sys, types
# Choosing threads takes 0.3 s a stage
openmp_threads = sys.modules["cloud_hf.openmp_threads"] = types.SimpleNamespace(thread_environment=dict)
sys.modules["cloud_hf"] = types.SimpleNamespace(openmp_threads=openmp_threads)
sys.path.insert(0, {examples!r})
import quickstart_stages as q
q.EXAMPLES = q.RECIPES = pathlib.Path({scripts!r})
q.hash_code = lambda: (q.EXAMPLES / "code").read_text()
stages = [
    q.Stage(name, name, "script.py", f"{{name}}.yaml",
            ("--name", name, "--output", "{{run}}/" + folder,
             "--inputs", ",".join("{{run}}/" + f"{{i}}/{{i}}.txt" for i in inputs)), (folder,), inputs)
    for name, (folder, inputs) in {stages!r}.items()
]
run = pathlib.Path(sys.argv[1])
with q.lock(run) as held:
    q.claim(run, stages, int(sys.argv[2]))
    usage = q.run_stages(run, stages, held, print)
    assert list(usage) == [stage.name for stage in stages]
    assert all(set(used) == {{"wall_s", "cpu_s", "peak_gb"}} for used in usage.values())
"""


class Scripts:
    """The folder of the scripts, and the driver that runs them."""

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "run"
        (folder / "script.py").write_text(SCRIPT)
        (folder / "code").write_text("1")
        for name in STAGES:
            (folder / f"{name}.yaml").write_text("v1")
        (folder / "driver.py").write_text(DRIVER.format(examples=str(EXAMPLES), scripts=str(folder), stages=STAGES))

    def start(self, seed=0, stdout=subprocess.PIPE):
        command = [sys.executable, str(self.folder / "driver.py"), str(self.run), str(seed)]
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, text=True)

    def complete(self, seed=0):
        """The stages that were run, the exit status, and the output."""
        before = len(self.log())
        process = self.start(seed)
        output, _ = process.communicate(timeout=60)
        return self.log()[before:], process.returncode, output

    def log(self):
        return (self.folder / "log").read_text().split() if (self.folder / "log").exists() else []

    def kill_in(self, name, send):
        """Send a signal while a stage is halfway; returns the stage's process."""
        (self.folder / "pause").write_text(name)
        process = self.start(stdout=subprocess.DEVNULL)  # a pipe would stay open as long as the stage
        paused = self.folder / "paused"
        while not (paused.exists() and paused.read_text()):
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(send)
        process.wait()
        stage = int(paused.read_text())
        for name in ("pause", "paused"):
            (self.folder / name).unlink()
        return stage

    def results(self):
        return {path.name: path.read_text() for path in self.run.rglob("*.txt")}

    def check(self):
        """What is there is of one run."""
        recipe = {name: (self.folder / f"{name}.yaml").read_text() for name in STAGES}
        base = f"base({recipe['base']} )"
        arms = {name: f"{name}({recipe[name]} {base})" for name in ("left", "right")}
        scores = {name: f"{name}({recipe[name]} {arms['left']} {arms['right']})" for name in ("pairs", "best")}
        assert self.results() == {f"{name}.txt": text for name, text in {"base": base, **arms, **scores}.items()}
        assert not list(self.run.rglob("*.part"))


@pytest.fixture
def scripts(tmp_path):
    return Scripts(tmp_path)


def test_twice(scripts):
    assert scripts.complete()[:2] == (list(STAGES), 0)
    scripts.check()
    ran, status, output = scripts.complete()
    assert (ran, status) == ([], 0) and output.count("kept from an earlier run") == 5
    scripts.check()


def test_another_seed_is_refused(scripts):
    scripts.complete()
    ran, status, output = scripts.complete(seed=1)
    assert (ran, status) == ([], 1) and "contains a run with seed 0, not 1" in output
    scripts.check()


def test_a_folder_of_something_else_is_refused(scripts):
    (scripts.run / "left").mkdir(parents=True)
    (scripts.run / "left/my-model").write_text("mine")
    ran, status, output = scripts.complete()
    assert (ran, status) == ([], 1) and "contains left, but not stages/run.json" in output
    assert (scripts.run / "left/my-model").read_text() == "mine"


@pytest.mark.parametrize("name", STAGES)
def test_killed_halfway(scripts, name):
    """The parent is killed without a word, so that the stage lives on; it keeps others out until it ends."""
    stage = scripts.kill_in(name, signal.SIGKILL)
    process = scripts.start()
    assert "Another process is using" in process.stdout.readline()
    before = len(scripts.log())
    os.kill(stage, signal.SIGKILL)
    process.communicate(timeout=60)
    names = list(STAGES)
    assert process.returncode == 0 and scripts.log()[before:] == names[names.index(name) :]
    scripts.check()


def test_terminated(scripts):
    """With SIGTERM, as from `make` or a scheduler, the stage ends, too."""
    stage = scripts.kill_in("left", signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)
    assert scripts.complete()[:2] == (["left", "right", "pairs", "best"], 0)
    scripts.check()


@pytest.mark.parametrize("name", STAGES)
def test_failed_at_its_end(scripts, name):
    """All files are there, but the stage did not end well: it runs again."""
    (scripts.folder / "fail").write_text(name)
    ran, status, output = scripts.complete()
    assert ran[-1] == name and status == 1 and "script.py failed with exit status 7" in output
    (scripts.folder / "fail").unlink()
    assert scripts.complete()[0][0] == name
    scripts.check()


@pytest.mark.parametrize(
    ("changed", "again"), [("base", list(STAGES)), ("right", ["right", "pairs", "best"]), ("best", ["best"])]
)
def test_another_recipe(scripts, changed, again):
    """What depends on it runs again, and nothing else."""
    scripts.complete()
    (scripts.folder / f"{changed}.yaml").write_text("v2")
    ran, status, output = scripts.complete()
    assert (ran, status) == (again, 0) and f"{changed} (again: recipe changed)" in output
    scripts.check()


def test_other_code(scripts):
    scripts.complete()
    (scripts.folder / "code").write_text("2")
    assert scripts.complete()[0] == list(STAGES)


def test_output_that_was_changed_or_lost_is_made_again(scripts):
    scripts.complete()
    (scripts.run / "left/left.txt").write_text("something else")
    assert scripts.complete()[0] == ["left"]  # it wrote the same as before
    (scripts.run / "both/pairs.txt").unlink()
    assert scripts.complete()[0] == ["pairs", "best"]  # they share a folder
    scripts.check()
    record = json.loads((scripts.run / "stages/best.json").read_text())
    assert set(record["outputs"]) == {"both/best.txt"}


def test_a_card_may_gain_results_later(scripts):
    scripts.complete()
    (scripts.run / "left/README.md").write_text("A card with results")
    assert scripts.complete()[0] == []


@pytest.mark.parametrize(("value", "adds"), [("", False), ("0", False), ("1", True)])
def test_make_adds_stage_4_on_request(value, adds):
    make = ["make", "--dry-run", "--old-file", ".venv/.ready", "quickstart", f"STAGE4={value}"]
    commands = subprocess.run(make, cwd=EXAMPLES.parent, capture_output=True, text=True, check=True).stdout
    assert "examples/quickstart.py" in commands and ("--stage4" in commands) == adds
