"""Entry point of `python -m cloud_hf`: the `cloud-hf` command, for environments whose scripts are not on the `PATH`."""

from .cli import main


main()
