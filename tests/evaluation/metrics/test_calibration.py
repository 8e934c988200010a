import math

import numpy as np
import pytest

from cloud_hf.evaluation.metrics import calibration
from cloud_hf.evaluation.metrics.calibration import calibrate, estimate, log_loss


def test_log_loss_by_hand():
    assert calibrate([0.0]).log_loss == pytest.approx(math.log(2))
    assert calibrate([1.0, -2.0]).log_loss == pytest.approx(
        (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    )
    assert calibrate([-1e4, 1e4]).log_loss == pytest.approx(5e3)  # no overflow


def test_calibration_error_by_hand():
    """Three pairs of confidence 0.75, two of them right, and one of confidence 0.9 that is right."""
    three, nine = math.log(3), math.log(9)
    scores = calibrate([three, three, -three, nine], num_bins=5)
    assert scores.bins == (pytest.approx((0.75, 2 / 3, 3)), pytest.approx((0.9, 1.0, 1)))
    assert scores.ece == pytest.approx((3 * (0.75 - 2 / 3) + (1 - 0.9)) / 4)
    logits = [math.log(p / (1 - p)) for p in (0.51, 0.54, 0.56, 0.92, 0.97)]
    assert [count for _, _, count in calibrate(logits).bins] == [2, 1, 1, 1]  # bins of width 0.05
    assert calibrate([0.0, 0.0]).bins == ((0.5, 0.5, 2),) and calibrate([0.0]).ece == 0.0  # a tie is half right
    assert calibrate([1e9]).bins == ((1.0, 1.0, 1),)  # the last bin is closed


def test_there_must_be_bins_and_pairs():
    with pytest.raises(ValueError, match="`num_bins` is 0; it must be at least 1"):
        calibrate([1.0], num_bins=0)
    with pytest.raises(ValueError, match="no pairs"):
        calibrate([])


def test_the_order_of_a_pair_does_not_matter_to_the_calibration_error():
    margins = np.random.default_rng(0).normal(size=50)
    right = calibrate(margins).bins
    wrong = calibrate(-margins).bins
    assert [(confidence, count) for confidence, _, count in right] == [(c, n) for c, _, n in wrong]
    assert [accuracy for _, accuracy, _ in right] == pytest.approx([1 - accuracy for _, accuracy, _ in wrong])


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1.0, 40.0])
def test_the_temperature_undoes_a_scale(scale):
    """Outcomes drawn with the probabilities of the margins, which are then stretched."""
    rng = np.random.default_rng(0)
    truth = np.abs(rng.normal(size=20_000)) * 2
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-truth)), truth, -truth)
    scores = calibrate(margins * scale)
    assert scores.temperature == pytest.approx(scale, rel=0.05)
    assert scores.log_loss_at_temperature <= scores.log_loss
    assert scores.log_loss_at_temperature == pytest.approx(calibrate(margins).log_loss, abs=1e-3)
    assert calibrate(margins).ece < 0.02


@pytest.mark.parametrize("margins", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [1.0, -1.0]])
def test_where_no_temperature_is_best(margins):
    assert math.isnan(calibrate(margins).temperature) and math.isnan(calibrate(margins).log_loss_at_temperature)


def test_the_interval_holds_the_log_loss():
    """As wide as the standard error says; pairs of a row are drawn together."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0.5, 1.5, size=300)
    low, high = estimate(log_loss, margins, np.arange(300)).ci95
    losses = np.logaddexp(0, -margins)
    assert low < calibrate(margins).log_loss < high
    assert high - low == pytest.approx(2 * 1.96 * losses.std() / math.sqrt(300), rel=0.1)
    clustered = estimate(log_loss, np.repeat(margins[:100], 3), np.repeat(np.arange(100), 3)).ci95
    assert clustered[1] - clustered[0] == pytest.approx(math.sqrt(3) * (high - low), rel=0.25)


def test_no_interval_of_one_row():
    assert estimate(log_loss, [1.0, 2.0], [0, 0]).ci95 is None


def test_the_resampled_loss_of_all_rows_is_the_loss(monkeypatch):
    margins = np.random.default_rng(1).normal(size=40)
    monkeypatch.setattr(
        calibration, "interval_over_rows", lambda n, statistic: np.repeat(statistic(np.ones((1, n))), 2, 0)
    )
    found, loss = estimate(log_loss, margins, np.arange(40)), calibrate(margins).log_loss
    assert found.ci95 == pytest.approx((loss,) * 2) and found.value == pytest.approx(loss)
