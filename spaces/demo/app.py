"""
Demo: score a response, compare several, compare CLoud with classic, best-of-N.

python spaces/demo/app.py   # with the small models in its folder
python spaces/demo/app.py --model runs/quickstart/cloud --classic_model runs/quickstart/classic --rows runs/quickstart/data/pairs
python spaces/demo/app.py --backend vllm --model org/my-cloud-rm --vllm_options '{"max_model_len": 4096}'
python spaces/demo/app.py --backend server --server_url http://127.0.0.1:8000 --rows llm_bar

On a Space the arguments are environment variables: `DEMO_MODEL`, `DEMO_CLASSIC_MODEL`, `DEMO_ROWS`, …
"""

import importlib
import os

from cloud_demo.arguments import DemoArguments, on_zero_gpu, parse_arguments

from cloud_hf.cli import UsageError, run


# Seconds for a browser to open the page
HEAD_START = 4.0


def main(arguments: list[str] | None = None):
    """Open the demo or, on a Space with a bad variable, a page that says what is wrong."""
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
        # The Hub counts downloads of JSON files; readers of data sets would appear there
        os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "False"
    if "SPACE_ID" in os.environ:
        # Visitors of a Space come through proxies of its network; uvicorn then takes the last address that is not one of them
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,127.0.0.1,::1")
    if on_zero_gpu():
        importlib.import_module("spaces")  # patches torch, so it comes first
        import cloud_demo.engines  # noqa: F401  ZeroGPU asks for functions that borrow a GPU, whatever the page


def open_demo(args: DemoArguments):
    """Open the page while the models load."""
    from cloud_demo.backend import Backend
    from cloud_demo.page import build, launch

    if args.policy_url is not None:
        import openai  # noqa: F401  so that a missing extra is reported at once

    backend = Backend(args)
    page = build(backend)
    if on_zero_gpu() or args.backend == "vllm":
        # ZeroGPU needs the model before the page, vLLM the main thread
        backend.load()
        launch(page, backend)
        return
    launch(page, backend, prevent_thread_lock=True)
    # Imports would slow the page down, so the first visitor (or this timer) starts them once the page is shown
    backend.load_in_background(after=HEAD_START)
    page.block_thread()


if __name__ == "__main__":
    run("app")
