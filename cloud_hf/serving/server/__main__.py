"""`python -m cloud_hf.serving.server`."""

from .app import main


main()
