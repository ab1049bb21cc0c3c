"""The experiment of benches/coverage: how well selections cover, how near they come to a target, what they teach. Pruning rates
are those of the documents that are long enough.

Difficulty is the mean loss of a document by a small bigram model of other documents: the corpus is cut in two by chance, and each
half is judged by a model of the other.
"""
import collections
import json
import statistics
import time
import zlib

import numpy

import common
from bigram import Bigram
from common import CACHE, run, say, table
from selection import MIN_TOKENS
from words import BEGIN

RATES = [0.5, 0.7, 0.8, 0.9, 0.95]
Plan = collections.namedtuple("Plan", "name targets")
CORPUS = Plan("corpus", {"math": "mathematics, four packages", "database": "database manuals"})
SAMPLE = Plan("sample", {"rust-doc": "rust-doc", "python-doc": "python-doc"})
FIELDS = ["corpus", "kind", "rate", "seed", "selector", "options"]
# Words that a proxy model is fitted on.
PROXY_TOKENS = 2_000_000
# Share of the documents that are no target and are held out.
HELD_OUT = 0.03
# The paper's cut-off by pruning rate, as far as it is known: CIFAR-10.
CUTOFF = {0.5: None, 0.7: 0.1, 0.8: 0.1, 0.9: 0.3, 0.95: 0.3}
# Sums take the shortest documents, so that at equal tokens all others would be cut to next to nothing: means.
DSIR = ["--length-normalise", "--temperature", "auto"]


def cut(rate):
    """The cut-off of the hardest documents."""
    return ["--cutoff", CUTOFF[rate]] if CUTOFF[rate] else []


def near(rate):
    """Twice as many documents are left as are selected: those that are nearest to the target."""
    share = round(1 - 2 * (1 - rate), 6)
    return ["--cutoff", share, "--cutoff-field", "weight"] if share > 0 else []


COVERAGE = ["--selector", "coverage", "--importance", "loss"]
SELECTORS = {
    # One stratum, drawn from uniformly.
    "random": lambda rate: [*COVERAGE, "--strata", 1, "--within", "uniform"],
    "top-k": lambda rate: ["--selector", "top_k", "--length-normalise", "--measure-coverage"],
    "DSIR": lambda rate: [*DSIR, "--measure-coverage"],
    "coverage": lambda rate: [*COVERAGE, "--within", "uniform", *cut(rate)],
    "coverage, none cut": lambda rate: [*COVERAGE, "--within", "uniform"],
    "coverage, weighted": lambda rate: [*COVERAGE, *DSIR, *cut(rate)],
    "filter + coverage": lambda rate: [*COVERAGE, "--within", "uniform", "--length-normalise", *near(rate)],
    "coverage of weights": lambda rate: ["--selector", "coverage", "--importance", "weight", "--within", "uniform",
                                         "--length-normalise"],
    "sensitivity": lambda rate: ["--selector", "sensitivity", "--loss-field", "loss"],
}
COLOURS = {"random": "0.5", "top-k": "tab:brown", "DSIR": "tab:blue", "coverage": "tab:green", "coverage, none cut": "tab:olive",
           "coverage, weighted": "tab:red", "filter + coverage": "tab:orange", "coverage of weights": "tab:pink",
           "sensitivity": "tab:purple"}


def sample(winnowd, core):
    """The bundled sample as a corpus. winnowd itself unpacks it: it selects everything."""
    folder = CACHE / "sample"
    if not (folder / "raw.jsonl").exists():
        packed = common.BENCHES.parent / "src/cli/demo/sample.jsonl.zst"
        out = folder / "all"
        run([winnowd, "select", "--input", packed, "--target", packed, "--featuriser", "fast", "--count", 10**6,
             "--min-tokens", 0, "--format", "jsonl", "--out", out, "--overwrite"], [core])
        lines = (out / "selected-00000.jsonl").read_text(encoding="utf-8")
        (folder / "target.jsonl").write_text("")
        (folder / "raw.jsonl").write_text(lines, encoding="utf-8")
    return folder


class Corpus:
    """Documents by number, some of them, and how hard they are."""

    def __init__(self, words, every):
        self.words, self.every = words, every
        self.documents = numpy.arange(0, len(words.ids), every)
        self.kinds = words.kinds[self.documents]
        self.losses = self.proxy_losses()
        self.lines = None

    def proxy_losses(self):
        """Of all documents, by number; NaN of those that are not taken."""
        path = self.words.folder / f"losses-{self.every}.npy"
        if path.exists():
            return numpy.load(path)
        say("losses of a bigram model of other documents")
        losses = numpy.full(len(self.words.ids), numpy.nan)
        halves = numpy.array_split(numpy.random.default_rng(5).permutation(self.documents), 2)
        for judged, fitted in (halves, halves[::-1]):
            model = Bigram(self.words.text(fitted, PROXY_TOKENS) if self.n_tokens(fitted) > PROXY_TOKENS
                           else self.words.text(fitted), self.words.n_words)
            for part in numpy.array_split(judged, max(len(judged) // 2000, 1)):
                part = part[self.words.lengths[part] > 0]
                of_words = model.losses(self.words.text(part))
                starts = numpy.concatenate([[0], numpy.cumsum(self.words.lengths[part])[:-1]])
                losses[part] = numpy.add.reduceat(of_words, starts) / self.words.lengths[part]
        numpy.save(path, losses)
        return losses

    def n_tokens(self, documents):
        return int(self.words.lengths[documents].sum())

    def line(self, number):
        """The document with its loss, as JSON."""
        if self.lines is None:
            self.lines = {}
            for kind in sorted(set(self.kinds)):
                wanted = set(self.documents[self.kinds == kind])
                with open(self.words.file(kind), encoding="utf-8") as lines:
                    for document, line in zip(numpy.flatnonzero(self.words.kinds == kind), lines, strict=True):
                        if document in wanted:
                            self.lines[int(document)] = line.rstrip()
        line = self.lines[int(number)]
        loss = self.losses[number]
        return line if numpy.isnan(loss) else f'{line[:-1]},"loss":{loss:.6f}}}'


class Split:
    """One kind of documents is the target: a quarter to fit, a quarter held out, and half is in raw among all others, of which
    some are held out as well."""

    def __init__(self, corpus, kind, seed, folder):
        dice = numpy.random.default_rng([seed, zlib.crc32(kind.encode())])
        words, self.kind, self.seed, self.folder = corpus.words, kind, seed, folder
        documents = dice.permutation(corpus.documents[corpus.kinds == kind])
        quarter = len(documents) // 4
        fit, target_test, swim = documents[:quarter], documents[quarter:2 * quarter], documents[2 * quarter:]
        others = dice.permutation(corpus.documents[corpus.kinds != kind])
        n_held = round(HELD_OUT * len(others))
        # The held-out part of raw has the target's documents in their share, too.
        n_swim = round(HELD_OUT * len(swim))
        self.raw = numpy.sort(numpy.concatenate([others[n_held:], swim[n_swim:]]))
        self.candidates = self.raw[words.lengths[self.raw] >= MIN_TOKENS]
        self.tests = {"target": words.text(target_test), "raw": words.text(numpy.concatenate([others[:n_held], swim[:n_swim]]))}
        self.input, self.target = folder / "raw.jsonl", folder / "target.jsonl"
        for path, numbers in ((self.input, self.raw), (self.target, fit)):
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(corpus.line(number) + "\n" for number in numbers)
        self.model = folder / "model.wnw"


class Bench:
    def __init__(self, corpus, cells, folder, winnowd, core):
        self.corpus, self.cells, self.folder, self.winnowd, self.core = corpus, cells, folder, winnowd, core
        self.held = None, None

    def split(self, kind, seed):
        """The last one is held: its files take the place of those before."""
        if self.held[0] != (kind, seed):
            self.held = (kind, seed), Split(self.corpus, kind, seed, self.folder)
            split = self.held[1]
            run([self.winnowd, "fit", "--target", split.target, "--raw", split.input, "--featuriser", "fast", "--threads", 1,
                 "--out", split.model], [self.core])
        return self.held[1]

    def select(self, split, rate, name):
        out = split.folder / "selected"
        command = [self.winnowd, "select", "--input", split.input, "--model", split.model, "--out", out, "--overwrite",
                   "--format", "jsonl", "--threads", 1, "--seed", split.seed, "--count", round((1 - rate) * len(split.candidates))]
        run([*command, *SELECTORS[name](rate)], [self.core])
        report = json.loads((out / "report.json").read_text())
        number = self.corpus.words.number
        ids = (json.loads(line)["id"] for path in sorted(out.glob("*.jsonl")) for line in open(path, encoding="utf-8"))
        return numpy.array([number[id] for id in ids]), report

    def occupied(self, split, documents):
        """Share of the strata of the loss that have documents, of which the selection has some."""
        losses, candidates = self.corpus.losses, split.candidates
        low, high = numpy.nanquantile(losses[candidates], [0.005, 0.995])
        stratum = lambda numbers: numpy.clip(((losses[numbers] - low) / (high - low) * 50).astype(int), 0, 49)
        return len(numpy.unique(stratum(documents))) / len(numpy.unique(stratum(candidates)))

    def measure(self, plan, kind, seed, rate):
        """One cell for each selector: all selections are cut to the tokens of the smallest, in an order by chance. Selectors that
        are new are cut to what the others were cut to, unless they have fewer: then all are measured again."""
        options = lambda name: " ".join(map(str, SELECTORS[name](rate)))
        every = f"{plan.name}/{self.corpus.every}"
        keys = {name: (every, kind, rate, seed, name, options(name)) for name in SELECTORS}
        missing = [name for name, key in keys.items() if key not in self.cells.found]
        if not missing:
            return [self.cells.found[key] for key in keys.values()]
        began = time.perf_counter()
        split = self.split(kind, seed)
        selected = {name: self.select(split, rate, name) for name in missing}
        least = min(self.corpus.n_tokens(documents) for documents, _ in selected.values())
        budgets = {self.cells.found[key]["budget"] for name, key in keys.items() if name not in missing}
        if len(budgets) == 1 and min(budgets) <= least:
            budget = min(budgets)
        else:
            selected |= {name: self.select(split, rate, name) for name in SELECTORS if name not in missing}
            budget = min(self.corpus.n_tokens(documents) for documents, _ in selected.values())
        for name, (documents, report) in selected.items():
            order = numpy.random.default_rng([seed, 3]).permutation(documents)
            model = Bigram(self.corpus.words.text(order, budget), self.corpus.words.n_words)
            found = {f"perplexity_{test}": model.perplexity(text) for test, text in split.tests.items()}
            covers = report["coverage"]
            found |= {"documents": len(documents), "tokens": self.corpus.n_tokens(documents), "budget": budget,
                      "auc_pr": covers["auc_pr"], "entropy": covers["source_entropy_of_selected"],
                      "kl_reduction": report["kl_reduction_nats"], "occupied": self.occupied(split, documents)}
            self.cells.add(dict(zip(FIELDS, keys[name])) | found)
        say(f"{kind}, seed {seed}, {rate:.0%} pruned: {time.perf_counter() - began:.0f} s")
        return [self.cells.found[key] for key in keys.values()]


# What is shown: title, field, how a value is compared with random's, how it is written, and what a plot calls it.
Shown = collections.namedtuple("Shown", "title field compare write label")
RATIO, SAME = (lambda value, of_random: value / of_random - 1), (lambda value, of_random: value)
SHOWN = [
    Shown("AUC_pr, against random (lower covers better)", "auc_pr", RATIO, "{:+.1%}", "AUC_pr, against random"),
    Shown("KL reduction, nats", "kl_reduction", SAME, "{:+.3f}", "KL reduction, nats"),
    Shown("Perplexity of held-out documents of the target, against random", "perplexity_target", RATIO, "{:+.1%}",
          "perplexity of the target / random"),
    Shown("Perplexity of held-out documents of raw, against random", "perplexity_raw", RATIO, "{:+.1%}",
          "perplexity of raw / random"),
    Shown("Strata of the loss that are occupied", "occupied", SAME, "{:.0%}", ""),
    Shown("Entropy over sources, nats", "entropy", SAME, "{:.2f}", ""),
]


def report(bench, plan, seeds, plot):
    cells = collections.defaultdict(list)
    # Seeds come first, so that what is interrupted has something of every cell.
    for seed in range(1, seeds + 1):
        for kind in plan.targets:
            for rate in RATES:
                for cell in bench.measure(plan, kind, seed, rate):
                    cells[kind, rate, cell["selector"]].append(cell)
    values = {}
    for shown in SHOWN:
        for (kind, rate, name), of_seeds in cells.items():
            of_random = [cell[shown.field] for cell in cells[kind, rate, "random"]]
            values[shown.field, kind, rate, name] = [
                shown.compare(cell[shown.field], base) for cell, base in zip(of_seeds, of_random, strict=True)]
    for shown in SHOWN:
        rows = []
        for kind, target in plan.targets.items():
            for rate in RATES:
                of = [values[shown.field, kind, rate, name] for name in SELECTORS]
                spread = lambda v: f" ± {shown.write.format(statistics.stdev(v)).lstrip('+')}" if len(v) > 1 else ""
                rows.append([target, f"{rate:.0%}", *(shown.write.format(statistics.fmean(v)) + spread(v) for v in of)])
        table(f"{shown.title}; mean and standard deviation over {seeds} seeds", ["target", "pruned", *SELECTORS], rows)
    millions = lambda of_seeds: f"{statistics.fmean(cell['tokens'] for cell in of_seeds) / 1e6:.2f}"
    rows = [[target, f"{rate:.0%}", *(millions(cells[kind, rate, name]) for name in SELECTORS)]
            for kind, target in plan.targets.items() for rate in RATES]
    table("Tokens selected, millions (models see as many as the fewest of their row)", ["target", "pruned", *SELECTORS], rows)
    if plot:
        draw(plan, values, plot)
        say(f"plot: {plot}")


def draw(plan, values, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    # Perplexities differ by factors.
    is_log = lambda shown: shown.field.startswith("perplexity")

    panels = [shown for shown in SHOWN if shown.label]
    figure, axes = pyplot.subplots(len(plan.targets), len(panels), figsize=(4 * len(panels), 3.4 * len(plan.targets)),
                                   layout="constrained", squeeze=False)
    for (kind, target), row in zip(plan.targets.items(), axes):
        for shown, axis in zip(panels, row):
            for place, name in enumerate(SELECTORS):
                of = [[v + is_log(shown) for v in values[shown.field, kind, rate, name]] for rate in RATES]
                mean = [statistics.fmean(v) for v in of]
                spread = [statistics.stdev(v) if len(v) > 1 else 0 for v in of]
                at = [100 * rate + 0.25 * (place - len(SELECTORS) / 2) for rate in RATES]
                axis.errorbar(at, mean, yerr=spread, color=COLOURS[name], label=name, marker="o", markersize=3, linewidth=1.2,
                              capsize=2)
            axis.set_title(f"{target}\n{shown.label}", fontsize=9)
            axis.set_xlabel("pruned, %")
            if is_log(shown):
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(ticker.LogLocator(subs=[1, 2, 5]))
                axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
                axis.yaxis.set_minor_formatter(ticker.NullFormatter())
            elif shown.compare is RATIO:
                axis.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
            axis.grid(alpha=0.3)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=110)
