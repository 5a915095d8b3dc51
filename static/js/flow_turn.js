// One turn: what is known of it, its line, and, while it is open, its axis and rows.

import { element, icon } from "./dom.js";
import { Axis } from "./flow_axis.js";
import { Rows } from "./flow_rows.js";
import { Step, before, costOf, tokensOf } from "./flow_step.js";
import { count, duration, exact, instant, moment, money, plural, short } from "./format.js";
import { PACES } from "./pace.js";
import { ENDS, OUTCOMES, describe, known, stopper } from "./words.js";

const AXIS_STEP = 1.0025; // the axis grows by steps of less than a pixel: moving it touches every bar
const MOST_NAMES = 500, NAMES_KEPT = 50; // names of steps, for the filter: while it is in memory, and after

let serial = 0;

export class Turn {
  constructor(tree, id) {
    this.tree = tree;
    this.id = id;
    this.number = ++serial;
    this.steps = new Map(); // flow_id of the start and of the end -> Step
    this.roots = [];
    this.waiting = new Map(); // flow_id of a parent not seen yet -> [Step]
    this.unfinished = new Set(); // steps that may still end
    this.names = new Set(); // of its checkpoints, tools and models
    this.open = false;
    this.byHand = false; // opened or folded by the reader: only he changes it again
    this.isHidden = false; // by the filter
    this.changed = new Set();
    this.tokens = this.cost = this.tools = this.failures = 0;
    this.at = this.lastAt = this.span = 0;
    this.question = this.session = this.user = this.problem = this.stamp = null;
    this.firstToken = null; // milliseconds from its start
    this.flowEnd = null;
    this.freed = false;
  }

  get ended() {
    return this.flowEnd !== null;
  }

  get outcome() {
    return this.flowEnd?.metadata?.outcome ?? null;
  }

  get state() {
    return this.ended ? known(OUTCOMES, this.outcome)?.state ?? "left" : "running";
  }

  // --- what is known ---

  add(checkpoint) {
    if (this.steps.has(checkpoint.flow_id)) return false;
    const start = this.steps.get(checkpoint.parent_id);
    const closes = start && start.end === null && known(ENDS, checkpoint.checkpoint) === start.start.checkpoint;
    const step = closes ? this.#close(start, checkpoint) : this.#insert(new Step(this, checkpoint), start);
    this.steps.set(checkpoint.flow_id, step);
    this.changed.add(step);
    this.#adopt(checkpoint.flow_id, step);
    this.#sum(checkpoint, step);
    return true;
  }

  #close(step, checkpoint) {
    step.close(checkpoint);
    this.unfinished.delete(step);
    return step;
  }

  #insert(step, parent) {
    step.parent = parent ?? null;
    const siblings = parent ? parent.children : this.roots;
    let place = siblings.length;
    while (place > 0 && before(step, siblings[place - 1])) place -= 1;
    siblings.splice(place, 0, step);
    const wanted = step.start.parent_id;
    if (!parent && wanted) this.waiting.set(wanted, [...(this.waiting.get(wanted) ?? []), step]);
    if (parent) this.changed.add(parent);
    if (step.running) this.unfinished.add(step);
    this.rows?.insert(step);
    return step;
  }

  // Children that came before their parent were drawn as roots; now they move below it.
  #adopt(flowId, parent) {
    const children = this.waiting.get(flowId);
    if (!children) return;
    this.waiting.delete(flowId);
    for (const child of children) {
      if (parent.isBelow(child)) continue;
      this.roots.splice(this.roots.indexOf(child), 1);
      if (parent.end === null && known(ENDS, child.start.checkpoint) === parent.start.checkpoint && child.children.length === 0) {
        this.steps.set(child.start.flow_id, this.#close(parent, child.start));
      } else {
        this.#insert(child, parent);
      }
    }
    this.rows?.disorder();
  }

  #sum({ checkpoint, metadata, created_at: created, session_id: session, user_id: user }, step) {
    const at = instant(created), data = metadata ?? {};
    if (!this.at || at < this.at) this.#begin(at, created);
    this.lastAt = Math.max(this.lastAt, at);
    [this.session, this.user] = [session, user];
    this.#name(checkpoint, data.tool, data.model);
    if (typeof data.question === "string") this.question = short(data.question, 300);
    if (checkpoint === "tool_call") this.tools += 1;
    this.tokens += tokensOf({ checkpoint, metadata: data });
    this.cost += costOf({ checkpoint, metadata: data });
    // a round that only chose tools gave its reader nothing yet
    const spoke = data.answer || !data.tool_calls;
    if (checkpoint === "llm_complete" && spoke && Number.isFinite(data.ttft_ms)) this.firstToken ??= step.at + data.ttft_ms - this.at;
    if (step.failed) this.failures += 1;
    if (checkpoint === "error" || data.status === "failed") this.problem = describe({ start: { checkpoint, metadata: data }, end: null }).label;
    if (checkpoint === "flow_end") this.#finish({ checkpoint, metadata: data, at });
  }

  // All its bars stand on its own axis: one that begins earlier moves them.
  #begin(at, stamp) {
    [this.at, this.stamp] = [at, stamp];
    for (const step of this.rows?.drawn ?? []) this.changed.add(step);
  }

  #name(...names) {
    for (const name of names) if (typeof name === "string" && this.names.size < MOST_NAMES) this.names.add(name.toLowerCase());
  }

  #finish(flowEnd) {
    this.flowEnd = flowEnd;
    if (Number.isFinite(flowEnd.metadata.ttft_ms)) this.firstToken = flowEnd.metadata.ttft_ms;
    // what is open now will not be closed any more: those rows stop ticking
    for (const step of this.unfinished) this.changed.add(step);
    this.unfinished.clear();
  }

  // The checkpoints leave the memory; its line stays.
  free() {
    this.freed = true;
    this.names = new Set([...this.names].slice(0, NAMES_KEPT));
    this.steps.clear();
    this.roots = [];
    this.waiting.clear();
    this.changed.clear();
    this.rows?.clear();
    this.rows?.disorder();
  }

  refill(checkpoints) {
    if (checkpoints.length === 0) return;
    this.freed = false;
    this.tokens = this.cost = this.tools = this.failures = 0;
    for (const one of checkpoints) this.add(one);
  }

  // --- for the filter: { text, states } ---

  matches({ text, states }) {
    if (states.size && ![...states].some((state) => this.#isOne(state))) return false;
    return !text || (this.question ?? "").toLowerCase().includes(text) || [...this.names].some((name) => name.includes(text));
  }

  #isOne(state) {
    return this.state === state || (state === "failed" && this.failures > 0);
  }

  // --- its line in words ---

  get title() {
    return this.question ?? (this.steps.size || this.freed ? "Question not kept" : "");
  }

  get took() {
    return this.flowEnd?.metadata?.duration_ms ?? (this.ended ? this.flowEnd.at : this.tree.now()) - this.at;
  }

  get totals() {
    return [this.tools ? plural(this.tools, "tool") : "", this.tokens ? `${count(this.tokens)} tok` : "", this.cost ? money(this.cost) : ""];
  }

  get facts() {
    const outcome = known(OUTCOMES, this.outcome)?.label ?? "Ended", took = duration(this.took);
    const said = !this.ended ? [`running · ${took}`, PACES[this.pace].words, ...this.totals]
      : this.outcome === "completed" ? [took, ...this.totals]
      : this.outcome === "refused" ? ["refused", lower(this.problem ?? "")]
      : this.outcome === "failed" ? [lower(this.problem ?? "failed"), took, ...this.totals]
      : [this.outcome === "disconnected" ? `left after ${took}` : `${lower(outcome)}${this.#byWhom} after ${took}`, ...this.totals];
    return said.filter(Boolean).join(" · ");
  }

  get #byWhom() {
    const by = this.outcome === "stopped" ? stopper(this.flowEnd.metadata) : "";
    return by ? ` by ${by}` : "";
  }

  // How the slowest of what runs stands to what is usual.
  get pace() {
    const paces = new Set([...this.unfinished].map((step) => step.pace));
    return ["far", "slow"].find((pace) => paces.has(pace)) ?? "";
  }

  // --- drawing ---

  build() {
    this.rows = new Rows(this);
    this.axis = new Axis();
    this.icon = icon("");
    this.time = element("time", { className: "turn-time" });
    this.name = element("span", { className: "turn-title" });
    this.meta = element("span", { className: "turn-meta" });
    this.head = element("button", { className: "turn-head", attributes: { type: "button", "aria-controls": this.rows.element.id } },
      this.icon, this.time, this.name, this.meta);
    this.head.addEventListener("click", () => this.tree.toggle(this));
    this.stopButton = this.tree.stopFor?.(this) ?? null;
    this.article = element("article", { className: "turn", data: { turnId: this.id } }, this.head, this.stopButton?.element, this.axis.element, this.rows.element);
    this.article.turn = this;
    return this.article;
  }

  draw() {
    if (!this.article) return;
    this.#drawHead();
    this.article.hidden = this.isHidden;
    this.rows.draw(this.changed);
    this.changed.clear();
    this.tick();
  }

  #drawHead() {
    const outcome = known(OUTCOMES, this.outcome), { title } = this;
    if (this.ended) this.article.dataset.outcome = this.outcome ?? "unknown";
    this.article.dataset.state = this.state;
    this.article.classList.toggle("is-open", this.open);
    this.head.setAttribute("aria-expanded", String(this.open));
    this.icon.textContent = this.ended ? outcome?.icon ?? "flag" : "pending";
    this.icon.title = this.ended ? outcome?.label ?? "Ended" : "Running";
    this.time.textContent = moment(this.at);
    this.time.dateTime = this.stamp ?? "";
    this.time.title = exact(this.at);
    if (this.name.textContent !== title) {
      this.name.textContent = this.name.title = title;
      this.rows.element.setAttribute("aria-label", `Steps of “${title}”`);
    }
    this.name.classList.toggle("is-missing", this.question === null);
    this.stopButton?.draw();
    this.article.classList.toggle("can-stop", this.stopButton !== null && !this.ended);
    this.#drawFacts();
  }

  #drawFacts() {
    const { facts } = this;
    if (this.meta.textContent !== facts) this.meta.textContent = this.meta.title = facts;
    this.article.dataset.pace = this.pace;
  }

  // The clocks of what runs, and the axis all bars share. Returns the steps that got slower.
  tick() {
    if (!this.article || this.isHidden) return [];
    const end = Math.max(this.ended ? this.flowEnd.at : this.tree.now(), this.lastAt), span = Math.max(1, end - this.at);
    if (this.open && (span < this.span || span > this.span * (this.ended ? 1 : AXIS_STEP) || this.firstToken !== this.markedToken)) this.#drawAxis(span);
    const slower = this.rows.tick(this.unfinished);
    if (!this.ended) this.#drawFacts();
    return slower;
  }

  #drawAxis(span) {
    [this.span, this.markedToken] = [span, this.firstToken];
    this.article.style.setProperty("--span", span);
    if (this.firstToken !== null) this.article.style.setProperty("--first", this.firstToken);
    this.article.classList.toggle("has-first", this.firstToken !== null);
    this.axis.draw(span, this.firstToken);
  }

  // How many of its rows the keyboard can go to.
  get size() {
    return this.open && !this.isHidden ? this.rows.list.length : 0;
  }

  // Whether somebody is looking into it: its rows must then neither fold nor move.
  get isRead() {
    return this.open && (this.article.contains(document.activeElement) || this.rows.opened.size > 0);
  }
}

export const lower = (words) => words.charAt(0).toLowerCase() + words.slice(1);
