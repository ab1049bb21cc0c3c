// Plots of the last ten minutes and of weights. Each says in words what it shows.

import { clock, compact, count, nats, rate } from "/page/format.js";

const uPlot = window.uPlot;
const HEIGHT = 150;
/** Rates are means over so many samples. */
const OVER = 5;
/** Samples farther apart have a hole between them. */
const HOLE_MS = 10_000;

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** What stands in a figure: the plot, the data it shows, and how they are told. */
const shown = new Map();

function parts(id) {
  const figure = document.getElementById(id);
  return { caption: figure.querySelector("figcaption p"), place: figure.querySelector(".plot") };
}

function axes(format, time) {
  const grid = { stroke: colour("line"), width: 1 };
  const axis = { stroke: colour("quiet"), font: "11px system-ui, sans-serif", grid, ticks: { show: false } };
  const clocks = (_, values, __, ___, step) => values.map((seconds) => clock(seconds * 1000).slice(-8, step < 60 ? undefined : -3));
  return [
    { ...axis, size: 24, ...(time ? { values: clocks, space: 70 } : { space: 50 }) },
    { ...axis, size: 46, space: 28, values: (_, values) => values.map(format) },
  ];
}

/** Draws data, or only exchanges it where the plot is there. told: index or null → caption. */
function draw(id, data, alternative, told, make) {
  const { caption, place } = parts(id);
  place.setAttribute("aria-label", alternative);
  let plot = shown.get(id)?.plot;
  if (data[0].length === 0) {
    plot?.destroy();
    shown.delete(id);
    caption.textContent = "Nothing yet.";
    return;
  }
  const state = { ...shown.get(id), told, data, make };
  shown.set(id, state);
  if (plot === undefined) {
    const options = make();
    const hover = (u) => {
      const { told: tell } = shown.get(id);
      caption.textContent = tell(u.cursor.idx ?? null);
    };
    state.plot = new uPlot({
      width: Math.max(place.clientWidth, 50), height: HEIGHT, legend: { show: false }, padding: [8, 24, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 5 } },
      ...options, hooks: { ...options.hooks, setCursor: [hover] },
    }, data, place);
  } else {
    plot.setData(data);
  }
  const at = state.plot.cursor.idx;
  caption.textContent = told(state.plot.cursor.left >= 0 ? at : null);
}

/** Of counts: from 0 to a little more than the most, and at least to 1. */
const fromZero = (_, __, most) => [0, Math.max(most ?? 0, 1) * 1.05];

/** A random sample of a tiny window is nats away, and so is the first window: what is now keeps its room, the rest runs out below. */
function aroundNow(u, least, most) {
  const now = u.data[1].findLast((value) => value !== null) ?? 0;
  const high = Math.max(most ?? 0, 0.01) * 1.05;
  return [Math.max(Math.min(least ?? 0, 0), Math.min(-high, 1.05 * now)), high];
}

function lines(id, at, series, format, unit, scale = fromZero) {
  const text = (values, i) => format(i === null ? values.findLast((value) => value !== null) : values[i]);
  const told = (i) => {
    const when = i === null ? "" : `${clock(at[i] * 1000)}: `;
    return when + series.map(({ name, values }) => `${name} ${text(values, i)}`).join(", ");
  };
  const range = ({ name, values }) => {
    const known = values.filter((value) => value !== null);
    return known.length === 0 ? `${name}: nothing` :
      `${name}: now ${format(known.at(-1))}, least ${format(Math.min(...known))}, most ${format(Math.max(...known))}`;
  };
  const minutes = at.length > 1 ? (at.at(-1) - at[0]) / 60 : 0;
  const alternative = `${unit} over ${minutes.toFixed(1)} minutes. ${series.map(range).join(". ")}.`;
  draw(id, [at, ...series.map(({ values }) => values)], alternative, told, () => ({
    scales: { y: { range: scale } },
    axes: axes(format, true),
    series: [{}, ...series.map((_, i) => (i === 0
      ? { stroke: colour("accent"), width: 2, points: { show: false } }
      : { stroke: colour("quiet"), width: 1.5, dash: [5, 3], points: { show: false } }))],
  }));
}

export function showFlow(samples) {
  // A hole in time is a hole in the plot.
  const at = [];
  const rows = [];
  samples.forEach((sample, i) => {
    const before = samples[i - 1];
    if (before && sample.at_ms - before.at_ms > HOLE_MS) {
      at.push((before.at_ms + 1000) / 1000);
      rows.push(null);
    }
    at.push(sample.at_ms / 1000);
    rows.push(i);
  });
  const of = (value) => rows.map((i) => (i === null ? null : value(i)));
  const speed = (counter) => of((i) => {
    const from = samples[Math.max(0, i - OVER)];
    const seconds = (samples[i].at_ms - from.at_ms) / 1000;
    const isWhole = from.process === samples[i].process && seconds > 0 && seconds < 3 * OVER * 2;
    return isWhole ? (counter(samples[i]) - counter(from)) / seconds : null;
  });
  lines("plot-rate", at, [
    { name: "scored", values: speed((s) => s.consumed_records) },
    { name: "decided (dashed)", values: speed((s) => s.selected + s.rejected + s.dead_letters) },
  ], rate, "Documents a second");
  lines("plot-lag", at, [
    { name: "to publish", values: of((i) => samples[i].lag_published) },
    { name: "to read (dashed)", values: of((i) => samples[i].lag_consumed) },
  ], compact, "Records behind the end of the partitions");
  lines("plot-kl", at, [
    { name: "selection", values: of((i) => samples[i].kl_reduction) },
    { name: "random (dashed)", values: of((i) => samples[i].window_random_kl_reduction) },
  ], nats, "How much nearer the target than the stream, in nats", aroundNow);
}

/** The target that is looked at, by its place. */
let chosen = 0;

export function showWeights(weights) {
  const label = document.getElementById("weights-label");
  const select = document.getElementById("weights-target");
  label.hidden = weights.length < 2;
  const names = weights.map(({ target }) => target ?? "");
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  select.onchange = () => {
    chosen = select.selectedIndex;
    showWeights(weights);
  };
  chosen = Math.min(chosen, Math.max(0, weights.length - 1));
  const of = weights[chosen];
  if (of === undefined) return draw("plot-weights", [[]], "No window has closed yet.");
  const { low, high, candidates, selected, threshold } = of;
  const width = (high - low) / candidates.length || 1;
  const middles = candidates.map((_, i) => low + (i + 0.5) * width);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const whole = `${count(sum(selected))} of ${count(sum(candidates))} selected` +
    (threshold === null ? "" : `; threshold ${nats(threshold)}`);
  const told = (i) => (i === null ? whole : `around ${nats(middles[i])}: ${count(selected[i])} of ${count(candidates[i])} selected`);
  const alternative = `Log weights from ${nats(low)} to ${nats(high)} nats. ${whole}.`;
  draw("plot-weights", [middles, candidates, selected], alternative, told, () => {
    const bars = uPlot.paths.bars({ size: [0.9], align: 0 });
    const bar = (name) => ({ fill: colour(name), stroke: colour(name), width: 0, paths: bars, points: { show: false } });
    return {
      scales: { x: { time: false, range: (_, least, most) => [least - (most - least) / 60 - 1e-9, most + (most - least) / 60 + 1e-9] }, y: { range: fromZero } },
      axes: axes(compact, false),
      series: [{}, bar("line"), bar("accent")],
      hooks: { draw: [drawThreshold] },
    };
  });
  shown.get("plot-weights").threshold = threshold;
  shown.get("plot-weights").plot.redraw(false);
}

function drawThreshold(u) {
  const threshold = shown.get("plot-weights")?.threshold ?? null;
  if (threshold === null || threshold < u.scales.x.min || threshold > u.scales.x.max) return;
  const x = Math.round(u.valToPos(threshold, "x", true));
  const { top, height } = u.bbox;
  u.ctx.save();
  u.ctx.strokeStyle = colour("text");
  u.ctx.lineWidth = devicePixelRatio;
  u.ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
  u.ctx.beginPath();
  u.ctx.moveTo(x, top);
  u.ctx.lineTo(x, top + height);
  u.ctx.stroke();
  u.ctx.restore();
}

/** Other colours need other plots. */
function again() {
  for (const [id, { plot, data, told, make, threshold }] of [...shown]) {
    const alternative = parts(id).place.getAttribute("aria-label");
    plot.destroy();
    shown.delete(id);
    draw(id, data, alternative, told, make);
    shown.get(id).threshold = threshold;
  }
}
dark.addEventListener("change", again);

new ResizeObserver(() => {
  for (const [id, { plot }] of shown) {
    const width = parts(id).place.clientWidth;
    if (width > 0 && width !== plot.width) plot.setSize({ width, height: HEIGHT });
  }
}).observe(document.getElementById("content"));
