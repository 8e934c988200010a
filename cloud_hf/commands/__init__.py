"""One module per command of `cloud-hf`. The scripts in `examples/` run the same modules."""
