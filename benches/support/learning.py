"""The experiment: a small neural model learns from what a running winnowd selects and weighs; its tables and its plot."""
import collections
import json
import statistics
import time

import numpy

import common
from bigram import Bigram
from common import say, table
from loop import Loop, wait_for
from neural import Neural, contexts_of
from selection import PER_NGRAM, TEMPERATURE, Split
from words import BEGIN, UNKNOWN

assert "--length-normalise" in PER_NGRAM
TARGET = "math"
# A stream in two halves, with so many documents of the target's kind in it; a tenth is selected of each.
HALF, SWIMMING, FRACTION = 4_000, 500, 0.1
# The model sees so many tokens of each half, in samples of so many tokens, so many a step.
BUDGET, LENGTH, BATCH = 120_000, 32, 32
N_STEPS = 2 * BUDGET // LENGTH // BATCH
# Of each half that many points are measured.
POINTS = 4
VOCABULARY = 4_096
PROXY_TOKENS = 200_000
# What is added to a log weight, which is a mean over n-grams of some tenths of a nat.
COEFFICIENT = 0.1
# As published: a twentieth of all steps with equal weights. Then from 1 towards 0.4, half of the way in a quarter of the steps.
WEIGHTS = {
    "loss_weight.strategy": "lin_upper", "loss_weight.burn_in_steps": N_STEPS // 20, "loss_weight.temperature": 1.0,
    "loss_weight.temperature_floor": 0.4, "loss_weight.temperature_half_life_steps": N_STEPS // 4,
}
DSIR = {"selection.length_normalise": True, "selection.temperature": TEMPERATURE}
OWN = {"documents.loss_field": "loss", "documents.reference_loss_field": "reference_loss", "selection.loss_strategy": "kl_dro",
       "selection.loss_coefficient": COEFFICIENT}

# A daemon with settings, and the ways to learn from what it selects: a name, and whether it weighs the samples of a step.
Daemon = collections.namedtuple("Daemon", "settings ways")
DAEMONS = [
    Daemon({"selection.temperature": 1e9}, [("uniform", False), ("uniform, weighed", True)]),
    Daemon(DSIR, [("DSIR", False), ("DSIR, weighed", True)]),
    Daemon(DSIR | {"selection.expected_loss": COEFFICIENT}, [("DSIR + expected loss", False)]),
    Daemon(DSIR | OWN, [("DSIR + own loss", False)]),
]
NAMES = [name for daemon in DAEMONS for name, _ in daemon.ways]
FIELDS = ["kind", "seed", "way"]


class Bench:
    def __init__(self, words, cells, folder, winnowd, broker):
        self.words, self.cells, self.folder, self.winnowd, self.broker = words, cells, folder, winnowd, broker
        # The most frequent words of all documents but the target's kind; all others are one.
        of_others = numpy.concatenate([words.of(n) for n in numpy.flatnonzero(words.kinds != TARGET)[::20]])
        counts = numpy.bincount(of_others, minlength=words.n_words)
        counts[[BEGIN, UNKNOWN]] = 0
        self.number = numpy.full(words.n_words, UNKNOWN)
        self.number[BEGIN] = BEGIN
        self.number[numpy.argsort(-counts, kind="stable")[:VOCABULARY - 2]] = numpy.arange(2, VOCABULARY)

    def tokens(self, document):
        return self.number[self.words.of(document)[1:]]


class Stream:
    """What a seed draws: a split of the target, a stream, a model of winnowd, and the samples that the model is measured on."""

    def __init__(self, bench, seed):
        self.bench, self.seed = bench, seed
        folder = bench.folder / f"split-{seed}"
        folder.mkdir(exist_ok=True)
        words, dice = bench.words, numpy.random.default_rng([seed, 5])
        split = Split(words, TARGET, seed, folder)
        others = dice.permutation(numpy.flatnonzero(words.kinds != TARGET))
        swimming, n_others = dice.permutation(split.swim)[:SWIMMING], 2 * HALF - SWIMMING
        self.documents = dice.permutation(numpy.concatenate([swimming, others[:n_others]]))
        self.swimming, self.proxy = set(swimming), others[n_others:]
        self.texts = self.read(split)
        raw = folder / "raw.jsonl"
        raw.write_text("".join(json.dumps(self.texts[d]) + "\n" for d in self.documents), encoding="utf-8")
        self.model = folder / "model.wnw"
        command = [bench.winnowd, "fit", "--target", split.target, "--raw", raw, "--featuriser", "fast", "--out", self.model]
        common.run(command, [0])
        self.add_losses(split)
        # One stretch of each document that is held out.
        stretches = [self.stretch(document, dice) for document in split.held_out]
        self.held_out = [numpy.concatenate(part) for part in zip(*stretches)]

    def read(self, split):
        wanted, texts = {self.bench.words.ids[d]: d for d in self.documents}, {}
        for path in split.inputs:
            for line in open(path, encoding="utf-8"):
                record = json.loads(line)
                if record["id"] in wanted:
                    texts[wanted[record["id"]]] = record
        assert len(texts) == 2 * HALF, f"{len(texts)} of {2 * HALF} documents have a text"
        return texts

    def add_losses(self, split):
        """Of a proxy, a bigram model of other documents of the stream's kinds; of a reference, one of the target."""
        words, of = self.bench.words, lambda model, d: float(model.losses(words.of(d)).mean())
        models = [Bigram(words.text(self.proxy, PROXY_TOKENS), words.n_words), Bigram(words.text(split.fit), words.n_words)]
        for document, record in self.texts.items():
            record["loss"], record["reference_loss"] = (of(model, document) for model in models)
        # Of the first half: what could be measured before the second one comes.
        excess = [self.texts[d]["loss"] - self.texts[d]["reference_loss"] for d in self.documents[:HALF]]
        low, high = numpy.quantile(excess, [0.01, 0.99])
        self.range = {"selection.loss_low": float(low), "selection.loss_high": float(high)}

    def stretch(self, document, dice):
        tokens = self.bench.tokens(document)
        start = dice.integers(max(1, len(tokens) - LENGTH + 1))
        return contexts_of(tokens)[start:start + LENGTH], tokens[start:start + LENGTH]

    def half(self, which):
        return [self.texts[d] for d in self.documents[which * HALF:(which + 1) * HALF]]


class Trainer:
    """Learns each half of a selection once, in an order by chance; remembers what it lost on each document before it had seen it."""

    def __init__(self, stream, way, is_weighed, loop):
        self.stream, self.way, self.is_weighed, self.loop = stream, way, is_weighed, loop
        self.model, self.step, self.n_documents, self.n_found = Neural(VOCABULARY, stream.seed, N_STEPS), 0, 0, 0
        self.curve, self.sizes = [], []
        self.measure(share=3)

    def measure(self, share=1):
        contexts, words = (part[:len(part) // share] for part in self.stream.held_out)
        self.curve.append([self.n_documents, float(numpy.exp(self.model.losses(contexts, words).mean()))])

    def learn(self, ids):
        """Sums of losses and numbers of tokens of documents, by id."""
        bench, samples, left, before = self.stream.bench, [], BUDGET, self.n_documents
        for n, id in enumerate(ids):
            document = bench.words.number[id]
            tokens = bench.tokens(document)[:left]
            contexts = contexts_of(tokens)
            samples += [(id, contexts[i:i + LENGTH], tokens[i:i + LENGTH]) for i in range(0, len(tokens), LENGTH)]
            self.n_found += document in self.stream.swimming
            left -= len(tokens)
            if not left:
                break
        assert not left, f"{self.way}: {left} tokens of {BUDGET} are missing"
        n_documents = n + 1
        dice, losses = numpy.random.default_rng([self.stream.seed, 6, self.step]), collections.defaultdict(lambda: [0.0, 0])
        # As many samples a step as make the number of steps: the last ones of documents are short.
        batches = numpy.array_split(dice.permutation(len(samples)), N_STEPS // 2)
        for i, batch in enumerate(batches):
            self.batch([samples[j] for j in batch], losses)
            done = (i + 1) / len(batches)
            if (i + 1) % (len(batches) // POINTS) == 0 or done == 1:
                self.n_documents = before + round(done * n_documents)
                if done == 1 or done <= 1 - 0.5 / POINTS:
                    self.measure(share=1 if done == 1 else 3)
        return losses

    def batch(self, samples, losses):
        words = numpy.concatenate([tokens for _, _, tokens in samples])
        contexts, lengths = numpy.concatenate([c for _, c, _ in samples]), numpy.array([len(t) for _, _, t in samples])
        of_words, passed = self.model.forward(contexts, words)
        sums = numpy.add.reduceat(of_words, numpy.cumsum(lengths) - lengths)
        for (id, _, tokens), loss in zip(samples, sums):
            losses[id][0] += float(loss)
            losses[id][1] += len(tokens)
        if self.is_weighed:
            weights = numpy.array(self.loop.weights(self.way, self.step, sums / lengths, lengths))
            self.sizes.append(1 / numpy.square(weights).sum() / len(weights))
        else:
            weights = numpy.full(len(samples), 1 / len(samples))
        self.model.learn(contexts, words, passed, numpy.repeat(weights / lengths, lengths).astype(numpy.float32))
        self.step += 1


def measure(bench, stream, number):
    """The cells of a daemon: documents, losses back, more documents."""
    seed, (settings, ways) = stream.seed, DAEMONS[number]
    settings = {
        "model.path": str(stream.model), "selection.fraction": FRACTION, "selection.seed": seed,
        "window.max_documents": HALF, **settings, **WEIGHTS}
    settings |= stream.range if "selection.loss_coefficient" in settings else {}
    # Noise depends on the name of the topic.
    name = f"losses-{seed}-{number}"
    with Loop(bench.winnowd, bench.broker, bench.folder / name, name, settings) as loop:
        trainers = [Trainer(stream, way, is_weighed, loop) for way, is_weighed in ways]
        selected = loop.select(stream.half(0))
        losses = [trainer.learn(selected) for trainer in trainers]
        report = [{"run_id": trainer.way, "step": 0, "rank": 0, "world_size": 1, "doc_ids": list(of), "loss_sum": [
            loss for loss, _ in of.values()], "tokens": [n for _, n in of.values()]} for trainer, of in zip(trainers, losses)]
        loop.send("losses", report[:1])
        counted = lambda: (loop.status()["feedback"]["learnt"] or {}).get("losses", {}).get("counted") == len(losses[0])
        wait_for("the losses", counted)
        # A publication makes the version of what was learnt: that of a document which is too short to be selected.
        assert not loop.select([{"id": "short", "text": "too short"}])
        wait_for("the version", lambda: loop.metric("winnowd_feedback_version") >= 1)
        selected = loop.select(stream.half(1))
        explained = loop.status()["feedback"]["learnt"]["expected_loss"]["explained"]
        for trainer in trainers:
            began = time.process_time()
            trainer.learn(selected)
            cell = dict(zip(FIELDS, (TARGET, seed, trainer.way)))
            bench.cells.add(cell | {
                "curve": trainer.curve, "documents": trainer.n_documents, "found": trainer.n_found,
                "effective": statistics.fmean(trainer.sizes) if trainer.sizes else 1.0, "explained": explained})
            say(f"seed {seed}, {trainer.way}: {trainer.curve[-1][1]:.1f} after {trainer.n_documents} documents, "
                f"{trainer.n_found} of the target's; {time.process_time() - began:.0f} s for a half")


def measure_seed(bench, seed):
    """The cells of a seed that are missing."""
    missing = [n for n, daemon in enumerate(DAEMONS)
               if not all((TARGET, seed, way) in bench.cells.found for way, _ in daemon.ways)]
    stream = Stream(bench, seed) if missing else None
    for number in missing:
        measure(bench, stream, number)


def report(bench, seeds, plot):
    for seed in range(1, seeds + 1):
        measure_seed(bench, seed)
    cells = {way: [bench.cells.found[TARGET, seed, way] for seed in range(1, seeds + 1)] for way in NAMES}
    last = {way: [cell["curve"][-1][1] for cell in of] for way, of in cells.items()}
    size = Neural(VOCABULARY, 0, 1).size()
    print(f"\nA model of {size:,} parameters, {N_STEPS} steps, {2 * BUDGET:,} tokens.")
    shown = lambda values, digits: f"{statistics.fmean(values):,.{digits}f} ± {statistics.stdev(values) if seeds > 1 else 0:,.{digits}f}"
    rows = []
    for way in NAMES:
        of = cells[way]
        change = lambda other: [100 * (a / b - 1) for a, b in zip(last[way], last[other])]
        better = sum(a < b for a, b in zip(last[way], last["DSIR"]))
        rows.append([way, shown(last[way], 1), shown(change("uniform"), 1), shown(change("DSIR"), 1), f"{better} of {seeds}",
                     shown([cell["documents"] for cell in of], 0), shown([cell["found"] for cell in of], 0),
                     f"{statistics.fmean(cell['effective'] for cell in of):.2f}"])
    header = ["", "perplexity", "against uniform, %", "against DSIR, %", "seeds better than DSIR", "documents", "of the target's kind",
              "effective share of a step"]
    table(f"Perplexity of held-out documents of the target at equal tokens, mean and standard deviation over {seeds} seeds", header, rows)
    draw(cells, plot)
    say(f"plot: {plot}")


def draw(cells, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(NAMES, ["0.5", "0.5", "tab:blue", "tab:blue", "tab:red", "tab:green"]))
    figure, (curves, ends) = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained", width_ratios=[3, 2])
    for place, way in enumerate(NAMES):
        of = numpy.array([cell["curve"][1:] for cell in cells[way]])
        mean, spread = of.mean(axis=0), of[:, :, 1].std(axis=0, ddof=1) if len(of) > 1 else numpy.zeros(of.shape[1])
        style = {"color": colours[way], "linestyle": "--" if "weighed" in way else "-"}
        curves.errorbar(mean[:, 0], mean[:, 1], spread, label=way, marker="o", markersize=3, capsize=2, **style)
        ratios = [100 * (cell["curve"][-1][1] / base["curve"][-1][1] - 1) for cell, base in zip(cells[way], cells["DSIR"])]
        if not way.startswith("uniform"):
            ends.plot(ratios, [place] * len(ratios), "o", color=colours[way], alpha=0.5)
            ends.plot(statistics.fmean(ratios), place, "|", color="black", markersize=16)
    curves.set(yscale="log", xlabel="documents seen", ylabel="perplexity of held-out target documents")
    curves.yaxis.set_minor_formatter("{x:g}")
    curves.yaxis.set_major_formatter("{x:g}")
    ends.set(yticks=range(2, len(NAMES)), yticklabels=NAMES[2:], xlabel="in the end, % against DSIR of the same seed")
    ends.invert_yaxis()
    ends.axvline(0, color="0.7", zorder=0)
    for panel in (curves, ends):
        panel.grid(alpha=0.3)
    curves.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
