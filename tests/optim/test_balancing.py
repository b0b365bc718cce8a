"""Balancers against cases worked out by hand, and against plain loops over vectors."""

import math

import numpy as np
import pytest
import torch

from gmf_platform.errors import UserError
from gmf_platform.optim.balancing import FixedWeights, PCGrad, Uncertainty


def gram(*vectors):
    stacked = torch.tensor(vectors, dtype=torch.float64)
    return stacked @ stacked.T


def test_fixed_weights():
    balancing = FixedWeights(["a", "b"], weights={"b": 0.25})
    assert balancing("a", torch.tensor(3.0)) == 3
    assert balancing("b", torch.tensor(8.0)) == 2
    assert balancing.coefficients(gram([1.0, 0], [-1, 1]), seed=(0, 0)) == [1, 1]


@pytest.mark.parametrize(("name", "weight"), [("a", 0.0), ("a", -1.0), ("a", math.nan), ("c", 1.0)])
def test_weights_that_mean_nothing(name, weight):
    with pytest.raises(UserError, match=f"model.balancing.weights.{name}"):
        FixedWeights(["a", "b"], weights={name: weight})


def test_uncertainty():
    """By hand: exp(-s) L + s / 2, whose derivative by s is 1/2 - exp(-s) L."""
    balancing = Uncertainty(["a", "b"], weights={"b": 0.5})
    assert balancing("a", torch.tensor(3.0)).item() == pytest.approx(3)
    loss = balancing("b", torch.tensor(3.0))  # s = ln 2
    assert loss.item() == pytest.approx(3 / 2 + math.log(2) / 2)
    assert float(balancing.weight("b")) == pytest.approx(0.5)
    loss.backward()
    assert balancing.log_variances["b"].grad.item() == pytest.approx(0.5 - 1.5)
    assert balancing.log_variances["a"].grad is None


def test_uncertainty_finds_the_variance():
    """At the minimum exp(s) = 2 L."""
    balancing = Uncertainty(["a"])
    optimizer = torch.optim.SGD(balancing.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        balancing("a", torch.tensor(3.0)).backward()
        optimizer.step()
    assert balancing.log_variances["a"].exp().item() == pytest.approx(6, rel=1e-3)


def test_gradient_surgery_by_hand():
    """(1, 0) loses what points against (-1, 1), and becomes (0.5, 0.5); the other one (0, 1)."""
    one, other = np.array([1.0, 0]), np.array([-1.0, 1])
    a, b = PCGrad(["a", "b"]).coefficients(gram(one, other), seed=(0, 0))
    np.testing.assert_allclose(a * one + b * other, [0.5, 1.5])


def test_gradient_surgery_leaves_friends_alone():
    vectors = [1.0, 0, 0], [1.0, 1, 0], [0, 0.0, 2]
    assert PCGrad(["a", "b", "c"]).coefficients(gram(*vectors), seed=(1, 2)) == [1, 1, 1]


def test_gradient_surgery_is_the_papers_algorithm():
    """On vectors, not on their products; with the same order, which step and seed decide."""
    names = list("abcd")
    orders = set()
    for step in range(20):
        vectors = np.random.default_rng(step).normal(size=(4, 6))
        generator = np.random.default_rng((3, step))
        total = np.zeros(6)
        for i in range(4):
            order = generator.permutation(4)
            orders.add(tuple(order))
            projected = vectors[i].copy()
            for j in order:
                if j != i and projected @ vectors[j] < 0:
                    projected -= projected @ vectors[j] / (vectors[j] @ vectors[j]) * vectors[j]
            total += projected
        factors = PCGrad(names).coefficients(gram(*vectors), seed=(3, step))
        np.testing.assert_allclose(np.array(factors) @ vectors, total, atol=1e-12)
    assert len(orders) > 10


def test_a_task_without_gradient_is_no_division_by_zero():
    factors = PCGrad(["a", "b"]).coefficients(gram([0.0, 0], [1, 1]), seed=(0, 0))
    assert factors == [1, 1]
