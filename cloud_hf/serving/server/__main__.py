"""`python -m cloud_hf.serving.server`."""

from ...cli import run


run("cloud_hf.serving.server.command", prog="python -m cloud_hf.serving.server")
