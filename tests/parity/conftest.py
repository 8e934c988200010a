import numpy as np
import pytest


class Compare:
    """Counts the comparisons with goldens that a test makes."""

    def __init__(self, node):
        self.node = node
        self.count = 0

    def add(self, comparisons):
        self.count += comparisons
        self.node.user_properties[:] = [("golden_comparisons", self.count)]

    def exact(self, ours, golden, what=""):
        """Strings, lists of ids, counts: one comparison each."""
        self.add(1)
        assert ours == golden, f"{what}: {ours!r:.300} is not {golden!r:.300}"

    def close(self, ours, golden, what="", atol=1e-4, rtol=0.0, count=None):
        """Numbers: one comparison each, or as many as said for a vector that is one thing."""
        ours, golden = np.asarray(ours, dtype=np.float64), np.asarray(golden, dtype=np.float64)
        assert ours.shape == golden.shape, what
        self.add(golden.size if count is None else count)
        np.testing.assert_allclose(ours, golden, rtol=rtol, atol=atol, err_msg=str(what))


@pytest.fixture
def compare(request):
    return Compare(request.node)
