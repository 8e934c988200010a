"""Run the `cloud-hf` command with `python -m cloud_hf`, for environments whose scripts are not on the `PATH`."""

from .cli import main


main()
