// The page of a real daemon in a real browser.
//
//   NODE_MODULES=… node live.mjs WINNOWD BOOTSTRAP PYTHON [PNGS]
//
// Feeds a worker documents of the bundled sample, some from a source whose name is an attack, and looks at the page: just started,
// with numbers that must be those of /status and /metrics, with a store that fails, after kill -9, with a token, in both colour
// schemes, on a phone, by keyboard, by axe-core. Ends with 1 at the first thing that is not as promised.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { DEADLINE_MS, soon } from "./wait.mjs";

const [winnowd, bootstrap, python, pngs] = process.argv.slice(2);
const require = createRequire(join(process.env.NODE_MODULES, "/"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const FEED = new URL("feed.py", import.meta.url).pathname;
const ATTACK = '<img src=x onerror="document.title=1">';
const TOKEN = "correct-horse-battery-staple";
const DESKTOP = { width: 1440, height: 900 };
const PHONE = { width: 390, height: 844 };

const folder = mkdtempSync(join(tmpdir(), "page-"));
const topic = `documents-${Date.now().toString(36)}`;
const log = join(folder, "log");
const feed = (...words) => execFileSync(python, [FEED, ...words.map(String)], { stdio: ["ignore", "inherit", "inherit"] });

async function waitFor(what, done) {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    const value = await done();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`timed out waiting for ${what}\n${readFileSync(log, "utf8").slice(-3000)}`);
    await pause(50);
  }
}

const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

/** Variables of tests are no keys of the configuration. */
const outside = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("WINNOWD_")));

let daemon;
async function start(environment = {}) {
  const out = openSync(log, "a");
  daemon = spawn(winnowd, ["run", "-c", file("winnowd.toml")], {
    stdio: ["ignore", out, out],
    env: { ...outside, ...environment },
  });
  closeSync(out);
  await waitFor("the daemon to listen", async () => {
    assert.equal(daemon.exitCode, null, `the daemon ended:\n${readFileSync(log, "utf8")}`);
    return fetch(`${base}/healthz`).then((answer) => answer.ok, () => false);
  });
}
async function end(signal) {
  const ended = new Promise((resolve) => daemon.once("exit", resolve));
  daemon.kill(signal);
  await ended;
}

const file = (name) => join(folder, name);
feed("target", file("wanted.jsonl"), "postgresql-doc", "python-doc");
feed("target", file("databases.jsonl"), "postgresql-doc");
feed("target", file("python.jsonl"), "python-doc", "python-stdlib");
feed("topic", bootstrap, topic, 4);
const sample = new URL("../../src/cli/demo/sample.jsonl.zst", import.meta.url).pathname;
const fit = (model, ...targets) => {
  const words = ["fit", "--target", ...targets, "--raw", sample, "--keep-ngrams", "2000", "--out", file(model)];
  execFileSync(winnowd, words, { stdio: "ignore" });
};
fit("model.wnw", file("wanted.jsonl"));
const port = await freePort();
const base = `http://127.0.0.1:${port}`;
const configure = (pipeline, model, more = "") => writeFileSync(file("winnowd.toml"), `
pipeline.name = "${pipeline}"
kafka.bootstrap = "${bootstrap}"
kafka.topics = ["${topic}"]
kafka.group = "${topic}-${pipeline}"
kafka.instance_id = "winnowd-0"
model.path = "${folder}/${model}"
selection.fraction = 0.1
selection.length_normalise = true
selection.temperature = 0.2
selection.sources = { python-doc = 0.3 }
window.max_documents = 500
window.idle_timeout = "1s"
shard.max_age = "2s"
sink.url = "${folder}/out-${pipeline}"
catalog.url = "sqlite://${folder}/catalog.db"
http.listen = "127.0.0.1:${port}"
${more}
`);
configure("page", "model.wnw");

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
let allowed = [];
const complaints = [];
const open = async (options) => {
  const context = await browser.newContext({ viewport: DESKTOP, ...options });
  const page = await context.newPage();
  page.on("request", (request) => {
    const isOurs = request.url().startsWith(`${base}/`) && !request.url().includes(TOKEN);
    if (!isOurs) complaints.push(`request of ${request.url()}`);
  });
  page.on("pageerror", (problem) => complaints.push(`error: ${problem}`));
  page.on("console", (message) => {
    const text = `${message.type()}: ${message.text()}`;
    if (["error", "warning"].includes(message.type()) && !allowed.some((part) => text.includes(part))) complaints.push(text);
  });
  page.setDefaultTimeout(DEADLINE_MS);
  await page.goto(`${base}/`);
  return page;
};
const shows = (page, what) => page.waitForFunction((what) => document.body.innerText.includes(what), what);
const isState = (page, state) => page.waitForFunction((state) => document.getElementById("state").textContent === state, state);
const picture = async (page, name, options = {}) => {
  if (!pngs) return;
  await page.evaluate(() => window.scrollTo(0, 0));
  await page.screenshot({ path: join(pngs, `${name}.png`), ...options });
};
async function isAccessible(page, where) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run());
  const bad = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const found = bad.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join("; ")}`);
  assert.deepEqual(found, [], `axe-core, ${where}`);
}
const sumOf = (text, name) =>
  text.split("\n").filter((line) => line.startsWith(name)).reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
const tell = (what) => console.log(`page: ${what}`);

async function justStarted() {
  const page = await open();
  await shows(page, "No window has closed yet.");
  await isState(page, "ready");
  await shows(page, `${topic}/3`);
  await isAccessible(page, "just started");
  await picture(page, "empty");
  await page.context().close();
  tell("just started: says what is not there yet");
}

const status = () => fetch(`${base}/status`).then((answer) => answer.json());
const decided = (n) => waitFor(`${n} records to be decided`, async () => (await status()).totals.n_records === n);

async function numbers(n) {
  const page = await open();
  await decided(n);
  // Everything stands still now: what is not yet the same in all places soon is.
  await soon(() => sameNumbers(page, n));
  tell(`numbers: those of /status and /metrics, over ${n} records`);
  return page;
}

async function sameNumbers(page, n) {
  const said = await status();
  const { totals, sources, shards } = said;
  assert.notEqual(said.weights.length, 0);
  const metrics = await (await fetch(`${base}/metrics`)).text();
  const whole = (number) => new Intl.NumberFormat("en").format(number);
  const flow = await page.locator("#flow").innerText();
  assert.equal(sumOf(metrics, 'winnowd_catalog_documents{decision="selected"}'), totals.n_selected);
  assert.equal(sumOf(metrics, "winnowd_consumed_records_total"), n);
  const { n_selected, n_rejected, n_shards } = totals;
  for (const text of [`${whole(n_selected)} in total`, `${whole(n)} records so far`, `${whole(n_rejected)} rejected`, `${whole(n_shards)} shards`]) {
    assert.ok(flow.includes(text), `${text} is not in: ${flow}`);
  }
  assert.equal(await page.locator("[data-of=lag]").innerText(), whole(sumOf(metrics, "winnowd_lag_records{")));
  const rows = await page.locator("#sources tbody tr").evaluateAll((lines) =>
    lines.map((line) => [...line.cells].slice(0, 3).map((cell) => cell.textContent)));
  const expected = sources.sources.map(({ source, documents, selected }) => [source, whole(documents), whole(selected)]);
  if (sources.other_documents > 0) expected.push(["(all others)", whole(sources.other_documents), whole(sources.other_selected)]);
  assert.deepEqual(rows, expected);
  assert.equal(await page.locator("#shards tbody tr").count(), shards.length);
  assert.ok((await page.locator("#shards").innerText()).includes(said.last_shard.replace("shards/", "")));
  const published = await page.locator("#partitions tbody tr").evaluateAll((lines) =>
    lines.reduce((sum, line) => sum + Number(line.cells[5].textContent.replaceAll(",", "")), 0));
  assert.equal(published, said.partitions.reduce((sum, partition) => sum + partition.published, 0));
  const weights = await page.locator("#plot-weights .plot").getAttribute("aria-label");
  const sum = (values) => whole(values.reduce((a, b) => a + b, 0));
  assert.ok(weights.includes(`${sum(said.weights[0].selected)} of ${sum(said.weights[0].candidates)} selected`), weights);
}

async function attack(page) {
  await soon(async () => assert.ok((await page.locator("#sources").innerText()).includes(ATTACK), "the source is not shown as text"));
  assert.equal(await page.locator("main img").count(), 0);
  await soon(async () => assert.match(await page.title(), /^ready · page · winnowd$/));
  tell(`a source named ${ATTACK} is text`);
}

async function looks(page) {
  const grounds = new Set();
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    for (const [name, viewport] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
      await page.setViewportSize(viewport);
      await page.waitForFunction((width) => [...document.querySelectorAll(".uplot")].every((plot) => plot.offsetWidth <= width), viewport.width);
      const [content, seen] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
      assert.ok(content <= seen, `${name}: ${content} px of content, ${seen} px of room`);
      await isAccessible(page, `${name}, ${colorScheme}`);
      await picture(page, `${name}-${colorScheme}`, { fullPage: name === "phone" });
    }
    grounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
  }
  assert.equal(grounds.size, 2, "one colour for both schemes");
  await page.setViewportSize(DESKTOP);
  tell("light, dark, desktop, phone: nothing runs over, axe-core finds nothing serious");
}

async function keyboard(page) {
  await page.evaluate(() => document.activeElement.blur());
  const met = [];
  for (;;) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const { activeElement: at } = document;
      if (at === document.body) return null;
      const all = [...document.querySelectorAll("*")];
      return [all.indexOf(at), at.getAttribute("aria-labelledby") ?? at.getAttribute("href") ?? at.id];
    });
    if (at === null || met.some(([place]) => place === at[0])) break;
    met.push(at);
  }
  const places = met.map(([place]) => place);
  assert.deepEqual(places, [...places].sort((a, b) => a - b), "the keyboard jumps");
  const names = met.map(([, name]) => name);
  for (const name of ["#main", "sources-title", "partitions-title", "messages-title", "shards-title", "/metrics", "/readyz"]) {
    assert.ok(names.includes(name), `the keyboard does not reach ${name}: ${names}`);
  }
  assert.equal(names[0], "#main");
  tell(`keyboard: ${names.length} places, in the order of the page`);
}

async function storeFails(page, n) {
  const shards = file("out-page/shards");
  renameSync(shards, `${shards}-away`);
  writeFileSync(shards, "a file where the folder was");
  feed("send", bootstrap, topic, 600);
  await shows(page, "Publication waits: upload fails and is tried again.");
  await isState(page, "not ready");
  await shows(page, "store cannot be written to");
  // A warning comes only once the failure has lasted a moment.
  await page.locator("#messages td", { hasText: "warning" }).first().waitFor();
  await isAccessible(page, "a store that fails");
  await picture(page, "stalled");
  rmSync(shards);
  renameSync(`${shards}-away`, shards);
  await isState(page, "ready");
  await decided(n + 600);
  await page.waitForFunction(() => document.getElementById("notices").innerText === "");
  tell("a store that fails: says so until it works");
}

async function killed(page, n) {
  allowed = ["net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE", "net::ERR_INCOMPLETE_CHUNKED_ENCODING"];
  await end("SIGKILL");
  await isState(page, "no answer");
  await shows(page, "No answer from the daemon since ");
  await page.locator("body.gone").waitFor();
  await isAccessible(page, "the daemon gone");
  await picture(page, "gone");
  await start();
  await isState(page, "ready");
  await decided(n);
  await shows(page, `${new Intl.NumberFormat("en").format((await status()).totals.n_selected)} in total`);
  await page.locator("body:not(.gone)").waitFor();
  allowed = [];
  await page.reload();
  await isState(page, "ready");
  await page.waitForFunction(() => /to publish: now 0, least 0/.test(document.querySelector("#plot-lag .plot").ariaLabel));
  tell("kill -9: says since when, and goes on by itself");
}

async function token(page) {
  allowed = ["net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE", "401 (Unauthorized)"];
  await end("SIGTERM");
  await start({ WINNOWD_HTTP__TOKEN: TOKEN });
  await isState(page, "locked");
  await shows(page, "only to those who know its token");
  await page.locator("#content").waitFor({ state: "hidden" });
  await isAccessible(page, "locked");
  await picture(page, "locked");
  await page.getByLabel("Token of this daemon").fill("a token of another daemon");
  await page.keyboard.press("Enter");
  await shows(page, "That is not the token of this daemon.");
  await page.getByLabel("Token of this daemon").fill(TOKEN);
  await page.keyboard.press("Enter");
  await isState(page, "ready");
  await page.locator("#content").waitFor({ state: "visible" });
  assert.equal(page.url(), `${base}/`);
  allowed = ["401 (Unauthorized)"];
  await page.getByRole("button", { name: "Forget the token" }).click();
  await isState(page, "locked");
  await end("SIGTERM");

  allowed = ["403 (Forbidden)"];
  await start({ WINNOWD_HTTP__LISTEN: `0.0.0.0:${port}` });
  await page.reload();
  await isState(page, "closed");
  await shows(page, "WINNOWD_HTTP__TOKEN");
  await page.locator("#token").waitFor({ state: "hidden" });
  await isAccessible(page, "closed");
  await end("SIGTERM");
  tell("a token: asked for, refused, taken, forgotten; in no address; where there is none, what to do");
}

async function severalTargets(n) {
  fit("two.wnw", `databases=${file("databases.jsonl")}`, `python=${file("python.jsonl")}`);
  feed("topic", bootstrap, `${topic}-losses`, 1);
  configure("two", "two.wnw", `feedback.topic = "${topic}-losses"`);
  allowed = [];
  await start();
  const page = await open();
  await shows(page, "No trainer has reported yet.");
  await decided(n);
  feed("report", bootstrap, `${topic}-losses`, n);
  await waitFor("losses to be counted", async () => (await status()).feedback.learnt?.losses.counted > 0);
  await soon(() => sameTargets(page));
  await isAccessible(page, "several targets and feedback");
  await picture(page, "targets", { fullPage: true });
  await end("SIGTERM");
  tell("several targets and feedback: each with its numbers");
}

async function sameTargets(page) {
  const { targets, weights, feedback: { learnt } } = await status();
  assert.deepEqual(targets.map(({ target }) => target), ["databases", "python"]);
  const whole = (number) => new Intl.NumberFormat("en").format(number);
  assert.ok((await page.locator("#feedback").innerText()).includes(whole(learnt.losses.counted)));
  const rows = await page.locator("#targets tbody tr").evaluateAll((lines) =>
    lines.map((line) => [...line.cells].slice(0, 2).map((cell) => cell.textContent)));
  assert.deepEqual(rows, targets.map(({ target, n_selected }) => [target, whole(n_selected)]));
  const firsts = await page.locator("#feedback-sources tbody tr td:first-child").allInnerTexts();
  assert.deepEqual(firsts, learnt.sources.map(({ source }) => source));
  const bounds = ({ low, high }) => `from ${low.toFixed(3)} to ${high.toFixed(3)} nats`.replaceAll("-", "−");
  await page.getByLabel("Target", { exact: true }).selectOption("databases");
  const told = () => page.locator("#plot-weights .plot").getAttribute("aria-label");
  assert.ok((await told()).includes(bounds(weights[0])), await told());
  await page.getByLabel("Target", { exact: true }).selectOption("python");
  assert.ok((await told()).includes(bounds(weights[1])), await told());
}

/** For the pictures of the README. */
async function underLoad() {
  configure("page", "model.wnw");
  await start();
  const feeding = spawn(python, [FEED, "send", bootstrap, topic, "36000", "--rate", "300"], { stdio: "inherit" });
  const [desktop, phone] = [await open(), await open({ viewport: PHONE, deviceScaleFactor: 2 })];
  await pause(100_000);
  await picture(desktop, "busy-desktop");
  await picture(phone, "busy-phone");
  await desktop.emulateMedia({ colorScheme: "dark" });
  await picture(desktop, "busy-desktop-dark", { fullPage: true });
  const fed = new Promise((resolve) => feeding.once("exit", resolve));
  feeding.kill();
  await fed;
  await desktop.context().close();
  await phone.context().close();
}

const N = 3000;
try {
  await start();
  await justStarted();
  feed("send", bootstrap, topic, N, "--source", ATTACK);
  const page = await numbers(N);
  await attack(page);
  await looks(page);
  await keyboard(page);
  await storeFails(page, N);
  await killed(page, N + 600);
  await token(page);
  await page.context().close();
  await severalTargets(N + 600);
  if (pngs) await underLoad();
  assert.deepEqual(complaints, []);
  tell("the browser has no complaints, and asked nobody else");
} finally {
  await browser.close();
  if (daemon !== undefined && daemon.exitCode === null && daemon.signalCode === null) daemon.kill("SIGKILL");
  if (existsSync(folder)) rmSync(folder, { recursive: true, force: true });
}
