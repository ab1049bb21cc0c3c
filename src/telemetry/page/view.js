// Puts a status on the page. Everything that comes from documents becomes text, never markup.

import { bytes, clock, compact, count, duration, nats, NOTHING, percent, rate } from "/page/format.js";
import { showFlow, showWeights } from "/page/plots.js";

/** Rates are means over so many samples: publications come in bursts. */
const RATE_SAMPLES = 5;
const MAX_PARTITIONS = 200;

const element = (id) => document.getElementById(id);

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** The number stands beside it. */
function bar(share) {
  const made = make("span", undefined, "bar");
  const filled = make("span");
  filled.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
  made.append(filled);
  return made;
}

/** columns: [heading, row → text or nodes, class]. */
function fill(id, columns, rows, empty) {
  const table = element(id);
  const body = make("tbody");
  if (rows.length === 0) {
    const cell = make("td", empty, "empty");
    cell.colSpan = columns.length;
    const row = make("tr");
    row.append(cell);
    body.append(row);
    table.replaceChildren(body);
    return;
  }
  const head = make("tr");
  for (const [heading, , kind] of columns) {
    const cell = make("th", heading, kind);
    cell.scope = "col";
    head.append(cell);
  }
  for (const row of rows) {
    const line = make("tr");
    for (const [, of, kind] of columns) {
      const cell = make("td", undefined, kind);
      cell.append(...[of(row)].flat());
      line.append(cell);
    }
    body.append(line);
  }
  const heading = make("thead");
  heading.append(head);
  table.replaceChildren(heading, body);
}

function define(id, pairs) {
  element(id).replaceChildren(
    ...pairs.map(([term, text, title]) => {
      const pair = make("div");
      const value = make("dd", text);
      if (title) value.title = title;
      pair.append(make("dt", term), value);
      return pair;
    }),
  );
}

let shownNotices = "[]";

/** notices: [kind, text]. Said aloud once, not with every look. */
export function setNotices(notices) {
  const key = JSON.stringify(notices);
  if (key === shownNotices) return;
  shownNotices = key;
  element("notices").replaceChildren(...notices.map(([kind, text]) => make("p", text, `notice ${kind}`)));
}

export function setState(kind, text) {
  const state = element("state");
  if (state.textContent !== text) state.textContent = text;
  state.className = `pill ${kind}`;
  const pipeline = element("pipeline").textContent;
  document.title = pipeline ? `${text} · ${pipeline} · winnowd` : `${text} · winnowd`;
}

/** Of a counter, over the last samples of this process. */
function rateOf(samples, of) {
  const last = samples.at(-1);
  const recent = samples.slice(-1 - RATE_SAMPLES).filter((sample) => sample.process === last.process);
  const seconds = (last.at_ms - recent[0].at_ms) / 1000;
  return seconds > 0 ? (of(last) - of(recent[0])) / seconds : null;
}

function showHead(status) {
  element("pipeline").textContent = status.pipeline;
  define("identity", [
    ["up", duration(status.uptime_seconds)],
    ["worker", status.owner || NOTHING],
    ["version", status.version],
    ["model", status.model.replace("sha256:", "").slice(0, 12) || NOTHING, status.model],
    ["configuration", status.config_digest || NOTHING],
  ]);
}

function showState(status) {
  const notices = [];
  const isStarting = status.missing.length > 0 && !status.last_error && status.uptime_seconds < 60;
  if (status.poll_problem) notices.push(["bad", `Not alive: ${status.poll_problem}.`]);
  if (status.missing.length > 0) {
    notices.push([isStarting ? "warn" : "bad", `${isStarting ? "Starting" : "Not ready"}: ${status.missing.join("; ")}.`]);
  }
  if (status.stalled.length > 0) {
    notices.push(["bad", `Publication waits: ${status.stalled.join(", ")} fails and is tried again. Nothing is lost.`]);
  }
  if (status.last_error) notices.push(["bad", status.last_error]);
  if (status.warning) notices.push(["warn", status.warning]);
  if (status.feedback?.problem) notices.push(["warn", `Feedback: ${status.feedback.problem}`]);
  if (status.gaps.length > 0) {
    const { topic, partition, reason } = status.gaps[0];
    notices.push(["warn", `Offsets were never decided: ${count(status.gaps.length)} gaps, the newest in ${topic}/${partition} (${reason}).`]);
  }
  setNotices(notices);
  if (status.missing.length === 0 && !status.poll_problem) setState("good", "ready");
  else setState(isStarting ? "warn" : "bad", isStarting ? "starting" : "not ready");
}

function showStages(status, samples) {
  const { flow, totals, partitions } = status;
  const per = (of) => rateOf(samples, of);
  const open = partitions.filter((partition) => partition.window !== null);
  const decided = totals.n_selected + totals.n_rejected;
  const windows = per((sample) => sample.windows_closed);
  // [stage, what it is about, number, unit, lines]
  const stages = [
    ["Kafka", "lag", compact(flow.lag_consumed), "records wait", [
      `${count(partitions.length)} partitions here`,
      `${bytes(per((sample) => sample.consumed_bytes))}/s`,
    ]],
    ["Scored", "consumed", rate(per((sample) => sample.consumed_records)), "records/s", [
      `${rate(per((sample) => sample.scored_tokens))} tokens/s`,
      `${count(flow.consumed_records)} records so far`,
    ]],
    ["Windows", "windows", rate(windows === null ? null : 60 * windows), "closed/min", [
      `${count(open.length)} open, ${compact(open.reduce((sum, { window }) => sum + window.n_records, 0))} records in them`,
      `${bytes(flow.held_bytes)} held of ${bytes(flow.memory_budget_bytes)}`,
    ]],
    ["Selected", "selected", rate(per((sample) => sample.selected)), "documents/s", [
      `${percent(decided > 0 ? totals.n_selected / decided : null)} of all, ${count(totals.n_selected)} in total`,
      `${count(totals.n_rejected)} rejected, ${count(totals.n_dead_letters)} dead letters`,
    ]],
    ["Published", "decided", rate(per((sample) => sample.selected + sample.rejected + sample.dead_letters)), "decided/s", [
      `${count(totals.n_shards)} shards, ${bytes(totals.shard_bytes)}`,
      `${compact(flow.lag_published)} records not yet published`,
    ]],
  ];
  element("flow").replaceChildren(
    ...stages.map(([name, key, number, unit, lines]) => {
      const stage = make("li");
      const strong = make("strong", number);
      strong.dataset.of = key;
      stage.append(make("h3", name), strong, " ", make("small", unit), ...lines.map((line) => make("p", line)));
      return stage;
    }),
  );
}

function showPartitions(status) {
  const lag = (of, partition) => (partition.end_offset === null ? null : Math.max(0, partition.end_offset - partition[of]));
  const rows = [...status.partitions].sort((a, b) => (lag("published", b) ?? -1) - (lag("published", a) ?? -1)).slice(0, MAX_PARTITIONS);
  const limits = status.window_limits;
  const fullness = ({ n_records, payload_bytes }) =>
    Math.max(n_records / limits.max_documents, payload_bytes / limits.max_bytes);
  const shown = rows.length < status.partitions.length ? ` The ${count(rows.length)} with most to publish are shown.` : "";
  element("partitions-note").textContent = limits
    ? `Windows close at ${compact(limits.max_documents)} records, ${bytes(limits.max_bytes)} or ${duration(limits.max_age_ms / 1000)}.${shown}`
    : "";
  fill("partitions", [
    ["Partition", (p) => `${p.topic}/${p.partition}`, "text name"],
    ["To read", (p) => count(lag("consumed", p))],
    ["To publish", (p) => count(lag("published", p))],
    ["Window", (p) => (p.window ? [bar(fullness(p.window)), count(p.window.n_records)] : NOTHING)],
    ["Age", (p) => (p.window ? duration((status.now_ms - p.window.opened_at_ms) / 1000) : NOTHING)],
    ["Published", (p) => count(p.published), "wide"],
    ["Owner", (p) => count(p.owner_epoch), "wide"],
  ], rows, "No partition belongs to this worker yet.");
}

function showSources(status) {
  const { sources, other_documents, other_selected } = status.sources;
  const of_feedback = status.feedback?.quotas ?? {};
  const wanted = Object.keys(of_feedback).length > 0 ? of_feedback : status.shares;
  const rows = sources.map((row) => ({ ...row, name: row.source ?? "(no source)", wanted: wanted[row.source] }));
  if (other_documents > 0) rows.push({ name: "(all others)", documents: other_documents, selected: other_selected });
  const total = rows.reduce((sum, row) => sum + row.selected, 0);
  const most = Math.max(...rows.map((row) => row.selected / row.documents), 0);
  const columns = [
    ["Source", (row) => row.name, "text name"],
    ["Documents", (row) => count(row.documents)],
    ["Selected", (row) => count(row.selected)],
    ["Accepted", (row) => [bar(most > 0 ? row.selected / row.documents / most : 0), percent(row.selected / row.documents)]],
    ["Of selection", (row) => percent(total > 0 ? row.selected / total : null), "wide"],
  ];
  if (Object.keys(wanted).length > 0) columns.push(["Wanted", (row) => percent(row.wanted)]);
  fill("sources", columns, rows, "No window has closed yet.");
}

const ngrams = (lack) => (lack.ngrams.length > 0 ? lack.ngrams.map((text) => make("span", text, "ngram")) : `bucket ${lack.bucket}`);

function showSelection(status) {
  fill("lacking", [
    ["n-grams of the target", ngrams, "text"],
    ["nats", (lack) => nats(lack.nats)],
  ], status.lacking, "Nothing has been selected yet.");
  const targets = status.targets ?? [];
  element("targets-section").hidden = targets.length === 0;
  fill("targets", [
    ["Target", (row) => row.target, "text name"],
    ["Selected", (row) => count(row.n_selected)],
    ["KL reduction", (row) => nats(row.kl_reduction)],
    ["Lacks most", (row) => (row.lacking.length > 0 ? ngrams(row.lacking[0]) : NOTHING), "text"],
  ], targets, "");
}

function showFeedback({ feedback }) {
  element("feedback-section").hidden = feedback === null;
  if (feedback === null) return;
  const learnt = feedback.learnt;
  define("feedback", [
    ["version", count(feedback.version)],
    ["reports", count(learnt?.n_reports)],
    ["of known documents", percent(learnt?.match_ratio)],
    ["losses counted", count(learnt?.losses?.counted)],
  ]);
  fill("feedback-sources", [
    ["Source", (row) => row.source || "(no source)", "text name"],
    ["Losses", (row) => count(row.n_losses)],
    ["Mean", (row) => nats(row.mean)],
    ["Median", (row) => nats(row.median)],
    ["Quota", (row) => percent(feedback.quotas[row.source])],
  ], learnt?.sources ?? [], "No trainer has reported yet.");
}

function showPublished(status) {
  fill("shards", [
    ["Published", (row) => clock(row.published_at_ms), "text when"],
    ["Shard", (row) => row.path.replace(/^shards\//, ""), "text"],
    ["Rows", (row) => count(row.rows)],
    ["Size", (row) => bytes(row.bytes)],
    ["Windows", (row) => count(row.n_windows), "wide"],
  ], status.shards, "This worker has published none since it started.");
  fill("messages", [
    ["Time", (line) => clock(line.at_ms), "text when"],
    ["Level", (line) => make("span", line.level, line.level === "error" ? "bad" : "warn"), "text when"],
    ["Message", (line) => (line.times > 1 ? `${line.text} (${count(line.times)} times)` : line.text), "text"],
  ], status.messages, "None since the daemon started.");
}

export function show(status, samples) {
  showHead(status);
  showState(status);
  showStages(status, samples);
  showSources(status);
  showPartitions(status);
  showSelection(status);
  showFeedback(status);
  showPublished(status);
  showFlow(samples);
  showWeights(status.weights);
}
