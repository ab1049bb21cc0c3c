"""The experiment: every selector at equal numbers of tokens, over targets, budgets and seeds; its tables and its plot."""
import collections
import statistics

import common
from common import CACHE, say, table
from selection import CORRECTED, PER_NGRAM, SUM, Package, Random

Plan = collections.namedtuple("Plan", "targets budgets has_package")
TARGETS = {
    "database": "database manuals",
    "math": "mathematics, four packages",
    "gnome-multilingual": "desktop manuals, many languages",
    "office-help": "office help",
    "fortunes": "fortunes",
    "perl": "perl",
}
FULL = Plan(TARGETS, [1_000_000, 3_000_000, 8_000_000], True)
QUICK = Plan({kind: TARGETS[kind] for kind in ("math", "fortunes")}, [1_000_000], False)
# Beyond it a cell counts as lost.
LOSS = 0.03


def package_folder(bench):
    """The package's features of all documents: some three minutes, once."""
    folder = CACHE / "package-features"
    if not (folder / "starts.npy").exists():
        say("the package's features of every document")
        files = [CACHE / "corpus/raw.jsonl", CACHE / "corpus/target.jsonl"]
        python = common.python("dsir", common.PACKAGE)
        common.run([python, common.BENCHES / "support/package_features.py", folder, *files], [bench.core])
    return folder


def measure(bench, plan, seeds):
    """Perplexities over seeds by (kind, budget, selector)."""
    selectors = [Random()] + ([Package(package_folder(bench))] if plan.has_package else [])
    selectors += [bench.winnowd("DSIR, sum", SUM), bench.winnowd("DSIR, per n-gram", PER_NGRAM)]
    selectors += [bench.winnowd("self-correcting", CORRECTED)]
    found = collections.defaultdict(list)
    # Seeds come first, so that what is interrupted has something of every target.
    for seed in range(1, seeds + 1):
        for kind in plan.targets:
            for selector in selectors:
                for cell in bench.measure(selector, kind, seed, plan.budgets):
                    found[kind, cell["budget"], selector.name].append(cell)
    return [selector.name for selector in selectors], found


def report(bench, plan, seeds, plot):
    names, cells = measure(bench, plan, seeds)
    perplexities = {key: [cell["perplexity"] for cell in of_seeds] for key, of_seeds in cells.items()}
    mean = {key: statistics.fmean(values) for key, values in perplexities.items()}
    spread = {key: statistics.stdev(values) if seeds > 1 else 0.0 for key, values in perplexities.items()}
    rows = []
    for kind, target in plan.targets.items():
        for budget in plan.budgets:
            shown = [f"{mean[kind, budget, name]:,.0f} ± {spread[kind, budget, name]:,.0f}" for name in names]
            change = mean[kind, budget, "self-correcting"] / mean[kind, budget, "DSIR, sum"] - 1
            rows.append([target, f"{budget / 1e6:g} M", *shown, f"{change:+.1%}"])
    header = ["target", "tokens", *names, "self-correcting against the sum"]
    table(f"Perplexity of held-out documents of the target, mean and standard deviation over {seeds} seeds", header, rows)
    summary(plan, names, mean)
    found_rows = [[target, f"{budget / 1e6:g} M", *(f"{statistics.fmean(c['found'] for c in cells[kind, budget, name]):.1%}"
                  for name in names)] for kind, target in plan.targets.items() for budget in plan.budgets]
    table("Share of the target's documents in raw that was found", ["target", "tokens", *names], found_rows)
    if plot:
        draw(plan, names, mean, spread, plot)
        say(f"plot: {plot}")


def summary(plan, names, mean):
    """Over all cells, as ratios to DSIR's sum; and the cells that are lost."""
    pairs = [(kind, budget) for kind in plan.targets for budget in plan.budgets]
    ratios = lambda name: [mean[kind, budget, name] / mean[kind, budget, "DSIR, sum"] for kind, budget in pairs]
    rows = []
    for name in names:
        r = ratios(name)
        average = statistics.fmean(mean[kind, budget, name] for kind, budget in pairs)
        lost = sum(ratio > 1 + LOSS for ratio in r)
        rows.append([name, common.number(average), f"{statistics.geometric_mean(r) - 1:+.1%}", f"{min(r) - 1:+.1%}",
                     f"{max(r) - 1:+.1%}", f"{lost} of {len(r)}"])
    header = ["", "mean perplexity", "against the sum, geometric mean", "best cell", "worst cell", f"more than {LOSS:.0%} above it"]
    table("All cells", header, rows)


def draw(plan, names, mean, spread, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"random": "0.6", "package": "tab:brown", "DSIR, sum": "tab:blue", "DSIR, per n-gram": "tab:green",
               "self-correcting": "tab:red"}
    figure, panels = pyplot.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
    for (kind, target), panel in zip(plan.targets.items(), panels.flat):
        for name in names:
            y, error = ([of[kind, budget, name] for budget in plan.budgets] for of in (mean, spread))
            style = {"linestyle": ":"} if name == "package" else {}
            panel.errorbar(plan.budgets, y, error, label=name, color=colours[name], marker="o", markersize=3, capsize=2, **style)
        panel.set(xscale="log", yscale="log")
        panel.set_title(target, fontsize=10)
        panel.set_xticks(plan.budgets, [f"{budget / 1e6:g} M" for budget in plan.budgets])
        panel.minorticks_off()
        low, high = panel.get_ylim()
        ticks = [tick for tick in (100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000) if low <= tick <= high]
        panel.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.grid(alpha=0.3)
    figure.supxlabel("tokens selected")
    figure.supylabel("perplexity of held-out target documents")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
