"""The loss of stage 4 against a model so small that all its critiques can be enumerated: a vocabulary of 4, at most 3 tokens."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from cloud_hf.training.outcome_loss import OBJECTIVES, outcome_loss


END = 3


def all_critiques(length):
    """Every critique of at most `length` tokens, padded with the end token; one of that length is cut."""
    written = [tokens for n in range(length + 1) for tokens in itertools.product(range(END), repeat=n)]
    return torch.tensor([(*tokens, *[END] * (length - len(tokens))) for tokens in written])


def every_two(critiques):
    """Indices of every two critiques in any order, and the number of those orders."""
    pairs = torch.tensor(list(itertools.combinations_with_replacement(range(len(critiques)), 2)))
    return pairs, 1.0 + (pairs[:, 0] != pairs[:, 1]).double()


def read(theta, critiques):
    """Log-probabilities and rewards of critiques of the chosen and the rejected response, each of shape `(2, number)`."""
    side_2H, embedding_VH, recurrent_HH, output_HV, head_H = (
        part.view(shape) for part, shape in zip(theta.split([4, 10, 4, 8, 2]), [(2, 2), (5, 2), (2, 2), (2, 4), (2,)], strict=True)
    )  # fmt: skip
    hidden = torch.tanh(side_2H[:, None] + embedding_VH[4]).expand(2, len(critiques), 2)
    logprobs, is_open = torch.zeros(2, len(critiques), dtype=theta.dtype), torch.ones(len(critiques), dtype=torch.bool)
    for token in critiques.T:
        chosen = (hidden @ output_HV).log_softmax(-1)[:, torch.arange(len(critiques)), token]
        logprobs = logprobs + chosen * is_open
        fed = torch.tanh(side_2H[:, None] + embedding_VH[token] + hidden @ recurrent_HH)
        hidden, is_open = torch.where(is_open[:, None], fed, hidden), is_open & (token != END)
    cut = torch.tanh(side_2H[:, None] + embedding_VH[END] + hidden @ recurrent_HH)
    return logprobs, torch.where(is_open[:, None], cut, hidden) @ head_H


def enumerate_objective(theta, objective, length):
    """The expected objective for two critiques of each response, over all of them."""
    critiques = all_critiques(length)
    pairs, orders = every_two(critiques)
    logprobs, rewards = read(theta, critiques)
    weights = logprobs[:, pairs].sum(2).exp() * orders
    sigmoid = torch.sigmoid(rewards[0][pairs][:, None, :, None] - rewards[1][pairs][None, :, None])
    value = sigmoid.mean((2, 3)).log() if objective == "likelihood" else sigmoid.log().mean((2, 3))
    return (weights[0] @ value @ weights[1]).item()


@pytest.fixture(scope="module")
def theta():
    made = torch.randn(28, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    made[-2:] *= 0.5  # the head's weights: with less variance, 100,000 samples are enough
    return made


@pytest.fixture(scope="module")
def directions():
    made = torch.randn(4, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return made / made.norm(dim=1, keepdim=True)


def differences(theta, directions, objective, length, step=1e-4):
    ends = [
        [enumerate_objective(theta + sign * step * way, objective, length) for sign in (1, -1)] for way in directions
    ]
    return torch.tensor([(up - down) / (2 * step) for up, down in ends], dtype=torch.float64)


def estimate(theta, critiques, chosen, rejected, weights, objective):
    """The gradient of the weighted loss of pairs whose critiques have these numbers, negated."""
    theta = theta.clone().requires_grad_()
    logprobs, rewards = read(theta, critiques)
    losses = outcome_loss(
        rewards[0][chosen], rewards[1][rejected], logprobs[0][chosen], logprobs[1][rejected], objective
    )
    assert losses.policy.abs().max() == 0
    (gradient,) = torch.autograd.grad(((losses.direct + losses.policy) * weights).sum(), theta)
    return -gradient


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_expected_gradient_is_that_of_the_enumerated_objective(theta, directions, objective):
    """No sampling: the estimate for every set of critiques, weighted by its probability."""
    critiques = all_critiques(2)
    pairs, orders = every_two(critiques)
    with torch.no_grad():
        probabilities = read(theta, critiques)[0].exp()
    assert probabilities.sum(1).tolist() == pytest.approx([1.0, 1.0])
    chosen, rejected = torch.cartesian_prod(torch.arange(len(pairs)), torch.arange(len(pairs))).T
    weights = probabilities[:, pairs].prod(2) * orders
    gradient = estimate(
        theta, critiques, pairs[chosen], pairs[rejected], weights[0][chosen] * weights[1][rejected], objective
    )
    expected = differences(theta, directions, objective, 2)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(directions @ gradient, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sampled_gradient_is_that_of_the_enumerated_objective(theta, directions, objective):
    """To 1e-3 with 100,000 samples of two critiques of each response."""
    critiques, draw = all_critiques(3), torch.Generator().manual_seed(2)
    with torch.no_grad():
        probabilities = read(theta, critiques)[0].exp()
    samples = [p.multinomial(200_000, replacement=True, generator=draw).view(-1, 2) for p in probabilities]
    weights = torch.full((100_000,), 1e-5, dtype=torch.float64)
    gradient = estimate(theta, critiques, *samples, weights, objective)
    expected = differences(theta, directions, objective, 3)
    torch.testing.assert_close(directions @ gradient, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_direct_term_is_exact(objective):
    draw = torch.Generator().manual_seed(0)
    rewards = [torch.randn(3, 4, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(2)]
    logprobs = torch.zeros(3, 4, dtype=torch.float64)
    torch.autograd.gradcheck(lambda *r: outcome_loss(*r, logprobs, logprobs, objective).direct, rewards)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_critique_of_each_response_is_bradley_terry(objective):
    chosen, rejected, logprobs = torch.randn(3, 5, 1).unbind()
    logprobs.requires_grad_()
    losses = outcome_loss(chosen, rejected, logprobs, logprobs, objective)
    torch.testing.assert_close(losses.direct, -F.logsigmoid(chosen - rejected)[:, 0])
    losses.policy.sum().backward()
    assert logprobs.grad.abs().max() == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_form_alone_gains_nothing(theta, objective):
    """
    If critiques of both responses come from one distribution, as verdicts without reasons do, no rewards of their forms make the
    objective better than a coin's, and forms of equal reward get no gradient.
    """
    theta = theta.clone()
    theta[2:4] = theta[:2]  # the critic does not see which response it judges
    values = []
    for loudness in (0.0, 1.0, 5.0):
        theta[-2:] = loudness
        values.append(enumerate_objective(theta, objective, 2))
    assert values[0] == pytest.approx(-0.693147, abs=1e-6)
    assert values[2] < values[1] < values[0]
    logprobs = torch.randn(2, 3, 4, requires_grad=True)
    outcome_loss(torch.ones(3, 4), torch.zeros(3, 4), *logprobs, objective=objective).policy.sum().backward()
    assert logprobs.grad.abs().max() < 1e-6
