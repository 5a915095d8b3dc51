// One step of a turn: its start, its end once that came, and what stands below it.

import { instant } from "./format.js";
import { paceOf, usualOf } from "./pace.js";
import { CHECKPOINTS, ENDS, STARTS, known } from "./words.js";

export class Step {
  constructor(turn, checkpoint) {
    this.turn = turn;
    this.start = checkpoint;
    this.end = null;
    this.parent = null;
    this.children = [];
    this.element = null; // its row, while that is drawn
    this.folded = false;
    this.at = instant(checkpoint.created_at);
    this.endAt = null;
    this.pace = ""; // how it stands to what is usual: see pace.js
  }

  close(checkpoint) {
    this.end = checkpoint;
    this.endAt = instant(checkpoint.created_at);
  }

  get running() {
    return this.end === null && STARTS.has(this.start.checkpoint) && !this.turn.ended;
  }

  // Milliseconds from..to. A check has one checkpoint, made when it was over: it took the time
  // since the checkpoint before it. Anything else without an end is a point.
  get span() {
    const took = this.start.metadata?.duration_ms;
    if (this.endAt !== null) return [this.at, this.endAt];
    if (this.running) return [this.at, null];
    if (known(CHECKPOINTS, this.start.checkpoint)?.kind === "check") {
      return [Number.isFinite(took) ? this.at - took : this.parent?.at ?? this.at, this.at];
    }
    if (STARTS.has(this.start.checkpoint)) return [this.at, Math.max(this.at, this.turn.lastAt)];
    return Object.hasOwn(ENDS, this.start.checkpoint) && Number.isFinite(took) ? [this.at - took, this.at] : [this.at, this.at];
  }

  get depth() {
    let depth = 0;
    for (let step = this.parent; step; step = step.parent) depth += 1;
    return depth;
  }

  // The outermost step this one is folded into, or null.
  get foldedInto() {
    let outermost = null;
    for (let step = this.parent; step; step = step.parent) if (step.folded) outermost = step;
    return outermost;
  }

  isBelow(other) {
    for (let step = this; step; step = step.parent) if (step === other) return true;
    return false;
  }

  get usual() {
    return usualOf(this.turn.tree.usual, this.start);
  }

  paceAt(now) {
    const [from, to] = this.span;
    return this.end || this.running ? paceOf(this.usual, (to ?? now) - from) : "";
  }

  // What it says with all that is below it: how many steps, of them failed, from when to when (null:
  // something still runs), tokens, cost. Walks all of it.
  get rollUp() {
    const sum = { steps: -1, failed: 0, from: Infinity, to: 0, tokens: 0, cost: 0 };
    const stack = [this];
    while (stack.length) {
      const step = stack.pop(), [from, to] = step.span;
      sum.steps += 1;
      sum.failed += step.failed ? 1 : 0;
      sum.from = Math.min(sum.from, from);
      sum.to = to === null || sum.to === null ? null : Math.max(sum.to, to);
      sum.tokens += tokensOf(step.end ?? step.start);
      sum.cost += costOf(step.end ?? step.start);
      for (const child of step.children) stack.push(child);
    }
    return sum;
  }

  get failed() {
    const status = (this.end ?? this.start).metadata?.status;
    const refuses = known(CHECKPOINTS, this.start.checkpoint)?.kind === "check" && status === "failed";
    const broken = this.start.checkpoint === "error" && this.start.metadata?.code !== "stopped";
    return status === "error" || (status === "failed" && !refuses) || broken;
  }
}

export const before = (a, b) => a.at < b.at || (a.at === b.at && a.start.flow_id < b.start.flow_id);

const number = (value) => (Number.isFinite(Number(value)) ? Number(value) : 0);

export const tokensOf = ({ checkpoint, metadata }) =>
  checkpoint === "llm_complete" ? number(metadata?.input_tokens) + number(metadata?.output_tokens) : 0;
export const costOf = ({ checkpoint, metadata }) => (checkpoint === "llm_complete" ? number(metadata?.cost_usd) : 0);
