"""Metrics: accuracy on pairs, best-of-N, calibration, selective accuracy, self-consistency, critique quality."""
