"""Run `python -m cloud_hf`, the `cloud-hf` command for environments whose scripts are not on the path."""

from .cli import main


main()
