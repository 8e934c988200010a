"""`python -m cloud_hf`, for `cloud-hf` where scripts are not on the path."""

from .cli import main


main()
