"""Writes tests/reference/loss_terms.jsonl: what a document's own loss adds to its log weight, for `src/score/loss_term.rs` to
agree with.

    python3 tests/reference/make_loss_terms.py > tests/reference/loss_terms.jsonl

In extended precision. Without a loss: the mean of f over the range, by the trapezoidal rule on as many points as the function is
straight or parabolic between.
"""

import json

import numpy as np

from make_loss_weights import LD

RNG = np.random.default_rng(20250426)


def f(strategy, losses, low, high):
    clipped = np.clip(losses, low, high)
    if strategy == "kl_dro":
        return clipped
    h = (2 * clipped - (low + high)) / max(high - low, LD(1e-6))
    return {"lin_upper": np.minimum(h + 1, LD(1)), "quadratic": 1 - h**2, "extremes": np.abs(h)}[strategy]


def mean(strategy, low, high):
    points = low + (high - low) * np.arange(200_001, dtype=LD) / 200_000
    values = f(strategy, points, low, high)
    return (values[:-1] + values[1:]).sum() / (2 * 200_000)


if __name__ == "__main__":
    for strategy in ["lin_upper", "quadratic", "extremes", "kl_dro"]:
        for low, high in [(0.0, 1.0), (1.25, 6.5), (-3.0, 0.5), (2.0, 2.0 + 2**-10), (0.0, 1e6)]:
            for coefficient in [1.0, -0.75, 12.5]:
                inside = RNG.uniform(low, high, 6)
                losses = np.array([low, high, (low + high) / 2, low - 1, high + 1, *inside], LD)
                term = {"coefficient": coefficient, "strategy": strategy, "low": low, "high": high}
                added = LD(coefficient) * f(strategy, losses, LD(low), LD(high))
                print(json.dumps({
                    "term": term,
                    "losses": [float(loss) for loss in losses],
                    "added": [float(value) for value in added],
                    "added_without": float(LD(coefficient) * mean(strategy, LD(low), LD(high))),
                }))
