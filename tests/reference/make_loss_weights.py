"""Writes tests/reference/loss_weights.jsonl: weights from losses, for `src/score/loss_weight.rs` to agree with.

Run with numpy 2 on a machine whose long double has 64 bits of mantissa (x86):

    python3 tests/reference/make_loss_weights.py > tests/reference/loss_weights.jsonl

It shares no step with the Rust code: everything is in extended precision, h by the formula of the paper's code over one
denominator, the cap by the loop "fix what exceeds it, rescale the rest, again", the conditional value at risk by whole
groups of equal losses.

Losses that JSON cannot say are strings. `weights` is null where there are none, and `not_finite` then says which losses
are to blame.
"""

import json
import math

import numpy as np

LD = np.longdouble
assert np.finfo(LD).nmant >= 63, "long double is no wider than double here"
RNG = np.random.default_rng(20250424)


def settings(strategy, r=1.0, burn_in=0, decay=None, range="min_max", cap=None, non_finite="error"):
    return {
        "strategy": strategy,
        "temperature": {"burn_in_steps": burn_in, "initial": r, "decay": decay},
        "range": range,
        "cap": cap,
        "non_finite": non_finite,
    }


def temperature(schedule, step):
    after = step - schedule["burn_in_steps"]
    if after < 0:
        return None
    decay = schedule["decay"]
    if decay is None:
        return LD(schedule["initial"])
    floor = LD(decay["floor"])
    return floor + (LD(schedule["initial"]) - floor) * LD(2) ** (-LD(after) / LD(decay["half_life_steps"]))


def ends(losses, range):
    if range == "min_max":
        return losses.min(), losses.max()
    cut = math.floor(range["quantiles"]["tail"] * (len(losses) - 1) + 0.5)
    ranked = np.sort(losses)
    return ranked[cut], ranked[-1 - cut]


def preferences(losses, strategy, range):
    low, high = ends(losses, range)
    if strategy == "kl_dro":
        return np.clip(losses, low, high)
    width = max(high - low, LD(1e-6))
    h = np.clip((2 * losses - (low + high)) / width, -1, 1)
    if low == high:
        h = np.zeros_like(losses)
    return {"lin_upper": np.minimum(h + 1, 1), "quadratic": 1 - h**2, "extremes": np.abs(h)}[strategy]


def cap_weights(weights, cap):
    """`weights` sum to 1."""
    bound = LD(cap) / len(weights)
    fixed = np.zeros(len(weights), bool)
    while True:
        left = 1 - bound * fixed.sum()
        out = np.where(fixed, bound, 0)
        if not fixed.all():
            out[~fixed] = left * weights[~fixed] / weights[~fixed].sum()
        over = ~fixed & (out > bound * (1 + LD(1e-17)))
        if not over.any():
            return out
        fixed |= over


def cvar(losses, share):
    weights = np.zeros_like(losses)
    left, each = LD(1), 1 / (LD(share) * len(losses))
    for loss in sorted(set(losses.tolist()), reverse=True):
        group = losses == LD(loss)
        given = min(left, each * group.sum())
        weights[group] = given / group.sum()
        left = max(left - given, LD(0))
    return weights


def finite_weights(losses, s, step):
    n = len(losses)
    r = temperature(s["temperature"], step)
    if n == 0 or r is None or s["strategy"] == "uniform":
        return np.full(n, LD(1) / max(n, 1))
    if isinstance(s["strategy"], dict):
        return cvar(losses, s["strategy"]["cvar"]["share"])
    f = preferences(losses, s["strategy"], s["range"])
    weights = np.exp((f - f.max()) / r)
    weights /= weights.sum()
    return weights if s["cap"] is None else cap_weights(weights, s["cap"])


def weights(losses, s, step):
    losses = np.array(losses, LD)
    finite = np.isfinite(losses)
    if not finite.all():
        if s["non_finite"] == "error" or (s["non_finite"] == "zero" and not finite.any()):
            return None
    out = np.zeros(len(losses), LD)
    lost = 0 if s["non_finite"] == "zero" else (~finite).sum()
    out[~finite] = LD(lost > 0) / max(len(losses), 1)
    share = 1 - LD(lost) / max(len(losses), 1)
    out[finite] = finite_weights(losses[finite], s, step) * share
    return out


def case(name, losses, s, step=0):
    losses = [float(loss) for loss in losses]
    got = weights(losses, s, step)
    assert got is None or len(losses) == 0 or abs(got.sum() - 1) < 1e-17 * len(losses), (name, got.sum())
    blamed = [i for i, loss in enumerate(losses) if not math.isfinite(loss)] if got is None else []
    print(json.dumps({
        "name": name,
        "settings": s,
        "step": step,
        "losses": [loss if math.isfinite(loss) else {math.inf: "inf", -math.inf: "-inf"}.get(loss, "NaN") for loss in losses],
        "weights": None if got is None else [float(weight) for weight in got],
        "not_finite": blamed,
    }))


def normal(n, mean=3.0, deviation=0.5):
    return np.round(RNG.normal(mean, deviation, n), 6)


SOFT = ["lin_upper", "quadratic", "extremes", "kl_dro"]
ALL = ["uniform", *SOFT, {"cvar": {"share": 0.3}}]
ROBUST = {"quantiles": {"tail": 0.01}}


def main():
    batch = normal(64)
    large = normal(199)
    outlier = [*large, 50.0]
    nan, inf = math.nan, math.inf

    for strategy in ALL:
        label = strategy if isinstance(strategy, str) else "cvar"
        case(f"{label}, r = 1", batch, settings(strategy))
        case(f"{label}, r = 0.4, defaults of the range and cap", batch, settings(strategy, 0.4, range=ROBUST, cap=4.0))
        case(f"{label}, one sample", [2.5], settings(strategy, 0.4, cap=2.0 if label != "cvar" else None))
        case(f"{label}, no sample", [], settings(strategy))
        case(f"{label}, all equal", [2.5] * 7, settings(strategy, 0.1))
        case(f"{label}, ties", [1, 1, 2, 3, 3, 3, 4, 4, 2, 1], settings(strategy, 0.5))
        case(f"{label}, negative and zero", [-1.5, 0.0, -0.0, 2.0, 0.25], settings(strategy, 0.5))

    for strategy in SOFT:
        case(f"{strategy}, two samples", [1.0, 4.0], settings(strategy, 0.7))
        case(f"{strategy}, cap of 2 at r = 0.1", batch, settings(strategy, 0.1, cap=2.0))
        case(f"{strategy}, cap of 1 makes all equal", batch[:10], settings(strategy, 0.1, cap=1.0))
        case(f"{strategy}, an outlier, published range", outlier, settings(strategy, 0.4))
        case(f"{strategy}, an outlier, robust range", outlier, settings(strategy, 0.4, range=ROBUST))
        case(f"{strategy}, nearly equal", [3.0, 3.0 + 1e-9, 3.0 + 5e-7, 3.0], settings(strategy, 0.05))
        case(f"{strategy}, tail of a quarter", batch[:21], settings(strategy, 0.3, range={"quantiles": {"tail": 0.25}}))

    for strategy in ["lin_upper", "quadratic", "extremes"]:
        case(f"{strategy}, r = 1 / ln 2 needs no cap", batch, settings(strategy, 1 / math.log(2), cap=2.0))
        case(f"{strategy}, losses at the end of doubles", [-1.7e308, 1.7e308, 0.0, 9e307], settings(strategy, 0.4))
    case("kl_dro, doubles cannot hold the small weights", [9.0, 7.0, 6.0, 5.5, 2.0], settings("kl_dro", 0.002))
    case("kl_dro, nor share what the cap leaves to them", [9.0, 7.0, 6.0, 5.5, 2.0], settings("kl_dro", 0.002, cap=1.5))
    case("kl_dro, ties at the cap", [5, 5, 5, 4, 4, 1, 1, 1, 1, 0], settings("kl_dro", 0.2, cap=2.5))

    for share in [0.04, 0.05, 0.1, 0.25, 0.3, 0.5, 0.77, 1.0]:
        case(f"cvar, share {share} of 20", normal(20), settings({"cvar": {"share": share}}))
    case("cvar, ties at the boundary", [5, 4, 4, 4, 1, 0], settings({"cvar": {"share": 1 / 3}}))
    case("cvar, ties at the top, less than one sample", [5, 5, 4, 1], settings({"cvar": {"share": 0.1}}))

    decay = {"half_life_steps": 500, "floor": 0.4}
    for step in [0, 999, 1000, 1500, 2250, 1_000_000]:
        case(f"schedule, step {step}", batch[:9], settings("lin_upper", 2.0, burn_in=1000, decay=decay), step)

    for strategy in ["lin_upper", "uniform", {"cvar": {"share": 0.5}}]:
        for policy in ["error", "uniform", "zero"]:
            for losses in [[1.0, nan, 2.0, inf, 4.0, -inf, 1.5], [nan, inf]]:
                label = strategy if isinstance(strategy, str) else "cvar"
                cap = 2.0 if label == "cvar" else 1.2
                case(f"{label}, not finite: {policy}, {len(losses)}", losses, settings(strategy, 0.2, cap=cap, non_finite=policy))

    for strategy in SOFT:
        case(f"{strategy}, r = 100 is nearly uniform", batch[:12], settings(strategy, 100.0))
        case(f"{strategy}, r of a thousandth takes the best", batch[:12], settings(strategy, 1e-3))
        case(f"{strategy}, an outlier, published range, cap of 2", outlier[-40:], settings(strategy, 0.4, cap=2.0))
        case(f"{strategy}, loss of 0 and a huge one, robust range", [0.0, *large[:60], 1e300], settings(strategy, 0.4, range={"quantiles": {"tail": 0.1}}, cap=2.0))
        case(f"{strategy}, two values that quantiles make one", [1.0, *[2.0] * 30, 3.0], settings(strategy, 0.1, range={"quantiles": {"tail": 0.1}}))
        case(f"{strategy}, all of a schedule", [*batch[:9], nan], settings(strategy, 2.0, burn_in=1000, decay=decay, range=ROBUST, cap=2.0, non_finite="uniform"), 1700)
        case(f"{strategy}, burn-in and one that is not finite", [*batch[:9], inf], settings(strategy, 2.0, burn_in=1000, decay=decay, non_finite="zero"), 999)
    case("cvar, the least cap that its share allows", batch[:16], settings({"cvar": {"share": 0.5}}, cap=2.0))
    case("cvar, all equal but one, which is above", [2.0] * 9 + [2.0 + 1e-12], settings({"cvar": {"share": 0.35}}))


if __name__ == "__main__":
    main()
