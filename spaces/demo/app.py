"""
Demo: score a response, compare several responses, compare a CLoud model with a classic one, and pick the best of N.

python spaces/demo/app.py   # with the small models in the demo's folder
python spaces/demo/app.py --model runs/quickstart/cloud --classic_model runs/quickstart/classic --rows runs/quickstart/data/pairs
python spaces/demo/app.py --backend vllm --model org/my-cloud-rm --vllm_options '{"max_model_len": 4096}'
python spaces/demo/app.py --backend server --server_url http://127.0.0.1:8000 --rows llm_bar

On a Space, set the options as environment variables: `DEMO_MODEL`, `DEMO_CLASSIC_MODEL`, `DEMO_ROWS`, …
"""

import importlib
import os

from cloud_demo.arguments import DemoArguments, on_zero_gpu, parse_arguments

from cloud_hf.cli import UsageError, run


# Seconds to wait for a browser to open the page before the models load
HEAD_START = 4.0


def main(arguments: list[str] | None = None):
    """Open the demo or, on a Space with an invalid variable, a page that explains the problem."""
    try:
        args = parse_arguments(arguments, description=__doc__)
    except UsageError as error:
        if "SPACE_ID" not in os.environ:
            raise
        prepare_imports(analytics=False)
        from cloud_demo.page import launch_setup_page

        launch_setup_page(str(error))
    else:
        prepare_imports(args.analytics)
        open_demo(args)


def prepare_imports(analytics: bool):
    """Set environment variables that libraries read when they are imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = str(analytics)
    if not analytics:
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["VLLM_NO_USAGE_STATS"] = "1"
        # Otherwise, `datasets` counts each load in the Hub's download statistics, even that of a local JSON file (as `json`)
        os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "False"
    if "SPACE_ID" in os.environ:
        # Visitors reach a Space through proxies in its network. With this list, uvicorn identifies a visitor by the last forwarded address
        # that does not belong to a proxy
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,127.0.0.1,::1")
    if on_zero_gpu():
        importlib.import_module("spaces")  # patches torch, so import it first
        import cloud_demo.engines  # noqa: F401  ZeroGPU requires functions that borrow a GPU, even for the setup page


def open_demo(args: DemoArguments):
    """Open the page while the models load."""
    from cloud_demo.backend import Backend
    from cloud_demo.page import build, launch

    if args.policy_url is not None:
        import openai  # noqa: F401  so that a missing extra is reported immediately

    backend = Backend(args)
    page = build(backend)
    if on_zero_gpu() or args.backend == "vllm":
        # ZeroGPU needs the model to load before the page opens, and vLLM must load in the main thread
        backend.load()
        launch(page, backend)
        return
    launch(page, backend, prevent_thread_lock=True)
    # Imports would slow the page down, so loading starts only once a visitor sees the page or this timer ends
    backend.load_in_background(after=HEAD_START)
    page.block_thread()


if __name__ == "__main__":
    run("app")
