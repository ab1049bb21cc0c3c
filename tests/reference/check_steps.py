"""Compares the weights that a trainer was given with those of a program of its own, in extended precision.

    python3 tests/reference/check_steps.py SETTINGS.json TRACE

TRACE is what `tests/step_trainer.py --trace` writes. The formulas are those of `make_loss_weights.py`. Prints how many weights
were compared, the largest difference in multiples of the mean weight, and how far a sum was off 1; fails beyond 1e-12.
"""

import json
import sys

import make_loss_weights

settings = json.load(open(sys.argv[1], encoding="utf-8"))
n_weights, worst, off, shares = 0, 0.0, 0.0, []
for step, line in enumerate(open(sys.argv[2], encoding="utf-8")):
    line = json.loads(line)
    losses, given = line["losses"], [sample["weight"] for sample in line["answer"]["weights"]]
    assert line["answer"]["step"] == step and len(given) == len(losses) == line["answer"]["n_samples"], line["answer"]
    expected = make_loss_weights.weights(losses, settings, step)
    temperature = make_loss_weights.temperature(settings["temperature"], step)
    shown = line["answer"]["temperature"]
    assert (temperature is None) == (shown is None), f"step {step}: temperature {shown} instead of {temperature}"
    assert temperature is None or abs(float(temperature) - shown) < 1e-12, f"step {step}: {shown} instead of {temperature}"
    worst = max(worst, max(abs(float(e) - g) for e, g in zip(expected, given)) * len(losses))
    off = max(off, abs(sum(given) - 1))
    shares.append(max(given) / min(given))
    n_weights += len(given)
assert n_weights and worst < 1e-12 and off < 1e-12, f"{n_weights} weights differ by {worst} of their mean, sums by {off}"
print(json.dumps({"weights": n_weights, "difference": worst, "sums_off": off, "largest_ratio": max(shares)}))
