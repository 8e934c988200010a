"""`python -m cloud_hf.serving.server`."""

from ...cli import run


run("cloud_hf.serving.server.app", prog="python -m cloud_hf.serving.server")
