"""AdamW, clipping and the schedule against their definitions, written out plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_agent.adapt.trainer.optimizer import AdamW, Parameter, clip, factor


def parameters(dtype: type = np.float64) -> list[Parameter]:
    rng = np.random.default_rng(1)
    shapes = {"a": (3, 4), "b": (2, 3)}
    return [(name, rng.standard_normal(shape).astype(dtype), np.zeros(shape, dtype))
            for name, shape in shapes.items()]  # fmt: skip


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_the_papers_for_each_number(weight_decay: float) -> None:
    found = parameters()
    optimizer = AdamW(found, weight_decay)
    expected = {name: value.copy() for name, value, _ in found}
    m = {name: np.zeros_like(value) for name, value, _ in found}
    v = {name: np.zeros_like(value) for name, value, _ in found}
    rng = np.random.default_rng(2)
    for t in range(1, 8):
        rate = 0.01 / t
        for _, _, gradient in found:
            gradient[:] = rng.standard_normal(gradient.shape)
        optimizer.step(found, rate)
        for name, _, gradient in found:
            for place in np.ndindex(gradient.shape):
                g = gradient[place]
                m[name][place] = 0.9 * m[name][place] + 0.1 * g
                v[name][place] = 0.999 * v[name][place] + 0.001 * g * g
                first = m[name][place] / (1 - 0.9**t)
                second = v[name][place] / (1 - 0.999**t)
                decayed = expected[name][place] * (1 - rate * weight_decay)
                expected[name][place] = decayed - rate * first / (math.sqrt(second) + 1e-8)
    assert optimizer.t == 7
    for name, value, _ in found:
        np.testing.assert_allclose(value, expected[name], rtol=1e-12)


def test_it_works_in_the_precision_of_its_parameters() -> None:
    found = parameters(np.float32)
    optimizer = AdamW(found, 0.1)
    for _, _, gradient in found:
        gradient[:] = 0.5
    optimizer.step(found, 1e-3)
    kept = [value for _, value, _ in found]
    assert {array.dtype for array in (*kept, *optimizer.m.values(), *optimizer.v.values())} == {
        np.dtype(np.float32)
    }


def test_a_large_gradient_is_scaled_to_the_limit_and_a_small_one_left() -> None:
    found = parameters()
    for _, _, gradient in found:
        gradient[:] = 2.0
    norm = clip(found, 1.0)
    assert norm == pytest.approx(2 * math.sqrt(18))
    after = math.sqrt(sum(float((gradient**2).sum()) for _, _, gradient in found))
    assert after == pytest.approx(1.0, rel=1e-5)
    before = [gradient.copy() for _, _, gradient in found]
    clip(found, 5.0)
    for (_, _, gradient), same in zip(found, before, strict=True):
        np.testing.assert_array_equal(gradient, same)


def test_no_limit_means_no_clipping() -> None:
    found = parameters()
    found[0][2][:] = 1e6
    assert clip(found, 0.0) == pytest.approx(1e6 * math.sqrt(12))
    assert found[0][2].max() == 1e6


def test_the_rate_rises_falls_and_is_never_zero() -> None:
    factors = [factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(earlier >= later for earlier, later in zip(factors[10:], factors[11:], strict=False))
    assert 0 < factors[-1] < 0.001
    assert factor(10, 100, 0.1) == 1.0 and factor(55, 100, 0.1) == pytest.approx(0.5)


def test_a_single_step_learns_at_the_full_rate() -> None:
    assert factor(0, 1, 0.05) == 1.0 and factor(0, 1, 0.0) == 1.0
