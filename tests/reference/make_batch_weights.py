"""Writes tests/reference/batch_weights.jsonl: what ranks report of a step, and the weights of the batch, for
`src/score/loss_batch.rs` to agree with.

    python3 tests/reference/make_batch_weights.py > tests/reference/batch_weights.jsonl

Reports are written as a trainer in Python writes them, `NaN` and `Infinity` among them, in either spelling; the expectation is
made from the samples, not from the JSON. Weights are those of `make_loss_weights.py`, in extended precision.
"""

import json
import math

import numpy as np

from make_loss_weights import LD, ROBUST, settings, weights

RNG = np.random.default_rng(20250425)
nan, inf = math.nan, math.inf


def reason(loss, tokens):
    if tokens == 0:
        return "no_tokens"
    if loss is None:
        return "no_loss"
    if not math.isfinite(loss):
        return "not_finite"
    return "negative" if loss < 0 else None


def report(run, step, rank, world_size, samples, columns):
    head = {"run_id": run, "step": step, "rank": rank, "world_size": world_size}
    if not columns:
        rows = [{"id": name, "loss": loss, "n_tokens": tokens} for name, loss, tokens in samples]
        return json.dumps(head | {"losses": rows})
    names, losses, tokens = ([sample[i] for sample in samples] for i in range(3))
    sums = [None if loss is None else loss * n for loss, n in zip(losses, tokens)]
    return json.dumps(head | {"doc_ids": names, "loss_sum": sums, "tokens": tokens})


def case(name, s, ranks, world_size, step=0, columns=False):
    """`ranks`: samples (id, loss, tokens) by rank; those that are not there have not reported."""
    samples = [sample for rank in sorted(ranks) for sample in ranks[rank]]
    bad = [
        [rank, place, reason(loss, tokens)]
        for rank in sorted(ranks)
        for place, (_, loss, tokens) in enumerate(ranks[rank])
        if reason(loss, tokens)
    ]
    losses = [nan if reason(loss, tokens) else loss for _, loss, tokens in samples]
    got = weights(losses, s, step)
    expected = None if got is None else {
        "ids": [name for name, _, _ in samples],
        "weights": [float(weight) for weight in got],
        "effective_sample_size": float(got.sum() ** 2 / (got**2).sum()) if len(got) else 0.0,
        "missing_ranks": [rank for rank in range(world_size) if rank not in ranks],
    }
    reports = [report(name, step, rank, world_size, ranks[rank], columns) for rank in ranks]
    print(json.dumps({"name": name, "settings": s, "reports": reports, "bad": bad, "expected": expected}))


def samples(rank, n):
    # Multiples of 1/64, so that the sum of a column gives the mean back exactly.
    losses = np.round(RNG.normal(3, 0.6, n) * 64) / 64
    tokens = 2 ** RNG.integers(4, 12, n)
    return [(f"r{rank}-{i}", float(loss), int(t)) for i, (loss, t) in enumerate(zip(losses, tokens))]


SPOILED = [("a", 2.0, 8), ("b", nan, 8), ("c", 3.0, 0), ("d", None, 8), ("e", -1.0, 8), ("f", inf, 8), ("g", 4.0, 8), ("h", 2.5, 8)]

if __name__ == "__main__":
    assert np.finfo(LD).nmant >= 63
    for columns in [False, True]:
        how = "columns" if columns else "rows"
        for strategy in ["uniform", "lin_upper", "quadratic", "extremes", "kl_dro", {"cvar": {"share": 0.5}}]:
            label = strategy if isinstance(strategy, str) else "cvar"
            s = settings(strategy, 0.4, range=ROBUST, cap=2.0)
            case(f"{label}, four ranks, {how}", s, {r: samples(r, 40) for r in [2, 0, 3, 1]}, 4, columns=columns)
            case(f"{label}, ranks of unequal size, {how}", s, {0: samples(0, 3), 1: [], 2: samples(2, 11)}, 3, columns=columns)
            case(f"{label}, ranks are missing, {how}", s, {5: samples(5, 9), 2: samples(2, 9)}, 7, columns=columns)
        for policy in ["error", "uniform", "zero"]:
            s = settings("lin_upper", 0.4, cap=2.0, non_finite=policy)
            case(f"bad losses: {policy}, {how}", s, {0: SPOILED, 1: samples(1, 6)}, 2, columns=columns)
            case(f"nothing but bad losses: {policy}, {how}", s, {0: SPOILED[1:4]}, 1, columns=columns)
        case(f"burn-in, {how}", settings("lin_upper", burn_in=1000), {0: samples(0, 8)}, 1, 999, columns)
        case(f"after it, {how}", settings("lin_upper", burn_in=1000), {0: samples(0, 8)}, 1, 1000, columns)
