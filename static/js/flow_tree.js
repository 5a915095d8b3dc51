// The tree of a turn, the same rows on every page. It is fed checkpoints one by one and draws each
// turn as a line that opens into rows: indent guides, icon, label, facts, a bar on the turn's own
// time axis, the duration. The start and the end of a step are one row that changes.
//
//   const tree = new FlowTree(place, { order: "newest" | "oldest", now, load, historyOf, speak, onselect })
//   tree.add(checkpoint)      -> false when it has that flow_id already; nothing is drawn yet
//   tree.flush()              -> draws what came since, returns those checkpoints
//   tree.replace(checkpoints) -> shows exactly these, keeping what is open, focused and in view
//   tree.remove(turnId)       -> takes a turn away
//   tree.select(flowId)       -> marks the row of this checkpoint and brings it into view; null: none
//   onselect(flowId)          <- the reader went to this row himself (the start of its step)
//
// Rows stay few: a turn that folds frees its rows, and old turns free their checkpoints too.

import { announce, button, copy, element, icon } from "./dom.js";
import { clock, count, duration, exact, instant, moment, money, plural, short } from "./format.js";
import { CHECKPOINTS, ENDS, OUTCOMES, describe } from "./words.js";

const KEPT_TURNS = 40; // ended turns whose checkpoints stay in memory, so that they open at once
const KEPT_LINES = 300; // lines of ended turns; older ones are in history
const DEEPEST = 12; // levels drawn as indent; deeper rows stand below each other
const MANY_ROWS = 600; // from here on the axis moves once a second instead of five times

let serial = 0;

// --- one step: a row ---------------------------------------------------------------------------

class Step {
  constructor(turn, checkpoint) {
    this.turn = turn;
    this.start = checkpoint;
    this.end = null;
    this.parent = null;
    this.children = [];
    this.element = null;
    this.folded = false;
    this.at = instant(checkpoint.created_at);
    this.endAt = null;
  }

  get running() {
    return this.end === null && Object.values(ENDS).includes(this.start.checkpoint) && !this.turn.ended;
  }

  // Milliseconds from..to. A check has one checkpoint, made when it was over: it took the time
  // since the checkpoint before it. Anything else without an end is a point.
  get span() {
    const took = this.start.metadata?.duration_ms;
    if (this.endAt !== null) return [this.at, this.endAt];
    if (this.running) return [this.at, null];
    if (CHECKPOINTS[this.start.checkpoint]?.kind === "check") {
      return [Number.isFinite(took) ? this.at - took : this.parent?.at ?? this.at, this.at];
    }
    if (Object.values(ENDS).includes(this.start.checkpoint)) return [this.at, this.turn.lastAt];
    return this.start.checkpoint in ENDS && Number.isFinite(took) ? [this.at - took, this.at] : [this.at, this.at];
  }

  get depth() {
    let depth = 0;
    for (let step = this.parent; step; step = step.parent) depth += 1;
    return depth;
  }

  get hidden() {
    for (let step = this.parent; step; step = step.parent) if (step.folded) return true;
    return false;
  }

  isBelow(other) {
    for (let step = this; step; step = step.parent) if (step === other) return true;
    return false;
  }
}

const before = (a, b) => a.at < b.at || (a.at === b.at && a.start.flow_id < b.start.flow_id);

// --- one turn: what is known of it, and its article --------------------------------------------

class Turn {
  constructor(tree, id) {
    this.tree = tree;
    this.id = id;
    this.steps = new Map(); // flow_id of the start and of the end -> Step
    this.roots = [];
    this.waiting = new Map(); // flow_id of a parent not seen yet -> [Step]
    this.open = false;
    this.byHand = false; // opened or folded by the reader: only he changes it again
    this.changed = new Set();
    this.tokens = this.cost = this.tools = 0;
    this.at = this.lastAt = 0;
    this.question = this.session = this.problem = this.stamp = null;
    this.flowEnd = null;
    this.freed = false;
    this.number = ++serial;
  }

  get ended() {
    return this.flowEnd !== null;
  }

  get outcome() {
    return this.flowEnd?.metadata?.outcome ?? null;
  }

  add(checkpoint) {
    if (this.steps.has(checkpoint.flow_id)) return false;
    const start = this.steps.get(checkpoint.parent_id);
    const closes = start && start.end === null && ENDS[checkpoint.checkpoint] === start.start.checkpoint;
    const step = closes ? this.#close(start, checkpoint) : this.#insert(new Step(this, checkpoint), start);
    this.steps.set(checkpoint.flow_id, step);
    this.changed.add(step);
    this.#adopt(checkpoint.flow_id, step);
    this.#sum(checkpoint);
    return true;
  }

  #close(step, checkpoint) {
    step.end = checkpoint;
    step.endAt = instant(checkpoint.created_at);
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
      if (parent.end === null && ENDS[child.start.checkpoint] === parent.start.checkpoint && child.children.length === 0) {
        this.steps.set(child.start.flow_id, this.#close(parent, child.start));
      } else {
        this.#insert(child, parent);
      }
    }
    this.redraw = true;
  }

  #sum({ checkpoint, metadata, created_at: created, session_id: session }) {
    const at = instant(created), data = metadata ?? {};
    if (!this.at || at < this.at) [this.at, this.stamp] = [at, created];
    this.lastAt = Math.max(this.lastAt, at);
    this.session = session;
    if (typeof data.question === "string") this.question = short(data.question, 300);
    if (checkpoint === "tool_call") this.tools += 1;
    if (checkpoint === "llm_complete") {
      this.tokens += (data.input_tokens ?? 0) + (data.output_tokens ?? 0);
      this.cost += Number(data.cost_usd ?? 0);
    }
    if (checkpoint === "error") this.problem = describe({ start: { checkpoint, metadata: data }, end: null }).label;
    if (data.status === "failed") this.problem = describe({ start: { checkpoint, metadata: data }, end: null }).label;
    if (checkpoint === "flow_end") this.#finish({ checkpoint, metadata: data, at });
  }

  #finish(flowEnd) {
    this.flowEnd = flowEnd;
    // what is open now will not be closed any more: those rows stop ticking
    for (const step of this.steps.values()) if (step.end === null) this.changed.add(step);
  }

  get title() {
    return this.question ?? (this.steps.size || this.freed ? "Question not kept" : "");
  }

  get took() {
    return this.flowEnd?.metadata?.duration_ms ?? (this.ended ? this.flowEnd.at : this.tree.now()) - this.at;
  }

  get facts() {
    if (!this.ended) return `running · ${duration(this.took)}`;
    const outcome = OUTCOMES[this.outcome]?.label ?? "Ended";
    if (this.outcome === "refused") return `refused${this.problem ? " · " + lower(this.problem) : ""}`;
    if (this.outcome === "failed") return `${this.problem ? lower(this.problem) : "failed"} · ${duration(this.took)}`;
    if (this.outcome === "disconnected") return `left after ${duration(this.took)}`;
    if (this.outcome !== "completed") return `${lower(outcome)} after ${duration(this.took)}`;
    return [duration(this.took), this.tools ? plural(this.tools, "tool") : "", this.tokens ? `${count(this.tokens)} tok` : "",
      this.cost ? money(this.cost) : ""].filter(Boolean).join(" · ");
  }

  // --- drawing ---

  build() {
    const id = `turn-${this.number}`;
    this.icon = icon("");
    this.time = element("time", { className: "turn-time" });
    this.name = element("span", { className: "turn-title" });
    this.meta = element("span", { className: "turn-meta" });
    this.head = element("button", { className: "turn-head", attributes: { type: "button", "aria-controls": id } },
      this.icon, this.time, this.name, this.meta);
    this.head.addEventListener("click", () => this.tree.toggle(this));
    this.rows = element("div", { className: "rows", attributes: { id, role: "tree" } });
    this.article = element("article", { className: "turn", data: { turnId: this.id } }, this.head, this.rows);
    this.article.turn = this;
    return this.article;
  }

  draw() {
    this.#drawHead();
    this.#drawRows();
    this.changed.clear();
    this.tick();
  }

  #drawHead() {
    const outcome = OUTCOMES[this.outcome];
    const state = this.ended ? outcome?.state ?? "left" : "running";
    if (this.ended) this.article.dataset.outcome = this.outcome ?? "unknown";
    this.article.dataset.state = state;
    this.article.classList.toggle("is-open", this.open);
    this.head.setAttribute("aria-expanded", String(this.open));
    this.icon.textContent = this.ended ? outcome?.icon ?? "flag" : "pending";
    this.icon.title = this.ended ? outcome?.label ?? "Ended" : "Running";
    this.time.textContent = moment(this.at);
    this.time.dateTime = this.stamp ?? "";
    this.time.title = exact(this.at);
    this.name.textContent = this.title;
    this.name.title = this.title;
    this.name.classList.toggle("is-missing", this.question === null);
    this.meta.textContent = this.facts;
    this.meta.title = this.facts;
    this.rows.setAttribute("aria-label", `Steps of “${this.title}”`);
  }

  #drawRows() {
    if (!this.open) return this.rows.replaceChildren(), this.#forget();
    if (this.redraw || this.rows.childElementCount === 0) this.#drawAll();
    else this.#drawChanged();
    // one row of each tree can be reached by Tab
    if (!this.rows.querySelector('.row[tabindex="0"]')) this.rows.firstElementChild?.setAttribute("tabindex", "0");
  }

  #drawChanged() {
    for (const step of this.changed) {
      if (!step.element) this.#place(step);
      this.#fill(step);
    }
  }

  #drawAll() {
    const kept = this.rows.contains(document.activeElement) ? document.activeElement.step : null;
    const rows = document.createDocumentFragment();
    for (const step of this.inOrder()) {
      rows.append((step.element ??= row(step)));
      this.#fill(step);
    }
    this.redraw = false;
    this.rows.replaceChildren(rows);
    kept?.element?.focus({ preventScroll: true });
  }

  *inOrder(steps = this.roots) {
    const stack = [...steps].reverse();
    while (stack.length) {
      const step = stack.pop();
      yield step;
      for (let at = step.children.length - 1; at >= 0; at -= 1) stack.push(step.children[at]);
    }
  }

  // After the last drawn row of the sibling before it, or directly below its parent.
  #place(step) {
    const siblings = step.parent ? step.parent.children : this.roots;
    let at = siblings.indexOf(step) - 1;
    while (at >= 0 && !siblings[at].element) at -= 1;
    const above = at >= 0 ? lastRow(siblings[at]) : step.parent?.element;
    step.element = row(step);
    if (above) above.after(step.element);
    else this.rows.prepend(step.element);
  }

  #fill(step) {
    const said = describe({ start: step.start, end: step.end, over: this.ended });
    const { element: line } = step, [from, to] = step.span;
    const parts = line.parts;
    line.dataset.kind = said.kind;
    line.dataset.state = said.state;
    line.style.setProperty("--depth", Math.min(step.depth, DEEPEST));
    line.setAttribute("aria-level", step.depth + 1);
    line.hidden = step.hidden;
    parts.icon.textContent = said.icon;
    parts.label.textContent = said.label;
    parts.facts.textContent = said.facts;
    parts.words.title = said.facts ? `${said.label}: ${said.facts}` : "";
    parts.bar.style.setProperty("--s", Math.max(0, from - this.at));
    if (to === null) parts.bar.style.removeProperty("--e");
    else parts.bar.style.setProperty("--e", Math.max(0, to - this.at));
    parts.bar.className = to === from ? "is-point" : "";
    parts.time.textContent = to === null || to > from ? duration((to ?? this.tree.now()) - from) : "";
    if (step.end && !parts.end) line.append((parts.end = element("span", { data: { flowId: step.end.flow_id, checkpoint: step.end.checkpoint }, attributes: { hidden: "" } })));
    twist(step);
    if (parts.details) showDetails(step);
  }

  #forget() {
    for (const step of this.steps.values()) step.element = null;
    this.redraw = false;
  }

  // The clock of what runs, and the axis all bars share: one property for all rows.
  tick() {
    const end = this.ended ? Math.max(this.flowEnd.at, this.lastAt) : Math.max(this.tree.now(), this.lastAt);
    if (this.ended || this.steps.size < MANY_ROWS || end - (this.axisAt ?? 0) > 1000) {
      this.rows.style.setProperty("--span", Math.max(1, end - this.at));
      this.axisAt = end;
    }
    if (this.ended) return;
    this.meta.textContent = this.facts;
    if (!this.open) return;
    for (const step of this.steps.values()) {
      if (step.element && step.running) step.element.parts.time.textContent = duration(this.tree.now() - step.at);
    }
  }

  // Whether somebody is looking into it: its rows must then neither fold nor move.
  get isRead() {
    return this.open && (this.article.contains(document.activeElement) || this.article.querySelector(".details") !== null);
  }

  free() {
    this.freed = true;
    this.steps.clear();
    this.roots = [];
    this.waiting.clear();
  }
}

const lower = (words) => words.charAt(0).toLowerCase() + words.slice(1);

function lastRow(step) {
  for (let at = step.children.length - 1; at >= 0; at -= 1) {
    if (step.children[at].element) return lastRow(step.children[at]);
  }
  return step.element;
}

// --- one row ---------------------------------------------------------------------------------

function row(step) {
  const parts = {
    icon: icon(""),
    label: element("b", { className: "row-label" }),
    facts: element("span", { className: "row-facts" }),
    bar: element("i"),
    time: element("span", { className: "row-time" }),
  };
  parts.icon.classList.add("row-icon");
  parts.words = element("span", { className: "row-words" }, parts.label, " ", parts.facts);
  const made = element("div", {
    className: "row",
    data: { flowId: step.start.flow_id, checkpoint: step.start.checkpoint },
    attributes: { role: "treeitem", tabindex: "-1" },
  }, parts.icon, parts.words, element("span", { className: "row-bar", attributes: { "aria-hidden": "true" } }, parts.bar), parts.time);
  made.parts = parts;
  made.step = step;
  return made;
}

// The little arrow of a row with children; with the pointer only, keys have the arrows.
function twist(step) {
  const line = step.element;
  if (step.children.length === 0) return line.removeAttribute("aria-expanded");
  line.setAttribute("aria-expanded", String(!step.folded));
  if (!line.parts.twist) line.prepend((line.parts.twist = element("span", { className: "twist", attributes: { "aria-hidden": "true" } }, icon("expand_more"))));
}

function fold(step, folded) {
  step.folded = folded;
  twist(step);
  for (const below of step.turn.inOrder(step.children)) if (below.element) below.element.hidden = below.hidden;
}

function toggleDetails(step, wanted = !step.element.parts.details) {
  const { parts } = step.element;
  if (wanted) return showDetails(step);
  parts.details?.remove();
  parts.details = null;
  step.element.classList.remove("has-details");
}

function showDetails(step) {
  const line = step.element;
  const made = element("div", { className: "details" }, ...[step.start, step.end].filter(Boolean).map((one) => checkpointDetails(one, step.turn)));
  if (line.parts.details) line.parts.details.replaceWith(made);
  else line.append(made);
  line.parts.details = made;
  line.classList.add("has-details");
}

function checkpointDetails(checkpoint, turn) {
  const at = instant(checkpoint.created_at);
  const id = element("code", { text: checkpoint.flow_id });
  const raw = element("pre", { text: JSON.stringify(checkpoint, null, 2) });
  raw.hidden = true;
  const show = button("Raw JSON", { className: "link-button" }, () => {
    raw.hidden = !raw.hidden;
    show.setAttribute("aria-expanded", String(!raw.hidden));
  });
  show.setAttribute("aria-expanded", "false");
  const address = turn.tree.historyOf?.(checkpoint.session_id, checkpoint.flow_id);
  return element("section", { attributes: { "aria-label": checkpoint.checkpoint } },
    element("h4", {}, element("span", { text: checkpoint.checkpoint }),
      element("time", { text: clock(at) + ` · ${duration(at - turn.at)} in`, title: `${exact(at)} · ${checkpoint.created_at}`, attributes: { datetime: checkpoint.created_at } })),
    element("dl", {}, ...Object.entries(checkpoint.metadata ?? {}).flatMap(([key, value]) => [element("dt", { text: key }), value_(value)])),
    element("p", { className: "details-foot" }, id, button("", { symbol: "content_copy", className: "icon-button", label: "Copy the id", title: "Copy the id" }, () => copy(checkpoint.flow_id, id)), show,
      address ? element("a", { text: "In history", attributes: { href: address } }) : null),
    raw);
}

function value_(value) {
  if (value !== null && typeof value === "object") return element("dd", {}, element("pre", { text: JSON.stringify(value, null, 2) }));
  return element("dd", { text: value === null ? "none" : String(value), className: typeof value === "number" ? "is-number" : "" });
}

// --- many turns --------------------------------------------------------------------------------

export class FlowTree {
  constructor(place, { order = "oldest", now = Date.now, load = null, historyOf = null, speak = false, onselect = null } = {}) {
    Object.assign(this, { place, order, now, load, historyOf, speak, onselect });
    this.selected = null; // a Step
    this.turns = new Map(); // turn_id -> Turn
    this.turnOf = new Map(); // flow_id -> Turn, for checkpoints that name no turn
    this.fresh = []; // added and not yet drawn
    this.dirty = new Set();
    this.held = []; // turns that wait, because drawing them would push what is being read
    this.follow = true;
    this.still = false; // no clock ticks: the picture is held, or nobody tells any more
    this.current = element("div", { className: "turns-now" });
    this.earlier = element("div", { className: "turns-earlier" });
    this.more = button("New turns", { className: "button held-turns", symbol: "arrow_upward" }, () => this.release());
    this.more.hidden = true;
    place.append(...(order === "newest" ? [this.more, this.current, this.earlier] : [this.current]));
    place.addEventListener("keydown", (event) => this.#key(event));
    place.addEventListener("click", (event) => this.#click(event));
    // The rows' roving focus: where the focus is, there Tab comes back to.
    place.addEventListener("focusin", ({ target }) => target.step && this.#goTo(target));
    TREES.add(this);
    startTicking();
  }

  destroy() {
    TREES.delete(this);
  }

  get running() {
    return [...this.turns.values()].filter((turn) => !turn.ended);
  }

  get isEmpty() {
    return this.turns.size === 0;
  }

  add(checkpoint) {
    const turn = this.#turnFor(checkpoint);
    // a freed turn has ended: what comes of it again was seen
    if (turn.freed || !turn.add(checkpoint)) return false;
    this.turnOf.set(checkpoint.flow_id, turn);
    this.dirty.add(turn);
    this.fresh.push(checkpoint);
    return true;
  }

  #turnFor(checkpoint) {
    const known = checkpoint.turn_id ? null : this.turnOf.get(checkpoint.parent_id);
    const id = known?.id ?? checkpoint.turn_id ?? checkpoint.flow_id;
    if (!this.turns.has(id)) this.turns.set(id, new Turn(this, id));
    return this.turns.get(id);
  }

  flush() {
    const drawn = this.fresh;
    this.fresh = [];
    const waiting = [...this.dirty].sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
    const first = this.current.childElementCount + this.earlier.childElementCount === 0;
    this.dirty.clear();
    if (first) this.#showAll(waiting);
    else for (const turn of waiting) this.#show(turn);
    if (drawn.length) this.#bound();
    if (this.follow) this.#keepInView(waiting);
    return drawn;
  }

  replace(checkpoints) {
    const wanted = new Set(checkpoints.map((one) => one.flow_id));
    for (const turn of [...this.turns.values()]) {
      const ids = turn.freed ? [turn.id] : [...turn.steps.keys()];
      // gone from the log, or holding what is not stored: taken away, or built anew from what is
      if (ids.some((id) => !wanted.has(id))) this.#drop(turn);
    }
    for (const one of checkpoints) this.add(one);
  }

  remove(turnId) {
    const turn = this.turns.get(turnId);
    if (turn) this.#drop(turn);
  }

  clear() {
    for (const turn of [...this.turns.values()]) if (turn.ended) this.#drop(turn);
    this.current.style.minHeight = "";
  }

  #drop(turn) {
    for (const id of turn.steps.keys()) this.turnOf.delete(id);
    this.turns.delete(turn.id);
    this.dirty.delete(turn);
    this.held = this.held.filter((one) => one !== turn);
    this.fresh = this.fresh.filter((one) => !turn.steps.has(one.flow_id));
    turn.article?.remove();
  }

  // --- where a turn stands ---

  #showAll(turns) {
    const newest = turns.at(-1);
    for (const turn of turns) {
      turn.open = this.order === "oldest" || !turn.ended || (turn === newest && turns.every((one) => one.ended));
      this.#stand(turn);
      turn.draw();
    }
  }

  #show(turn) {
    if (turn.article) {
      const wasRunning = turn.article.dataset.outcome === undefined;
      turn.draw();
      if (wasRunning && turn.ended) this.#say(`Turn ${lower(OUTCOMES[turn.outcome]?.label ?? "ended")}: ${turn.title}`);
      return;
    }
    if (this.held.includes(turn)) return;
    if (this.order === "newest" && this.#readingEarlier()) return this.#hold(turn);
    turn.open = this.order === "oldest" || !turn.ended || !this.running.length;
    if (turn.open) this.#makeRoom();
    this.#stand(turn);
    turn.draw();
    this.#say(`New turn: ${turn.title}`);
  }

  #say(sentence) {
    if (this.speak) announce(sentence);
  }

  #stand(turn) {
    const article = turn.article ?? turn.build();
    if (this.order === "oldest" || turn.open) return insertByTime(this.current, article, 1);
    insertByTime(this.earlier, article, -1);
  }

  // Ended turns leave the top for their line; the top keeps its height, so nothing below it moves.
  #makeRoom() {
    if (this.order !== "newest" || !this.follow) return;
    const over = [...this.current.children].map((article) => article.turn).filter((turn) => turn.ended && !turn.byHand && !turn.isRead);
    if (over.length === 0) return;
    // what is drawn, not what an earlier fold kept free: room that nobody used is given back now
    const height = this.#heightOfNow();
    for (const turn of over) {
      turn.open = false;
      insertByTime(this.earlier, turn.article, -1);
      turn.draw();
    }
    this.current.style.minHeight = `${Math.min(height, this.place.clientHeight || height)}px`;
  }

  #readingEarlier() {
    return this.earlier.contains(document.activeElement) || this.earlier.querySelector(".details") !== null;
  }

  #hold(turn) {
    this.held.push(turn);
    this.more.lastChild.textContent = `${plural(this.held.length, "new turn")}: show`;
    this.more.hidden = false;
  }

  release() {
    const { held } = this;
    this.held = [];
    this.more.hidden = true;
    this.more.blur();
    if (this.place.contains(document.activeElement)) document.activeElement.blur();
    for (const turn of held) {
      turn.open = !turn.ended || turn === held.at(-1);
      if (turn.open) this.#makeRoom();
      this.#stand(turn);
      turn.draw();
    }
    this.place.scrollTop = 0;
  }

  #bound() {
    const ended = [...this.turns.values()].filter((turn) => turn.ended && !turn.open && !this.held.includes(turn));
    if (this.order !== "newest" || ended.length <= KEPT_TURNS) return;
    ended.sort((a, b) => b.at - a.at);
    for (const turn of ended.slice(KEPT_TURNS)) {
      if (turn.freed) continue;
      for (const id of turn.steps.keys()) this.turnOf.delete(id);
      turn.free();
    }
    for (const turn of ended.slice(KEPT_LINES)) this.#drop(turn);
  }

  // Follows the growing end of what runs, never further than that it stays whole in view.
  #keepInView(turns) {
    if (this.order !== "newest" || !turns.some((turn) => !turn.ended)) return;
    const below = this.current.offsetTop + this.#heightOfNow() - (this.place.scrollTop + this.place.clientHeight);
    if (below > 0) this.place.scrollTop += below;
  }

  #heightOfNow() {
    const last = this.current.lastElementChild;
    return last ? last.offsetTop + last.offsetHeight - this.current.offsetTop : 0;
  }

  // --- opening, folding, keys ---

  async toggle(turn, open = !turn.open) {
    turn.byHand = true;
    turn.open = open;
    if (open && turn.freed) await this.#bring(turn);
    turn.draw();
  }

  async #bring(turn) {
    turn.meta.textContent = "reading from history…";
    try {
      for (const one of (await this.load?.(turn.session, turn.id)) ?? []) turn.add(one);
      turn.freed = turn.steps.size === 0;
    } catch {
      turn.freed = true;
    }
    if (turn.freed) turn.open = false;
    if (turn.freed) announce("This turn is no longer in this page: open it in history");
  }

  expandAll() {
    for (const turn of this.turns.values()) {
      for (const step of turn.steps.values()) if (step.folded && step.element) fold(step, false);
    }
  }

  toggleAll() {
    const shown = [...this.turns.values()].filter((turn) => turn.article);
    const open = shown.some((turn) => !turn.open);
    for (const turn of shown) this.toggle(turn, open);
  }

  // Opens whatever a row is folded into.
  #bringOut(step) {
    if (!step.turn.open) {
      step.turn.open = true;
      step.turn.draw();
    }
    for (let above = step.parent; above; above = above.parent) if (above.folded) fold(above, false);
    this.#mark(this.selected);
  }

  // A row by its checkpoint's id, opened and brought into view: for links.
  reveal(flowId) {
    const step = this.turnOf.get(flowId)?.steps.get(flowId);
    if (!step) return false;
    this.#bringOut(step);
    toggleDetails(step, true);
    step.element.scrollIntoView({ block: "center" });
    step.element.focus({ preventScroll: true });
    return true;
  }

  // The row of a checkpoint, marked and in view, without its details; says it to nobody.
  select(flowId) {
    const step = flowId === null ? null : this.turnOf.get(flowId)?.steps.get(flowId);
    this.#mark(step ?? null);
    if (!step) return false;
    this.#bringOut(step);
    step.element.scrollIntoView({ block: "nearest" });
    return true;
  }

  #mark(step) {
    this.selected?.element?.removeAttribute("aria-selected");
    this.selected = step;
    step?.element?.setAttribute("aria-selected", "true");
  }

  #goTo(line) {
    this.#stopAt(line);
    if (this.selected === line.step) return;
    this.#mark(line.step);
    this.onselect?.(line.step.start.flow_id);
  }

  #rows() {
    return [...this.place.querySelectorAll(".turn-head, .row:not([hidden])")];
  }

  // j and k: the next row or turn from where the focus is.
  moveFocus(by) {
    const rows = this.#rows();
    const here = rows.indexOf(document.activeElement.closest?.(".row, .turn-head"));
    const next = rows[Math.max(0, Math.min(rows.length - 1, here === -1 ? (by > 0 ? 0 : rows.length - 1) : here + by))];
    next?.focus({ preventScroll: true });
    next?.scrollIntoView({ block: "nearest" });
  }

  #stopAt(line) {
    line.step.turn.rows.querySelector('.row[tabindex="0"]')?.setAttribute("tabindex", "-1");
    line.setAttribute("tabindex", "0");
  }

  #click(event) {
    const line = event.target.closest(".row");
    if (!line || event.target.closest(".details")) return;
    if (event.target.closest(".twist")) return fold(line.step, !line.step.folded);
    if (getSelection().isCollapsed) toggleDetails(line.step);
    line.focus({ preventScroll: true });
  }

  #key(event) {
    const line = event.target;
    if (!line.step || event.ctrlKey || event.metaKey || event.altKey) return;
    const { step } = line, { children } = step;
    const act = {
      ArrowDown: () => this.moveFocus(1),
      ArrowUp: () => this.moveFocus(-1),
      ArrowRight: () => (step.folded ? fold(step, false) : children[0]?.element.focus()),
      ArrowLeft: () => (children.length && !step.folded ? fold(step, true) : step.parent?.element.focus()),
      Enter: () => toggleDetails(step),
      " ": () => toggleDetails(step),
      Escape: () => toggleDetails(step, false),
      Home: () => step.turn.rows.firstElementChild.focus(),
      End: () => [...step.turn.rows.children].findLast((one) => !one.hidden).focus(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }
}

function insertByTime(list, article, direction) {
  const at = article.turn.at * direction;
  const next = [...list.children].find((other) => other !== article && other.turn.at * direction > at);
  list.insertBefore(article, next ?? null);
}

// --- one clock for all trees of a page ---------------------------------------------------------

const TREES = new Set();
let ticking = null;

function startTicking() {
  ticking ??= setInterval(() => {
    if (document.hidden) return;
    for (const tree of TREES) for (const turn of tree.still ? [] : tree.running) if (turn.article) turn.tick();
  }, 200);
}
