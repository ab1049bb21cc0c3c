"""Draws a dashboard with the numbers that its queries returned, to be looked at: Grafana itself cannot be had from a registry."""
import datetime
import math
import textwrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Of a legend.
WIDTH_IN_LETTERS = 100
UNITS = {"ops": "/s", "Bps": "B/s", "bytes": "B", "s": "s", "nats": "nats", "percentunit": "%", "short": "", "none": ""}


def shown(value, unit):
    """As Grafana says it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    if unit == "bytes":
        for limit, letter in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
            if abs(value) >= limit:
                return f"{value / limit:.3g} {letter}B"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit and unit not in ("s", "nats", "none"):
            return f"{value / limit:.3g} {letter}{UNITS[unit]}".strip()
    return f"{value:.3g} {UNITS[unit]}".strip()


def draw(dashboard, out):
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
    inches = 0.55 * rows + 1.2
    figure = plt.figure(figsize=(20, inches))
    grid = figure.add_gridspec(rows, 24, hspace=4.5, wspace=4, left=0.04, right=0.985, top=1 - 1 / inches, bottom=0.4 / inches)
    figure.text(0.04, 1 - 0.4 / inches, f"{dashboard['title']}: {dashboard['description']}", fontsize=15)
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        if panel["type"] == "row":
            title = figure.add_subplot(grid[at["y"], :])
            title.axis("off")
            title.text(0, 0.5, panel["title"], fontsize=15)
            continue
        axes = figure.add_subplot(grid[at["y"] : at["y"] + at["h"] - 1, at["x"] : at["x"] + at["w"]])
        axes.set_title(panel["title"], fontsize=11, loc="left", weight="bold")
        unit = panel["fieldConfig"]["defaults"]["unit"]
        (stat if panel["type"] == "stat" else lines)(axes, panel, unit)
    figure.savefig(out, dpi=70)
    plt.close(figure)


def stat(axes, panel, unit):
    axes.axis("off")
    values = panel["series"][0][1]
    axes.text(0, 0.45, shown(float(values[-1][1]), unit), fontsize=22)
    axes.text(0, 0, textwrap.fill(panel["description"], 34), fontsize=8, va="top", color="gray")


def with_gaps(values):
    """A line ends where nothing answered, as Grafana's does."""
    drawn = []
    for t, value in values:
        if drawn and t - drawn[-1][0] > 1.5:
            drawn.append((t - 1, float("nan")))
        drawn.append((t, float(value)))
    return drawn


def lines(axes, panel, unit):
    leaves_zeros_out = bool(panel["fieldConfig"]["overrides"])
    # An underscore keeps a name out of the legend.
    named = lambda name, values: f"_{name}" if leaves_zeros_out and not any(numbers(values)) else name
    is_stack = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    times = lambda values: [datetime.datetime.fromtimestamp(t) for t, _ in with_gaps(values)]
    numbers = lambda values: [number for _, value in values if not math.isnan(number := float(value))]
    all_numbers = [value for _, values in panel["series"] for value in numbers(values)]
    if is_stack:
        moments = [t for _, values in panel["series"] for t, _ in values]
        moments = [min(moments) + second for second in range(round(max(moments) - min(moments)) + 1)]
        heights = [[float(dict(map(tuple, values)).get(t, 0)) for t in moments] for _, values in panel["series"]]
        names = [named(name, values) for name, values in panel["series"]]
        axes.stackplot([datetime.datetime.fromtimestamp(t) for t in moments], heights, labels=names, alpha=0.7)
    else:
        for name, values in panel["series"]:
            axes.plot(times(values), [v for _, v in with_gaps(values)], label=named(name, values), linewidth=1.2)
    if unit == "bytes" and any(all_numbers):
        # Steps that are whole in units of 1024.
        step = 2.0 ** round(math.log2(max(all_numbers) / 5))
        axes.yaxis.set_major_locator(matplotlib.ticker.MultipleLocator(step))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M:%S"))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    axes.grid(alpha=0.3)
    # Room for the legend.
    axes.margins(y=0.35)
    if all(value >= 0 for value in all_numbers):
        axes.set_ylim(bottom=0, top=None if any(all_numbers) else 1)
    if shown_names := [name for name in axes.get_legend_handles_labels()[1] if not name.startswith("_")]:
        columns = max(1, min(4, WIDTH_IN_LETTERS // (max(map(len, shown_names)) + 8)))
        axes.legend(fontsize=7, loc="upper left", ncols=columns, framealpha=0.6)
    axes.set_xlabel(textwrap.fill(panel["description"], 84), fontsize=8, color="gray", loc="left")
