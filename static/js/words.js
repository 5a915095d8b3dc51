// What a checkpoint is called, looks like and says, on every page. The same words stand in
// flows/words.py for readers without JavaScript; a browser test holds the two tables equal.

import { count, duration, hour, instant, money, plural, short } from "./format.js";

// kind says the hue (check, model, tool); labels are said by state.
export const CHECKPOINTS = {
  auth_check: { icon: "key", kind: "check", ok: "Signed in", refused: "Not let in" },
  block_check: { icon: "shield_person", kind: "check", ok: "Not blocked", refused: "Blocked" },
  usage_check: { icon: "speed", kind: "check", ok: "Within limits", refused: "Over limit" },
  mcp_permission_check: { icon: "policy", kind: "check", ok: "Tool servers offered", refused: "No tool servers offered" },
  tool_filter: { icon: "filter_alt", kind: "check", ok: "Tools offered", refused: "No tools offered" },
  llm_thinking: { icon: "neurology", kind: "model", running: "Model thinking", open: "Model did not finish" },
  llm_complete: { icon: "neurology", kind: "model", ok: "Model answered", failed: "Model failed", cancelled: "Model stopped" },
  tool_call: { icon: "build", kind: "tool" },
  tool_result: { icon: "build", kind: "tool" },
  tool_approval: { icon: "front_hand", kind: "check" },
  client_result: { icon: "build", kind: "tool" },
  error: { icon: "error", kind: "error", failed: "Failed" },
  flow_end: { icon: "flag", kind: "end" },
};
export const UNKNOWN = { icon: "help_center", kind: "other" };

// The end checkpoint of a step and the start it closes.
export const ENDS = { llm_complete: "llm_thinking", tool_result: "tool_call" };
export const STARTS = new Set(Object.values(ENDS));

// A checkpoint may have any name, "constructor" too: only what stands in a table itself is in it.
export const known = (table, name) => (Object.hasOwn(table, name) ? table[name] : undefined);

export const OUTCOMES = {
  completed: { icon: "check_circle", state: "ok", label: "Completed" },
  refused: { icon: "block", state: "refused", label: "Refused" },
  failed: { icon: "error", state: "failed", label: "Failed" },
  disconnected: { icon: "logout", state: "left", label: "Left" },
  stopped: { icon: "stop_circle", state: "refused", label: "Stopped" },
  abandoned: { icon: "link_off", state: "left", label: "Abandoned" },
};

// Codes of refusals and errors, in words.
export const REASONS = {
  inactive: "the account is not active",
  expired: "the token has expired",
  revoked: "the token was revoked",
  user_blocked: "blocked",
  usage_limit: "over the limit",
  too_many_turns: "too many turns at once",
  too_many_refusals: "too many refused questions",
  llm_failed: "the model failed",
  llm_timeout: "the model did not answer in time",
  llm_rate_limited: "the model has too much to do",
  llm_unavailable: "the model cannot be reached",
  context_too_long: "too long for the model",
  content_refused: "the model declined to answer",
  model_not_found: "there is no such model for this user",
  tool_failed: "a tool failed",
  too_many_rounds: "too many rounds of tools",
  too_many_tool_calls: "too many tools at once",
  internal_error: "something went wrong",
  server_stopping: "the server was restarted",
  stopped: "stopped",
};
export const reason = (code) => known(REASONS, code) ?? short(code).replaceAll("_", " ");

const amount = (value) => (Number.isFinite(value) ? value : 0);
const isText = (value) => typeof value === "string" && value.trim() !== "";
const join = (...facts) => facts.filter(isText).join(" · ");

// One row: `start` and, for a step with two checkpoints, its `end`; `over` when the turn has ended.
// Gives {icon, kind, state, label, facts}; state: running, ok, refused, failed, cancelled, open, left.
export function describe({ start: first, end: second, over }) {
  const start = withFacts(first), end = second && withFacts(second);
  const last = end ?? start;
  const { icon, kind, ...labels } = known(CHECKPOINTS, start.checkpoint) ?? UNKNOWN;
  const state = stateOf(start, end, over);
  const said = (known(CHECKPOINTS, last.checkpoint) ?? UNKNOWN)[state] ?? labels[state];
  const write = known(WORDS, start.checkpoint) ?? WORDS.other;
  return { icon, kind, state, label: said ?? start.checkpoint, facts: "", ...write(start, end, state) };
}

// Metadata may be null, or anything else JSON knows: then it has no facts.
function withFacts(checkpoint) {
  const { metadata } = checkpoint;
  return metadata !== null && typeof metadata === "object" && !Array.isArray(metadata) ? checkpoint : { ...checkpoint, metadata: {} };
}

function stateOf(start, end, over) {
  if (STARTS.has(start.checkpoint) && !end) return over ? "open" : "running";
  if (start.checkpoint === "error") return start.metadata?.code === "stopped" ? "refused" : "failed";
  if (start.checkpoint === "flow_end") return known(OUTCOMES, start.metadata?.outcome)?.state ?? "left";
  const status = (end ?? start).metadata?.status;
  if (status === "error") return "failed";
  if (status === "failed") return known(CHECKPOINTS, start.checkpoint)?.kind === "check" ? "refused" : "failed";
  if (status === "cancelled") return "cancelled";
  return status === "declined" || status === "expired" ? "refused" : "ok";
}

const WORDS = {
  auth_check({ metadata: { method, token, token_name, reason: why } = {} }, _, state) {
    const name = token ?? token_name;
    const by = method === "session" ? "browser session" : method === "token" ? (isText(name) ? `token “${short(name, 40)}”` : "token") : "";
    return { facts: state === "refused" ? join(why && reason(why), by) : by };
  },
  block_check({ metadata }, _, state) {
    return { facts: state === "refused" ? short(metadata?.message ?? metadata?.reason ?? "") : "" };
  },
  usage_check({ metadata }, _, state) {
    return { facts: usage(metadata ?? {}, state === "refused") };
  },
  mcp_permission_check: tools,
  tool_filter: tools,
  llm_thinking(start, end, state) {
    const asked = start.metadata ?? {}, answer = end?.metadata ?? {};
    const round = asked.round > 1 ? `round ${asked.round}` : "";
    const attempt = asked.attempt > 1 ? `attempt ${asked.attempt}` : "";
    const replaced = isText(asked.instead_of) ? `instead of ${short(asked.instead_of, 60)}` : "";
    const failure = answer.error ?? (isText(answer.code) ? reason(short(answer.code)) : "");
    // the model's name stands last: what a narrow panel cuts off
    if (state === "running" || state === "open") return { facts: join(round, attempt, replaced, asked.model) };
    const chose = state === "ok" && /tool/.test(answer.finish_reason ?? "");
    const tokens = amount(answer.input_tokens) + amount(answer.output_tokens);
    return {
      label: chose ? "Model chose tools" : CHECKPOINTS.llm_complete[state],
      facts: join(
        state === "failed" ? short(failure) : "",
        tokens ? `${count(tokens)} tok` : "",
        answer.cost_usd ? money(answer.cost_usd) : "",
        Number.isFinite(answer.ttft_ms) ? `first token ${duration(answer.ttft_ms)}` : "",
        round,
        attempt,
        replaced,
        asked.model,
      ),
    };
  },
  llm_complete: (start, _, state) => WORDS.llm_thinking({ metadata: {} }, start, state),
  tool_call(start, end, state) {
    const { tool, arguments: given } = start.metadata ?? {};
    const why = state === "failed" ? end?.metadata?.error ?? end?.metadata?.message ?? "failed" : "";
    const handed = state === "ok" && end?.metadata?.status === "handed_over" ? "handed to the client" : "";
    const left = { open: "did not finish", cancelled: "cancelled" }[state] ?? handed;
    return { label: short(tool ?? "tool", 60), facts: join(short(text(why), 120), left, short(given === undefined ? "" : text(given), 120)) };
  },
  tool_result: (start, _, state) => WORDS.tool_call({ metadata: { tool: start.metadata?.tool } }, start, state),
  tool_approval({ metadata }) {
    const { status, tool, expires_in_s: seconds } = metadata ?? {};
    const within = status === "started" && Number.isFinite(seconds) ? `within ${duration(seconds * 1000)}` : "";
    return { label: known(APPROVALS, status) ?? "The user is asked for his yes", facts: join(short(tool ?? "", 60), within) };
  },
  // what a tool of the client answered, to a call of a turn before
  client_result({ metadata: { tool, result } = {} }) {
    return { label: short(tool ?? "tool", 60), facts: join("the client's result", short(text(result ?? ""), 120)) };
  },
  error({ metadata: { code, message, reason: why, ...data } = {} }) {
    if (code === "stopped") {
      const by = stopper(data);
      return { label: by ? `Stopped by ${by}` : capital(REASONS.stopped), facts: join(isText(why) ? short(why) : "", isText(message) ? `“${short(message)}”` : "") };
    }
    const label = code && known(REASONS, code) ? capital(REASONS[code]) : "Failed";
    return { label, facts: join(short(message ?? ""), label === "Failed" ? code : "") };
  },
  flow_end({ metadata = {} }) {
    const { outcome, duration_ms: took } = metadata, by = stopper(metadata);
    const label = outcome === "stopped" && by ? `Stopped by ${by}` : known(OUTCOMES, outcome)?.label ?? "Ended";
    const facts = known({ refused: "no model was called", abandoned: "the process serving it went away", disconnected: "the client went away" }, outcome);
    return { label, facts: join(facts ?? "", took != null && outcome !== "refused" ? `after ${duration(took)}` : "") };
  },
  other({ checkpoint, metadata }) {
    const facts = Object.entries(metadata ?? {}).filter(([, value]) => ["string", "number", "boolean"].includes(typeof value));
    return { label: short(checkpoint, 60), facts: short(facts.map(([key, value]) => `${key} ${value}`).join(" · ")) };
  },
};

const APPROVALS = {
  approved: "The user said yes",
  declined: "The user said no",
  expired: "The user did not answer in time",
  cancelled: "Nobody waits for the user any more",
};

// Who stopped the turn, by name; "" when that is not known or not for this reader.
export const stopper = ({ stopped_by_name: name, stopped_by: by }) => short([name, by].find(isText) ?? "", 60);

function tools({ checkpoint, metadata = {} }, _, state) {
  const { offered, total, withheld } = metadata;
  const names = (list) => (Array.isArray(list) ? list.map((one) => (one?.tool || one?.server ? `${one.tool || one.server} (${one.reason || "withheld"})` : String(one))) : []);
  const many = (list) => (Array.isArray(list) ? list.length : list);
  const all = many(total) ?? (Array.isArray(withheld) && offered !== undefined ? many(offered) + withheld.length : undefined);
  const numbers = offered === undefined ? "" : all === undefined ? plural(many(offered), checkpoint === "mcp_permission_check" ? "server" : "tool") : `${many(offered)} of ${all}`;
  return { facts: join(numbers, names(withheld).length ? "without " + short(names(withheld).join(", ")) : "", state === "refused" ? short(metadata.reason ?? "") : "") };
}

const LIMITS = {
  requests_per_minute: [count, "requests", "this minute"],
  tokens_per_minute: [count, "tokens", "this minute"],
  requests_per_month: [count, "requests", "this month"],
  tokens_per_month: [count, "tokens", "this month"],
  cost_usd_per_month: [money, "", "this month"],
  requests_per_day: [count, "requests", "today"],
  tokens_per_day: [count, "tokens", "today"],
  cost_usd_per_day: [money, "", "today"],
  turns_at_once: [count, "turns at once", ""],
};

// The limit that was reached, or how many of today's requests this one was.
function usage({ used, limit, limit_name: name = "requests_per_day", resets_at: resets, reason: why }, over) {
  const [write, unit, when] = known(LIMITS, name) ?? [count, String(name), ""];
  if (!Number.isFinite(used)) return isText(why) ? short(why) : "";
  const numbers = Number.isFinite(limit) ? `${write(used)} of ${write(limit)}` : write(used);
  const first = [numbers, unit, when].filter(Boolean).join(" ");
  return over && when && isText(resets) ? `${first}, free again ${(when === "this month" ? moment : hour)(instant(resets))}` : first;
}

// Arguments come as the JSON the model wrote; cut off or broken, they are shown as they are.
export function text(value) {
  if (typeof value !== "string") return inShort(value);
  try {
    const read = JSON.parse(value);
    return read !== null && typeof read === "object" ? inShort(read) : value;
  } catch {
    return value;
  }
}

// {"office": "Oslo", "year": 2026} -> office “Oslo”, year 2026
function inShort(value) {
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) return value.map(inShort).join(", ");
  return Object.entries(value).map(([key, one]) => `${key} ${typeof one === "string" ? `“${one}”` : inShort(one)}`).join(", ");
}

const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);
