// Asks the daemon how it is, shows the answer, and says so when there is none.

import { clock } from "/page/format.js";
import { setNotices, setState, show } from "/page/view.js";

/** The rhythm of the daemon's own samples. */
const EVERY_MS = 2000;
/** A daemon that is asked for the first time after so long is as good as gone. */
const PATIENCE_MS = 6000;
/** As many as the daemon keeps: ten minutes. */
const MAX_SAMPLES = 300;
const TOKEN = "winnowd-token";

const element = (id) => document.getElementById(id);

/** Samples of the flow, oldest first; each with the process that it is of, since counters begin anew with that. */
let samples = [];
/** Since when there was no answer. */
let goneSince = null;
let isBehind = true;
let timer = null;

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  const answer = await fetch(path, { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (answer.status === 401 || answer.status === 403) throw new Refused(answer.status, await answer.text());
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

/** Takes what the daemon remembers of this process, and keeps what was seen of those before. */
async function catchUp() {
  const { started_at_ms: process, samples: remembered } = await ask("/status/history");
  const before = samples.filter((sample) => sample.process !== process);
  samples = [...before, ...remembered.map((sample) => ({ ...sample, process }))].slice(-MAX_SAMPLES);
}

async function look() {
  if (isBehind) await catchUp();
  const status = await ask("/status");
  const last = samples.at(-1);
  if (last !== undefined && last.process !== status.started_at_ms) await catchUp();
  samples = [...samples, { ...status.flow, process: status.started_at_ms }].slice(-MAX_SAMPLES);
  isBehind = false;
  goneSince = null;
  unlock();
  show(status, samples);
}

function lock(refused) {
  const isClosed = refused.status === 403;
  const hadToken = sessionStorage.getItem(TOKEN) !== null;
  element("content").hidden = true;
  element("locked").hidden = false;
  element("token-form").hidden = isClosed;
  setNotices([]);
  setState("warn", isClosed ? "closed" : "locked");
  let why = "This daemon tells sources and shards only to those who know its token (http.token).";
  if (isClosed) {
    why = `The daemon answers: ${refused.message.trim()}. Give it a token (the environment variable WINNOWD_HTTP__TOKEN, at least 16 ` +
      "characters; openssl rand -hex 32 makes one) and start it again, or let it listen on 127.0.0.1 and come through a tunnel " +
      "(ssh -L, kubectl port-forward).";
  } else if (hadToken) {
    why = "That is not the token of this daemon.";
  }
  element("locked-why").textContent = why;
  if (!isClosed && hadToken) element("token").focus();
}

function unlock() {
  document.body.classList.remove("gone");
  element("locked").hidden = true;
  element("content").hidden = false;
  element("forget").hidden = sessionStorage.getItem(TOKEN) === null;
}

function gone() {
  goneSince ??= Date.now();
  isBehind = true;
  document.body.classList.add("gone");
  setState("bad", "no answer");
  const shown = samples.length > 0 ? " What is shown is from then." : "";
  setNotices([["bad", `No answer from the daemon since ${clock(goneSince)}.${shown} It is asked again all the time.`]]);
}

async function round() {
  clearTimeout(timer);
  try {
    // Nobody looks; what is missed is remembered by the daemon.
    if (document.hidden) isBehind = true;
    else await look();
  } catch (problem) {
    if (problem instanceof Refused) {
      lock(problem);
      sessionStorage.removeItem(TOKEN);
      isBehind = true;
      // Who was asked for a token answers when there is one.
      if (problem.status === 401) return;
    } else {
      gone();
      if (!(problem instanceof TypeError) && problem.name !== "TimeoutError") console.error(problem);
    }
  }
  timer = setTimeout(round, EVERY_MS);
}

element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, element("token").value.trim());
  element("token").value = "";
  round();
});
element("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && element("locked").hidden) round();
});
round();
