"""Selections at equal numbers of tokens: who selects, from what, and what a language model of the selection is worth."""
import json
import time
import zlib

import numpy

from bigram import Bigram
from common import run, say
from words import BEGIN

MIN_TOKENS = 100  # winnowd's default, and the package's
# By how much a selection may exceed the tokens that are wanted, before it is cut.
SURPLUS = 0.03
SMOOTHING = 1e-8  # winnowd's default, and the package's
# Means over n-grams are some tenths of a nat: the noise is as small beside them as beside sums.
TEMPERATURE = 0.005
SUM = []
PER_NGRAM = ["--length-normalise", "--temperature", TEMPERATURE]
CORRECTED = [*PER_NGRAM, "--against", "selected"]


class Split:
    """One kind of documents is the target: a quarter to fit, a quarter held out, and half swims in raw among all others."""

    def __init__(self, words, kind, seed, folder):
        dice = numpy.random.default_rng([seed, zlib.crc32(kind.encode())])
        self.words, self.kind, self.seed, self.folder = words, kind, seed, folder
        documents = dice.permutation(numpy.flatnonzero(words.kinds == kind))
        quarter = len(documents) // 4
        self.fit, self.held_out, self.swim = documents[:quarter], documents[quarter:2 * quarter], documents[2 * quarter:]
        self.test = words.text(self.held_out)
        self.raw = numpy.sort(numpy.concatenate([numpy.flatnonzero(words.kinds != kind), self.swim]))
        self.candidates = self.raw[words.lengths[self.raw] >= MIN_TOKENS]
        self.target, self.inputs = folder / "target.jsonl", [words.file(k) for k in sorted(set(words.kinds)) if k != kind]
        self.inputs.append(folder / "swim.jsonl")
        fit, swim = set(self.fit), set(self.swim)
        with open(words.file(kind), encoding="utf-8") as lines, open(self.target, "w", encoding="utf-8") as target, \
                open(self.inputs[-1], "w", encoding="utf-8") as swimming:
            for document, line in zip(numpy.flatnonzero(words.kinds == kind), lines, strict=True):
                if document in fit:
                    target.write(line)
                elif document in swim:
                    swimming.write(line)

    def judge(self, documents, budget):
        """What the first documents that have so many tokens together are worth; the last one is cut."""
        text = self.words.text(documents, budget)
        n_tokens = int((text != BEGIN).sum())
        assert n_tokens == budget, f"{n_tokens} tokens instead of {budget}"
        documents = documents[:int((text == BEGIN).sum())]
        perplexity = Bigram(text, self.words.n_words).perplexity(self.test)
        found = float(numpy.isin(self.swim, documents).mean())
        return {"perplexity": perplexity, "documents": len(documents), "found": found}


class Random:
    name = "random"

    def documents(self, split, budgets):
        order = numpy.random.default_rng([split.seed, 1]).permutation(split.candidates)
        return {budget: order for budget in budgets}


class Package:
    """The published package: its features of each document, kept on disk, its formula and its noise."""

    name = "package"

    def __init__(self, folder):
        self.buckets, self.counts, self.starts = (
            numpy.load(folder / f"{name}.npy", mmap_mode="r") for name in ("buckets", "counts", "starts"))

    def probabilities(self, documents):
        total = numpy.zeros(10_000)
        for document in documents:
            of = slice(self.starts[document], self.starts[document + 1])
            total[self.buckets[of]] += self.counts[of]
        return total / total.sum()

    def documents(self, split, budgets):
        target, raw = self.probabilities(split.fit), self.probabilities(split.raw)
        log_ratios = numpy.log(target + SMOOTHING) - numpy.log(raw + SMOOTHING)
        weights = numpy.array([self.weight(log_ratios, document) for document in split.candidates])
        keys = weights + numpy.random.default_rng([split.seed, 2]).gumbel(size=len(weights))
        order = split.candidates[numpy.argsort(-keys)]
        return {budget: order for budget in budgets}

    def weight(self, log_ratios, document):
        of = slice(self.starts[document], self.starts[document + 1])
        return log_ratios[self.buckets[of]] @ self.counts[of]


class Winnowd:
    """`winnowd select` with options. Where a document's key does not depend on how many are selected, fewer documents are the
    first of more; against what was selected each budget is a selection of its own."""

    def __init__(self, name, program, core, options):
        self.name, self.program, self.core, self.options = name, program, core, options
        self.is_corrected = "selected" in options
        self.tokens_of_a_document = {}

    def select(self, split, count, *more):
        """Documents and their keys."""
        out = split.folder / "selected"
        command = [self.program, "select", "--input", *split.inputs, "--target", split.target, "--out", out, "--overwrite",
                   "--format", "jsonl", "--featuriser", "fast", "--threads", 1, "--seed", split.seed, "--count", count]
        run([*command, *self.options, *more], [self.core])
        rows = [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in open(path, encoding="utf-8")]
        number = split.words.number
        return (numpy.array([number[row["id"]] for row in rows]), numpy.array([row["selection_key"] for row in rows]))

    def tokens(self, split, documents):
        return int(split.words.lengths[documents].sum())

    def documents(self, split, budgets):
        if self.is_corrected:
            return {budget: self.of_budget(split, budget) for budget in budgets}
        documents, keys = self.enough(split, max(budgets), most=float("inf"))
        order = documents[numpy.argsort(-keys, kind="stable")]
        return {budget: order for budget in budgets}

    def of_budget(self, split, budget):
        """A selection with slightly more tokens, in an order by chance: what is cut off is as good as what stays."""
        documents, _ = self.enough(split, budget, most=budget * (1 + SURPLUS))
        return numpy.random.default_rng([split.seed, 3]).permutation(documents)

    def enough(self, split, budget, most):
        """A selection of at least so many tokens, and if it can be had not more than `most`."""
        key = (split.kind, budget)
        of_all = self.tokens(split, split.candidates) / len(split.candidates)
        count, best = round((1 + SURPLUS / 2) * budget / self.tokens_of_a_document.get(key, of_all)), None
        for _ in range(8):
            documents, keys = self.select(split, count)
            tokens = self.tokens(split, documents)
            self.tokens_of_a_document[key] = tokens / len(documents)
            if tokens >= budget and (best is None or tokens < best[0]):
                best = tokens, documents, keys
            if budget <= tokens <= most or count >= len(split.candidates):
                break
            count = min(len(split.candidates), max(round(count * budget / tokens * (1 + SURPLUS / 2)), 1))
        assert best is not None, f"no selection of {split.kind} came to {budget} tokens"
        return best[1:]


class Cells:
    """What was measured, one JSON object a line: what stands there is not measured again."""

    FIELDS = ["kind", "budget", "seed", "selector", "options"]

    def __init__(self, path, fields=FIELDS):
        self.path, self.found, self.fields = path, {}, fields
        if path.exists():
            for line in open(path):
                cell = json.loads(line)
                self.found[self.key(cell)] = cell

    def key(self, cell):
        return tuple(cell[field] for field in self.fields)

    def add(self, cell):
        self.found[self.key(cell)] = cell
        with open(self.path, "a") as file:
            file.write(json.dumps(cell) + "\n")


class Bench:
    """The corpus, the programs, and what was measured with them."""

    def __init__(self, words, cells, folder, programs, core):
        self.words, self.cells, self.folder, self.programs, self.core = words, cells, folder, programs, core
        self.held = None, None

    def winnowd(self, name, options):
        return Winnowd(name, self.programs["winnowd"], self.core, options)

    def split(self, kind, seed):
        """The last one is held: its files take the place of those before."""
        if self.held[0] != (kind, seed):
            self.held = (kind, seed), Split(self.words, kind, seed, self.folder)
        return self.held[1]

    def expect(self, selector, kind):
        """What other cells have shown of the length of documents: a selection of so many tokens is found sooner."""
        if not getattr(selector, "is_corrected", False):
            return
        for cell in self.cells.found.values():
            if cell["selector"] == "self-correcting" and cell["kind"] == kind:
                selector.tokens_of_a_document.setdefault((kind, cell["budget"]), cell["budget"] / cell["documents"])

    def measure(self, selector, kind, seed, budgets):
        """The cells of a selector, of every budget."""
        options = " ".join(map(str, getattr(selector, "options", [])))
        key = lambda budget: (kind, budget, seed, selector.name, options)
        missing = [budget for budget in budgets if key(budget) not in self.cells.found]
        if missing:
            self.expect(selector, kind)
            split, began = self.split(kind, seed), time.perf_counter()
            chosen = selector.documents(split, missing)
            seconds = round((time.perf_counter() - began) / len(missing), 2)
            for budget in missing:
                cell = dict(zip(Cells.FIELDS, key(budget)))
                self.cells.add(cell | split.judge(chosen[budget], budget) | {"seconds": seconds})
            shown = ", ".join(f"{budget / 1e6:g} M {self.cells.found[key(budget)]['perplexity']:.0f}" for budget in missing)
            say(f"{kind}, seed {seed}, {selector.name}: {shown}")
        return [self.cells.found[key(budget)] for budget in budgets]
