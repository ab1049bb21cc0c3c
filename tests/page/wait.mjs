// Waiting for what the page shows sooner or later.

import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";

/** Far beyond what anything here takes: it ends what would never happen, and decides nothing. */
export const DEADLINE_MS = 240_000;

/** What must be so soon, as the page looks every two seconds: tries again until it is, and says in the end what was not. */
export async function soon(holds) {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    try {
      return await holds();
    } catch (problem) {
      if (!(problem instanceof assert.AssertionError) || Date.now() > deadline) throw problem;
    }
    await pause(50);
  }
}
