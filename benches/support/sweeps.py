"""Settings of `--against selected`, one at a time, on targets that the experiment does not have: what the defaults rest on."""
import statistics

from common import table
from selection import CORRECTED, PER_NGRAM, SUM

TARGETS = ["python", "devtools", "handbook-multilingual", "dictionary"]
BUDGETS = [1_000_000, 3_000_000]
SEEDS = [1]
# Values of each option beside what all others are measured with.
SWEEPS = {
    "--temperature": [0.1, 0.02, 0.001],
    "--selector": ["top_k"],
    "--selected-share": [0.5, 0.75],
    "--selected-prior": [10_000, 100_000, 1_000_000],
    "--window": [1024, 32768],
    "--rounds": [4],
    "--selected-half-life": [1_000_000],
    "--order": ["files"],
    "--lag": [3],
}


def replaced(options, name, value):
    """The options with one of them set."""
    at = options.index(name) if name in options else len(options)
    return [*options[:at], name, value, *options[at + 2:]]


def ratios(bench, name, options):
    """Perplexity over that of DSIR's sum: of every cell."""
    found, plain = bench.winnowd(name, options), bench.winnowd("DSIR, sum", SUM)
    for kind in TARGETS:
        for seed in SEEDS:
            pairs = zip(bench.measure(found, kind, seed, BUDGETS), bench.measure(plain, kind, seed, BUDGETS))
            yield from (cell["perplexity"] / of_sum["perplexity"] for cell, of_sum in pairs)


def report(bench):
    settings = [("DSIR, per n-gram", "", PER_NGRAM), ("self-correcting", f"`{' '.join(map(str, CORRECTED))}`", CORRECTED)]
    for option, values in SWEEPS.items():
        settings += [("self-correcting", f"`{option} {value}`", replaced(CORRECTED, option, value)) for value in values]
    found = [list(ratios(bench, name, options)) for name, _, options in settings]
    rows = []
    for (name, shown, _), of_cells in zip(settings, found):
        rows.append([shown or name, f"{statistics.geometric_mean(of_cells) - 1:+.1%}", f"{min(of_cells) - 1:+.1%}",
                     f"{max(of_cells) - 1:+.1%}"])
    n = len(TARGETS) * len(BUDGETS) * len(SEEDS)
    table(f"Settings, on four other targets: perplexity against DSIR's sum, {n} cells", ["", "mean", "best", "worst"], rows)
