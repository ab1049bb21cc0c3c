"""What happens to selections when target, raw or the counts are not as they should be."""
import collections
import json
import statistics

import numpy

from common import number, say, table
from selection import CORRECTED, PER_NGRAM, SUM, Cells, Split
from words import FIRST

BUDGET = 1_000_000
TARGETS = {"math": "mathematics", "perl": "perl"}
SELECTORS = {"DSIR, sum": SUM, "DSIR, per n-gram": PER_NGRAM, "self-correcting": CORRECTED}
# Of the target's tokens, in one document.
POISON = 0.1
STUFFED_DOCUMENTS, STUFFED_TOKENS = 1_000, 300
SMALL_WINDOW, LAG = 1024, 10
# Weighed in windows, against the raw distribution: a prior that no selection moves.
FROZEN = [*CORRECTED, "--selected-prior", 10**15]


def report(bench, seeds):
    rows = collections.defaultdict(list)
    for kind, target in TARGETS.items():
        for title, check in CHECKS.items():
            of_seeds = [values(bench, title, check, kind, seed) for seed in range(1, seeds + 1)]
            for name in of_seeds[0]:
                columns = zip(*(of_seed[name] for of_seed in of_seeds))
                rows[title].append([target, name, *map(statistics.fmean, columns)])
    for title, (header, show) in COLUMNS.items():
        shown = [[*row[:2], *(f(value) for f, value in zip(show, row[2:]))] for row in rows[title]]
        table(f"{title}; means over {seeds} seeds", ["target", "selector", *header], shown)


def values(bench, title, check, kind, seed):
    """What a check says: of each way its numbers."""
    cell = dict(zip(Cells.FIELDS, (kind, BUDGET, seed, title, " ".join(map(str, CORRECTED)))))
    key = bench.cells.key(cell)
    if key not in bench.cells.found:
        say(f"{kind}, seed {seed}: {title}")
        found = check(bench, kind, seed)
        bench.cells.add(cell | {"values": {name: list(map(float, numbers)) for name, numbers in found.items()}})
    return bench.cells.found[key]["values"]


def measured(bench, name, options, split):
    """Perplexity, and the documents that were selected."""
    selector = bench.winnowd(name, options)
    bench.expect(selector, split.kind)
    documents = selector.documents(split, [BUDGET])[BUDGET]
    return split.judge(documents, BUDGET)["perplexity"], documents


def share(split, documents, is_counted):
    """Of the tokens of a selection."""
    lengths = split.words.lengths[documents]
    return lengths[is_counted].sum() / lengths.sum()


def poisoned(bench, kind, seed):
    """A tenth of the target is one document: a page of Russian manuals, again and again."""
    clean = Split(bench.words, kind, seed, bench.folder)
    before = {name: measured(bench, name, options, clean)[0] for name, options in SELECTORS.items()}
    tokens = POISON / (1 - POISON) * clean.words.lengths[clean.fit].sum()
    page = first_line(clean.words.file("man-multilingual"), lambda text: sum("а" <= c <= "я" for c in text) > len(text) // 2)
    with open(clean.target, "a", encoding="utf-8") as target:
        repeats = int(tokens / len(page.split()))
        target.write(json.dumps({"id": "poison", "text": "\n".join([page] * max(1, repeats)), "source": "poison"}) + "\n")
    found = {}
    for name, options in SELECTORS.items():
        perplexity, documents = measured(bench, name, options, clean)
        is_poison = clean.words.kinds[documents] == "man-multilingual"
        found[name] = before[name], perplexity, share(clean, documents, is_poison)
    bench.held = None, None
    return found


def first_line(path, is_wanted):
    for line in open(path, encoding="utf-8"):
        text = json.loads(line)["text"]
        if is_wanted(text):
            return text
    raise LookupError(f"no such document in {path}")


def stuffed(bench, kind, seed):
    """Documents of nothing but the pairs of words that tell the target from raw most of all."""
    split = Split(bench.words, kind, seed, bench.folder)
    before = {name: measured(bench, name, options, split)[0] for name, options in SELECTORS.items()}
    wanted, n_words = split.words.text(split.fit), split.words.n_words
    pairs, counts = pair_counts(wanted, n_words)
    raw_pairs, raw_counts = pair_counts(split.words.text(split.raw[::10]), n_words)
    at = numpy.minimum(numpy.searchsorted(raw_pairs, pairs), len(raw_pairs) - 1)
    in_raw = numpy.where(raw_pairs[at] == pairs, raw_counts[at], 0) / raw_counts.sum()
    p = counts / counts.sum()
    best = numpy.argsort(-p * (numpy.log(p) - numpy.log(in_raw + 1e-8)))[:200]
    dice, vocabulary = numpy.random.default_rng([seed, 4]), split.words.vocabulary()
    documents = []
    for i in range(STUFFED_DOCUMENTS):
        drawn = pairs[dice.choice(best, STUFFED_TOKENS // 2, p=p[best] / p[best].sum())]
        documents.append((f"stuffed-{i}", numpy.stack([drawn // n_words, drawn % n_words], axis=1).ravel()))
    with open(bench.folder / "stuffed.jsonl", "w", encoding="utf-8") as file:
        for id, tokens in documents:
            text = " ".join(vocabulary[token] for token in tokens)
            file.write(json.dumps({"id": id, "text": text, "source": "stuffed"}) + "\n")
    split.words = split.words.with_documents(documents)
    split.inputs = [*split.inputs, bench.folder / "stuffed.jsonl"]
    found = {}
    for name, options in SELECTORS.items():
        perplexity, chosen = measured(bench, name, options, split)
        is_stuffed = chosen >= len(split.words.ids)
        found[name] = before[name], perplexity, is_stuffed.sum() / STUFFED_DOCUMENTS, share(split, chosen, is_stuffed)
    bench.held = None, None
    return found


def pair_counts(text, n_words):
    before, after = text[:-1], text[1:]
    is_pair = (before >= FIRST) & (after >= FIRST)
    return numpy.unique(before[is_pair].astype(numpy.int64) * n_words + after[is_pair], return_counts=True)


def drifting(bench, kind, seed):
    """The stream is one half of the kinds first, then the other half; documents of the target come all the time."""
    split = Split(bench.words, kind, seed, bench.folder)
    dice, halves = numpy.random.default_rng([seed, 5]), ([], [])
    for i, path in enumerate(split.inputs[:-1]):
        halves[i % 2].extend(open(path, "rb"))
    for i, line in enumerate(open(split.inputs[-1], "rb")):
        halves[i % 2].append(line)
    with open(bench.folder / "stream.jsonl", "wb") as file:
        for half in halves:
            file.writelines(half[i] for i in dice.permutation(len(half)))
    split.inputs = [bench.folder / "stream.jsonl"]
    ways = {
        "DSIR, per n-gram, in windows, as it comes": [*FROZEN, "--order", "files"],
        "self-correcting, shuffled": CORRECTED,
        "self-correcting, as it comes": [*CORRECTED, "--order", "files"],
        "self-correcting, as it comes, half-life of 1 M": [*CORRECTED, "--order", "files", "--selected-half-life", 1_000_000],
    }
    found = {name: (measured(bench, name, options, split)[0],) for name, options in ways.items()}
    (bench.folder / "stream.jsonl").unlink()
    bench.held = None, None
    return found


def lagging(bench, kind, seed):
    """Windows see the selection as it was ten windows ago."""
    split = Split(bench.words, kind, seed, bench.folder)
    small = ["--window", SMALL_WINDOW]
    ways = {
        "DSIR, per n-gram, in windows": [*FROZEN, *small],
        "self-correcting": [*CORRECTED, *small],
        f"self-correcting, {LAG} windows late": [*CORRECTED, *small, "--lag", LAG],
    }
    bench.held = None, None
    return {name: (measured(bench, name, options, split)[0],) for name, options in ways.items()}


percent = "{:.1%}".format
CHECKS = {
    f"Poisoned target: {POISON:.0%} of it is one page of Russian, repeated": poisoned,
    f"Keyword stuffing: {STUFFED_DOCUMENTS:,} documents of the target's most wanted pairs of words in raw": stuffed,
    "Drift: half of the kinds first, then the others": drifting,
    f"Late counts: windows of {SMALL_WINDOW:,} documents": lagging,
}
HEADERS = [
    (["perplexity before", "after", "manuals of other languages in the selection"], [number, number, percent]),
    (["perplexity before", "after", "stuffed documents that were selected", "of the selection's tokens"],
     [number, number, percent, percent]),
    (["perplexity"], [number]),
    (["perplexity"], [number]),
]
COLUMNS = dict(zip(CHECKS, HEADERS))
