"""
The demo: score a response, compare several, CLoud against classic, best-of-N.

python spaces/demo/app.py --model runs/quickstart/cloud --classic_model runs/quickstart/classic --rows runs/quickstart/data/pairs
python spaces/demo/app.py --backend vllm --model org/my-cloud-rm --vllm_options '{"max_model_len": 4096}'
python spaces/demo/app.py --backend server --server_url http://127.0.0.1:8000 --rows llm_bar

On a Space the arguments are environment variables: `DEMO_MODEL`, `DEMO_CLASSIC_MODEL`, `DEMO_ROWS`, …
"""

import os
import sys

from cloud_demo.arguments import parse_arguments


# Seconds for a browser that opens the page at once
HEAD_START = 4.0


def main():
    """Open the page, and load the models meanwhile."""
    args = parse_arguments(description=__doc__)
    # Both are read when the libraries are imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = str(args.analytics)
    if not args.analytics:
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "False"  # of datasets, which counts readers of JSON files too
    on_zero_gpu = os.environ.get("SPACES_ZERO_GPU") == "true"
    if on_zero_gpu:
        import spaces  # noqa: F401 - there only, and before whatever asks torch for a GPU
    from cloud_demo.backend import Backend
    from cloud_demo.page import build, launch

    backend = Backend(args)
    page = build(backend)
    if on_zero_gpu or args.backend == "vllm":
        # ZeroGPU wants the model before the page, vLLM the main thread
        backend.load()
        launch(page, backend)
        return
    launch(page, backend, prevent_thread_lock=True)
    # Imports would hold the page up: whoever opens it first begins them once it stands
    backend.load_in_background(after=HEAD_START)
    page.block_thread()


if __name__ == "__main__":
    sys.exit(main())
