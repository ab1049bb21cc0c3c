"""What weighing against the selection costs: the scoring itself, and `winnowd select` from files to files."""
import collections
import json
import statistics

from common import number, run, say, table
from selection import CORRECTED, PER_NGRAM

# Of the bundled sample, which is short; and of the whole corpus.
SCORING_ROUNDS, ROUNDS = 51, 5
KIND = "database"


def report(bench):
    say("speed")
    lines = run([bench.programs["rates"], SCORING_ROUNDS], [bench.core]).stdout
    rates = {(line["stage"], line["kernel"]): line["median"] for line in map(json.loads, lines.splitlines())}
    rows = []
    for (stage, kernel), plain in rates.items():
        if stage.startswith("score/"):
            against = rates[f"against/{stage.removeprefix('score/')}", kernel]
            rows.append([f"{stage.removeprefix('score/')}, {kernel}", number(plain), number(against), f"{against / plain - 1:+.1%}"])
    table(f"Scoring, one core, MB of text a second, medians of {SCORING_ROUNDS} rounds, in turn",
          ["", "against raw", "against the selection", ""], rows)

    split, seconds = bench.split(KIND, 1), collections.defaultdict(list)
    ways = {"DSIR, per n-gram": PER_NGRAM, "self-correcting": CORRECTED}
    for _ in range(ROUNDS):
        for featuriser in ("reference", "fast"):
            for name, options in ways.items():
                command = [bench.programs["winnowd"], "select", "--input", *split.inputs, "--target", split.target, "--overwrite",
                           "--out", split.folder / "selected", "--featuriser", featuriser, "--threads", 1, "--fraction", 0.05]
                seconds[featuriser, name].append(run([*command, *options], [bench.core]).cpu_seconds)
    text_bytes = json.load(open(split.folder / "selected/report.json"))["text_bytes"]
    rows = []
    for featuriser in ("reference", "fast"):
        plain, against = (text_bytes / 1e6 / statistics.median(seconds[featuriser, name]) for name in ways)
        rows.append([featuriser, number(plain), number(against), f"{against / plain - 1:+.1%}"])
    table(f"`winnowd select` from files to files, 5 % selected, MB of text a CPU second, medians of {ROUNDS} rounds, in turn",
          ["", *ways, ""], rows)
