"""`import cloud_hf` loads neither torch nor transformers, and still registers its classes, whatever is imported first."""

import subprocess
import sys

import pytest


FIND = """
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

config = type(AutoConfig.for_model("cloud"))
assert config is cloud_hf.CLoudConfig
for auto in (AutoModel, AutoModelForSequenceClassification):
    assert auto._model_mapping[config] is cloud_hf.CLoudForRewardModeling
assert PIPELINE_REGISTRY.check_task("critique-reward")[1]["impl"] is cloud_hf.CLoudPipeline
"""


def run(code: str):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pure_modules_load_no_torch():
    run(
        """
import sys
import cloud_hf.argument_help, cloud_hf.cli, cloud_hf.data.verdicts, cloud_hf.evaluation.stats, cloud_hf.serving.client
cloud_hf.Score
loaded = {"torch", "transformers", "datasets", "trl", "peft"} & set(sys.modules)
assert not loaded, loaded
"""
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import cloud_hf",
        "from transformers import AutoConfig, AutoModel\nimport transformers.pipelines, cloud_hf",
        "import cloud_hf.serving.client\nfrom transformers import LlamaForCausalLM",
        "import cloud_hf.modeling_cloud",
        "import cloud_hf\nfrom trl import RewardTrainer",
    ],
    ids=["first", "last", "from_within_a_model", "by_our_module", "before_trl"],
)
def test_classes_are_registered(imports):
    run(imports + FIND)


def test_sources_of_watched_modules_are_found():
    """As documentation tools and remote code need."""
    run("import inspect, cloud_hf\nassert 'class CLoudConfig' in inspect.getsource(cloud_hf.CLoudConfig)")


def test_all_names_can_be_imported():
    run("from cloud_hf import *\nimport cloud_hf\nassert set(cloud_hf.__all__) <= set(globals()) & set(dir(cloud_hf))")
