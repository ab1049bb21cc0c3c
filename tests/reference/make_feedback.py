"""Writes tests/reference/feedback.jsonl: quotas by source from training losses, for `src/feedback` to agree with.

Run with numpy 2; it takes a minute:

    python3 tests/reference/make_feedback.py > tests/reference/feedback.jsonl

It shares no step with the Rust code. Shares are computed in extended precision; a power law is found by damped, reweighted least
squares with derivatives inside the box that the penalties amount to, where the Rust code goes down with simplices, without
derivatives, on the objective as it was published.
"""

import json

import numpy as np

LD = np.longdouble
assert np.finfo(LD).nmant >= 63, "long double is no wider than double here"
RNG = np.random.default_rng(20261126)

# --- power laws


def objective(a, alpha, eps, log_n, log_loss):
    power = a[:, None] - alpha[:, None] * log_n[None, :]
    residual = np.abs(log_loss[None, :] - np.logaddexp(power, eps[:, None]))
    huber = np.where(residual <= 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4))
    return (
        huber.sum(1)
        + np.maximum(alpha - 0.8, 0)
        - np.minimum(alpha, 0.001)
        + np.maximum(a - 6.5, 0)
        - np.minimum(eps - 0.5, 0)
    )


BOX = np.array([[-10.0, 6.5], [0.001, 0.8], [0.5, 10.0]])


def fit(points):
    """Outside of a box the penalties outweigh anything that the residuals gain, so the law is a robust regression inside it."""
    log_n = np.log(np.array([n for n, _ in points], float))
    log_loss = np.log(np.array([loss for _, loss in points], float))
    value_at = lambda place: float(objective(*place[:, None], log_n, log_loss)[0])
    axes = [np.arange(-2, 5.01, 0.5), np.arange(0.001, 0.71, 0.07), np.arange(0.5, 1.51, 0.1)]
    places = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    values = objective(*places, log_n, log_loss)
    best = None
    for start in np.argsort(values)[:120:3]:
        place, value, damping = places[:, start].copy(), values[start], 1e-3
        for _ in range(400):
            a, alpha, eps = place
            power = a - alpha * log_n
            predicted = np.logaddexp(power, eps)
            share = np.exp(power - predicted)
            jacobian = np.stack([share, -share * log_n, 1 - share], 1)
            residual = log_loss - predicted
            weight = np.minimum(1, 1e-3 / np.maximum(np.abs(residual), 1e-300))
            free = np.ones(3, bool)
            for _ in range(3):
                j = jacobian[:, free]
                normal = j.T @ (weight[:, None] * j)
                step = np.zeros(3)
                damped = normal + damping * np.diag(np.diag(normal)) + 1e-18 * np.eye(free.sum())
                step[free] = np.linalg.solve(damped, j.T @ (weight * residual))
                beyond = ((place <= BOX[:, 0]) & (step < 0)) | ((place >= BOX[:, 1]) & (step > 0))
                if not (beyond & free).any() or not (free & ~beyond).any():
                    break
                free &= ~beyond
            step[~free] = 0
            there = np.clip(place + step, BOX[:, 0], BOX[:, 1])
            found = value_at(there)
            if found < value:
                place, value, damping = there, found, damping / 3
            else:
                damping *= 4
            if damping > 1e12:
                break
        if best is None or value < best[0]:
            best = (value, *map(float, place))
    return best


def slope(law, n):
    _, a, alpha, _ = law
    return max(alpha, 0.05) * np.exp(LD(a) - LD(alpha) * np.log(LD(n))) / LD(n)


def law_case(name, points):
    law = fit(points)
    n = points[-1][0]
    print(json.dumps({"kind": "law", "name": name, "points": points, "objective": law[0], "slope": float(slope(law, n))}))


# --- the bandit


def odm(turns, policy, floor):
    rewards, shares, before, out = {}, {}, None, []
    for t, turn in enumerate(turns, 1):
        losses = {name: LD(total) / LD(tokens) for name, (total, tokens) in turn.items()}
        start = sum(rewards.values()) / len(rewards) if rewards else LD(0)
        for name in losses:
            rewards.setdefault(name, start)
        k = len(rewards)
        for name, loss in losses.items():
            if policy == "odm_exp3":
                rewards[name] += min(loss, LD(20)) / 10 / shares.get(name, LD(1) / k)
            else:
                rewards[name] = LD(9) / 10 * rewards[name] + LD(1) / 10 * np.exp(min(loss, LD(20)))
        eps = min(LD(1) / k, max(np.sqrt(np.log(LD(k)) / (k * LD(t))), LD(floor)))
        if policy == "odm":
            said = dict(rewards)
        else:
            scale = LD(1) / k if before is None else before
            top = max(rewards.values())
            said = {name: np.exp(scale * (reward - top)) for name, reward in rewards.items()}
        total = sum(said.values())
        weights = {name: (1 - k * eps) * value / total + eps for name, value in said.items()}
        total = sum(weights.values())
        shares = {name: weight / total for name, weight in weights.items()}
        before = eps
        out.append({name: float(share) for name, share in shares.items()})
    return out


# --- scaling laws


def ado(turns, floor):
    names, history, last, prior, laws = [], {}, {}, {}, {}
    credit, average, out, n = {}, {}, [], LD(0)
    for t, turn in enumerate(turns, 1):
        tokens = sum(LD(count) for _, count in turn.values())
        n += tokens
        for name, (total, count) in turn.items():
            if name not in history:
                names.append(name)
                history[name] = []
                prior[name] = LD(0) if t <= 20 else LD(count) * 20
                credit[name] = average[name] = LD(count) / tokens
            last[name] = float(LD(total) / LD(count))
            if t <= 20:
                prior[name] += LD(count)
        for name in names:
            history[name].append((float(n), last[name]))
        prior_total = sum(prior.values())
        if t < 20:
            out.append({name: float(prior[name] / prior_total) for name in names})
            continue
        if t == 20:
            credit = {name: prior[name] / prior_total for name in names}
            average = dict(credit)
        if (t - 20) % 10 == 0:
            laws.update({name: fit(history[name]) for name in names if len(history[name]) >= 8})
        slopes = {name: slope(law, n) for name, law in laws.items()}
        usual = sum(slopes.values()) / len(slopes)
        rho = {name: slopes.get(name, usual) * prior[name] / prior_total * np.sqrt(credit[name]) for name in names}
        total = sum(rho.values())
        rho = {name: max(value / total, LD(floor)) for name, value in rho.items()}
        total = sum(rho.values())
        rho = {name: value / total for name, value in rho.items()}
        shares = {name: LD(9) / 10 * average[name] + LD(1) / 10 * rho[name] for name in names}
        total = sum(shares.values())
        out.append({name: float(share / total) for name, share in shares.items()})
        for name in names:
            average[name] = (1 - LD(1) / (t + 1)) * average[name] + rho[name] / (t + 1)
            share = LD(turn[name][1]) / tokens if name in turn else LD(0)
            credit[name] = LD(9) / 10 * credit[name] + LD(1) / 10 * share
    return out


def mixing_case(name, mixing, floor, turns):
    shares = ado(turns, floor) if mixing == "ado" else odm(turns, mixing, floor)
    print(json.dumps({"kind": "mixing", "name": name, "mixing": mixing, "floor": floor, "turns": turns, "shares": shares}))


def turns(n, sources, loss, missing=0.0, late=None):
    out = []
    for t in range(n):
        turn = {}
        for i, name in enumerate(sources):
            if RNG.random() < missing or (late and name == late[0] and t < late[1]):
                continue
            tokens = int(RNG.integers(200, 2000)) * (i + 1)
            turn[name] = [round(float(loss(i, t) * tokens * np.exp(RNG.normal(0, 0.01))), 3), tokens]
        out.append(turn or {sources[0]: [3000.0, 1000]})
    return out


SOURCES = ["books", "code", "news", "web"]


def falling(i, t):
    return [1.2, 0.8, 2.0, 1.6][i] + [4.0, 6.0, 3.0, 5.0][i] / (t + 1) ** [0.3, 0.6, 0.15, 0.4][i]


for policy in ["odm", "odm_smoothed", "odm_exp3"]:
    mixing_case("four sources", policy, 0.0, turns(60, SOURCES, falling))
    mixing_case("a floor", policy, 0.05, turns(200, SOURCES, falling))
    mixing_case("missing and late ones", policy, 0.01, turns(40, SOURCES, falling, 0.3, ("news", 17)))
    mixing_case("losses beyond all bounds", policy, 0.01, turns(12, SOURCES, lambda i, t: [1, 25, 1e6, 3][i]))
    mixing_case("one source", policy, 0.01, turns(3, ["only"], falling))
    mixing_case("a floor that leaves no room", policy, 0.4, turns(30, SOURCES, falling))

for name, (eps, a, alpha, noise) in {
    "exact": (0.6, 3.0, 0.3, 0.0),
    "noisy": (0.6, 4.0, 0.4, 0.02),
    "steep": (0.5, 6.0, 0.75, 0.005),
    "flat": (1.0, -1.5, 0.02, 0.01),
}.items():
    n = np.arange(1, 61) * 5e4
    loss = (np.exp(eps) + np.exp(a) / n**alpha) * np.exp(RNG.normal(0, 1, 60) * noise)
    law_case(name, [[float(x), round(float(y), 9)] for x, y in zip(n, loss)])

mixing_case("four sources", "ado", 0.01, turns(45, SOURCES, falling))
mixing_case("missing and late ones", "ado", 0.01, turns(45, SOURCES, falling, 0.2, ("news", 23)))
mixing_case("one source", "ado", 0.01, turns(25, ["only"], falling))
