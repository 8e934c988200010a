"""The reward server on a Ray cluster of one node: its rewards are those of the model."""

import tempfile

import pytest
from models_for_tests import PROMPTS, RESPONSES
from same_scores import assert_same_scores
from servers_for_tests import BUDGET, free_port, make_talker, tokenizer_of


pytest.importorskip("ray.serve", reason="needs Ray Serve: `pip install 'ray[serve]==2.60.0'`", exc_type=ImportError)

import ray
from ray import serve

from cloud_hf.cli import UsageError
from cloud_hf.serving import CLoudClient
from cloud_hf.serving.ray_serve import application


@pytest.mark.parametrize(
    ("options", "gpus"),
    [({}, 1), ({"num_gpus": "0"}, 0), ({"backend": "vllm", "tensor_parallel_size": 2, "data_parallel_size": 4}, 8)],
)
def test_each_replica_gets_the_gpus_of_its_engine(options, gpus):
    deployment = application({"model": "org/rm", "num_replicas": "3", "max_queue": 7, **options})._bound_deployment
    assert deployment.num_replicas == 3 and deployment.max_ongoing_requests == 7
    assert deployment.ray_actor_options["num_gpus"] == gpus
    [arguments] = deployment.init_args
    assert arguments.model == "org/rm" and arguments.max_queue == 7


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({}, ValueError, "`model` is missing"),
        ({"model": "org/rm", "port": 8001}, ValueError, "`port` is an option of Ray Serve, not of the replicas"),
        ({"model": "org/rm", "colour": "red"}, UsageError, "--colour"),
        ({"model": "org/rm", "tensor_parallel_size": 2}, UsageError, "needs --backend vllm"),
        (
            {"model": "org/rm", "num_replicas": "four"},
            ValueError,
            "`num_replicas` is 'four'; it must be an integer of at least 1",
        ),
        (
            {"model": "org/rm", "num_replicas": 0},
            ValueError,
            "`num_replicas` is 0; it must be an integer of at least 1",
        ),
        ({"model": "org/rm", "num_replicas": 1.5}, ValueError, "`num_replicas` is 1.5; it must be an integer"),
        ({"model": "org/rm", "num_gpus": "-1"}, ValueError, "`num_gpus` is '-1'; it must be a number of at least 0"),
    ],
)
def test_what_cannot_be_started_is_refused_before_a_replica_starts(options, error, says):
    with pytest.raises(error, match=says):
        application(options)


def test_a_folder_is_found_from_where_the_command_runs(tmp_path, monkeypatch):
    """Replicas run in another folder if the cluster was started elsewhere."""
    (tmp_path / "runs/cloud").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    [arguments] = application({"model": "runs/cloud"})._bound_deployment.init_args
    assert arguments.model == str(tmp_path / "runs/cloud")


@pytest.mark.full  # two processes load a model
def test_two_replicas_score_as_the_model_does(tmp_path, monkeypatch):
    talker = make_talker(tmp_path)
    talker.save_pretrained(tmp_path)
    tokenizer_of("llama3").save_pretrained(tmp_path)
    expected = talker.score(PROMPTS * 8, RESPONSES * 8, tokenizer_of("llama3"), max_new_tokens=BUDGET)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on a busy machine, 5 s are too few
    port = free_port()
    # A short name, because socket paths are limited in length
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        ray.init("local", include_dashboard=False)
        try:
            serve.start(http_options={"port": port})
            serve.run(application({"model": str(tmp_path), "num_replicas": 2, "num_gpus": 0, "api_key": "key"}))
            client = CLoudClient(f"http://127.0.0.1:{port}", api_key="key")
            scores = client.score(PROMPTS * 8, RESPONSES * 8, max_new_tokens=BUDGET)
            assert client.served_model().model_version is not None
        finally:
            serve.shutdown()
            ray.shutdown()
    assert_same_scores(scores, expected, abs=1e-4)
