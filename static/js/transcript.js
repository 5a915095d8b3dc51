// What was said in a turn: question, tool calls, answer, and why there is none; from its checkpoints
// alone, so as far as they were kept. flows/transcript.py writes the same lines without JavaScript.
//
//   const transcript = new Transcript({ onchoose: (flowId) => … })
//   place.append(transcript.element); transcript.draw(checkpoints); transcript.mark(flowId)

import { button, element, icon } from "./dom.js";
import { instant } from "./format.js";
import { describe, text } from "./words.js";

const PREVIEW_CHARACTERS = 200; // as flows/capture.py keeps them
const FIRST_LINES = 300; // of a turn of thousands of tools; the others on demand
const LEFT = new Set(["disconnected", "stopped", "abandoned"]);
const NO_TEXT = { asked: "Question not kept", answer: "Answer not kept" };
const ICONS = { asked: "chat_bubble", answer: "neurology", tool: "build", problem: "error", end: "flag" };

// [{flow_id, part, label, text, state, result, cut}], from the checkpoints of one turn in order.
export function linesOf(checkpoints) {
  const lines = [], calls = new Map();
  let over = false;
  for (const one of checkpoints) {
    const call = one.checkpoint === "tool_result" ? calls.get(one.parent_id) : null;
    if (call) finish(call, one.metadata ?? {});
    else {
      const line = lineOf(one);
      if (line) lines.push(line);
      if (one.checkpoint === "tool_call") calls.set(one.flow_id, line);
    }
    over ||= one.checkpoint === "flow_end";
  }
  for (const call of over ? calls.values() : []) {
    if (call.state === "running") [call.state, call.result] = ["open", "did not finish"];
  }
  return lines;
}

function lineOf(checkpoint) {
  const { checkpoint: name, flow_id: flowId } = checkpoint, data = checkpoint.metadata ?? {};
  if (name === "auth_check" && data.status !== "failed") return spoken("asked", flowId, data, "question", "Question");
  if (name === "llm_complete" && isAnswer(data)) return spoken("answer", flowId, data, "answer", "Answer");
  const said = describe({ start: { ...checkpoint, metadata: data }, end: null, over: false });
  if (name === "tool_call") {
    const given = data.arguments === undefined ? "" : text(data.arguments);
    return line(flowId, "tool", said.label, given, { state: "running", cut: isCut(data, "arguments") });
  }
  if (name === "error" || (said.kind === "check" && said.state === "refused")) return line(flowId, "problem", said.label, said.facts, { state: said.state });
  if (name === "flow_end" && LEFT.has(data.outcome)) return line(flowId, "end", said.label, said.facts, { state: said.state });
  return null;
}

function line(flow_id, part, label, said, { state = "ok", cut = false } = {}) {
  return { flow_id, part, label, text: said, state, result: "", cut };
}

function spoken(part, flowId, data, key, label) {
  const said = data[key];
  if (typeof said !== "string" || said === "") return line(flowId, part, label, "", { state: "missing" });
  return line(flowId, part, label, said, { cut: isCut(data, key) });
}

// Whether a round of the model said something: with tools it mostly says nothing.
function isAnswer(data) {
  return Boolean(data.answer) || (data.status === "ok" && !/tool/.test(data.finish_reason ?? ""));
}

function finish(call, data) {
  call.state = { error: "failed", failed: "failed", cancelled: "cancelled" }[data.status] ?? "ok";
  const key = data.error === undefined || data.error === null ? "result" : "error";
  call.result = data[key] === undefined || data[key] === null ? "" : text(data[key]);
  call.cut ||= isCut(data, key);
}

function isCut(data, key) {
  const said = data[key];
  return data._cut === true || (typeof said === "string" && said.endsWith("…") && [...said].length === PREVIEW_CHARACTERS);
}

const inOrder = (a, b) => instant(a.created_at) - instant(b.created_at) || (a.flow_id < b.flow_id ? -1 : 1);

export class Transcript {
  constructor({ onchoose, name }) {
    this.onchoose = onchoose;
    this.drawn = new Map(); // flow_id -> {line, element}
    this.most = FIRST_LINES;
    this.list = element("ol", { className: "said" });
    this.more = button("", { className: "link-button" }, () => {
      this.most = Infinity;
      this.draw(this.checkpoints);
    });
    this.note = element("p", { className: "said-note soft", text: `Only the first ${PREVIEW_CHARACTERS} characters are kept of what ends in “…”.` });
    this.more.hidden = this.note.hidden = true;
    this.element = element("section", { className: "transcript", attributes: { "aria-label": `What was said: ${name}`, tabindex: "-1" } }, this.list, this.more, this.note);
    this.list.addEventListener("click", ({ target }) => {
      const chosen = target.closest("[data-of]");
      if (chosen && getSelection().isCollapsed) this.onchoose(chosen.dataset.of);
    });
    // one of its buttons can be reached by Tab, the others by the arrows
    this.list.addEventListener("focusin", ({ target }) => this.#stopAt(target));
    this.list.addEventListener("keydown", (event) => this.#key(event));
  }

  // Draws what these checkpoints (of one turn, in any order) say; lines that are there stay.
  draw(checkpoints) {
    this.checkpoints = checkpoints;
    const lines = (this.lines = linesOf([...checkpoints].sort(inOrder)));
    const shown = lines.slice(0, this.most);
    const gone = new Set(this.drawn.keys());
    let before = null;
    for (const one of shown) {
      gone.delete(one.flow_id);
      const item = this.#item(one);
      if (before === null ? item !== this.list.firstChild : before.nextSibling !== item) before ? before.after(item) : this.list.prepend(item);
      before = item;
    }
    for (const id of gone) this.#remove(id);
    if (!this.list.querySelector('[tabindex="0"]')) this.list.querySelector(".said-step")?.setAttribute("tabindex", "0");
    this.more.hidden = shown.length === lines.length;
    this.more.textContent = `Show ${lines.length - shown.length} more`;
    this.note.hidden = !lines.some((one) => one.cut);
  }

  #item(one) {
    const known = this.drawn.get(one.flow_id), key = JSON.stringify(one);
    if (known?.key === key) return known.item;
    const item = known?.item ?? element("li", { data: { part: one.part, of: one.flow_id } });
    const old = item.firstChild, hadFocus = old !== null && old === document.activeElement;
    item.dataset.state = one.state;
    item.replaceChildren(...parts(one));
    if (old) item.firstChild.tabIndex = old.tabIndex;
    if (hadFocus) item.firstChild.focus();
    this.drawn.set(one.flow_id, { key, item });
    return item;
  }

  #remove(id) {
    this.drawn.get(id).item.remove();
    this.drawn.delete(id);
  }

  #stopAt(step) {
    this.list.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    step.setAttribute("tabindex", "0");
  }

  #key(event) {
    const item = event.target.closest("li");
    const next = { ArrowDown: item.nextElementSibling, ArrowUp: item.previousElementSibling, Home: this.list.firstChild, End: this.list.lastChild }[event.key];
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    next?.firstChild.focus();
  }

  // Shows which line a row of the tree belongs to; null: none.
  mark(flowId) {
    this.list.querySelector("[aria-current]")?.removeAttribute("aria-current");
    const at = this.drawn.has(flowId) ? -1 : this.lines.findIndex((one) => one.flow_id === flowId);
    if (at >= 0) this.#drawTo(at);
    const item = this.drawn.get(flowId)?.item;
    if (!item) return false;
    item.setAttribute("aria-current", "true");
    this.#bring(item);
    return true;
  }

  #drawTo(at) {
    this.most = at + FIRST_LINES;
    this.draw(this.checkpoints);
  }

  // Into view within the transcript alone: the page itself does not move.
  #bring(item) {
    const box = this.element, top = item.offsetTop - box.offsetTop;
    if (top < box.scrollTop) box.scrollTop = top - 8;
    else if (top + item.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + item.offsetHeight - box.clientHeight + 8;
  }
}

// The text can be marked and copied, so it is no button; the icon before it is one, for keys.
function parts(one) {
  const to = element("button", { className: "said-step", title: "Show its step", attributes: { type: "button", tabindex: "-1", "aria-label": `${one.label}: show its step` } }, icon(symbol(one)));
  const words = element("span", { className: "said-words" });
  if (one.part === "asked" || one.part === "answer") {
    words.append(element("span", { className: one.state === "missing" ? "said-text is-missing" : "said-text", text: one.text || NO_TEXT[one.part], attributes: { dir: "auto" } }));
  } else {
    words.append(element("b", { text: one.label, attributes: { dir: "auto" } }));
    if (one.text) words.append(" ", element("span", { className: "said-given", text: one.text, attributes: { dir: "auto" } }));
    if (one.part === "tool") words.append(outcome(one));
  }
  return [to, words];
}

function outcome(one) {
  const said = { running: "running …", cancelled: "cancelled", failed: one.result || "failed" }[one.state] ?? one.result;
  const sign = { failed: "error", cancelled: "cancel", open: "link_off", running: "pending" }[one.state] ?? "subdirectory_arrow_right";
  return said ? element("span", { className: "said-result" }, icon(sign), element("span", { text: one.state === "failed" && one.result ? `failed: ${one.result}` : said, attributes: { dir: "auto" } })) : "";
}

const symbol = ({ part, state }) => (part === "problem" && state === "refused" ? "block" : ICONS[part]);
