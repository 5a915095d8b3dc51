// What is usual for a step, and whether this one is slower. The page gives
//   usual = { llm_thinking: { model: [p50, p95] }, tool_call: { tool: [p50, p95] } }   in milliseconds
// of what the same model or tool took lately. Where that knows too little, nothing is claimed.

import { duration } from "./format.js";

export const LEAST_MS = 500; // below it nobody waits: a tool of 2 ms that took 6 is no news
export const FAR = 3; // so many times p95 is far slower

const NAMED_BY = { llm_thinking: "model", tool_call: "tool" };

export function usualOf(usual, { checkpoint, metadata }) {
  const kind = Object.hasOwn(NAMED_BY, checkpoint) ? usual?.[checkpoint] : null;
  const name = kind && metadata?.[NAMED_BY[checkpoint]];
  if (typeof name !== "string" || !Object.hasOwn(kind, name)) return null;
  const [p50, p95] = kind[name];
  return Number.isFinite(p50) && Number.isFinite(p95) ? { p50, p95 } : null;
}

// "" as usual, "slow" longer than 95 of 100 took, "far" more than three times as long as those.
export function paceOf(usual, ms) {
  if (!usual || !(ms >= LEAST_MS) || ms <= usual.p95) return "";
  return ms > FAR * usual.p95 ? "far" : "slow";
}

export const PACES = {
  "": { icon: "", words: "" },
  slow: { icon: "hourglass_top", words: "slower than usual" },
  far: { icon: "warning", words: "far slower than usual" },
};

export const usually = ({ p50, p95 }) => `usual ${duration(p50)}, 95 of 100 within ${duration(p95)}`;
