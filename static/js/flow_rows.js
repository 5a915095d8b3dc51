// The rows of one open turn. All of them while they are few; of a big turn only those near the view
// and those somebody uses: focused, selected, or with their details open. What is left out between
// two rows is a margin of so many row heights, so nothing moves when rows come and go.

import { element, icon } from "./dom.js";
import { duration } from "./format.js";
import { details, rollUpFacts } from "./flow_details.js";
import { LEAST_MS, PACES, usually } from "./pace.js";
import { describe } from "./words.js";

const WHOLE = 150; // a turn of so many rows is drawn whole
const OVER_PX = 500; // drawn above and below the view, for the next turn of the wheel
const DEEPEST = 12; // levels drawn as indent; deeper rows stand below each other

export class Rows {
  constructor(turn) {
    this.turn = turn;
    this.list = []; // the steps that are not folded away, in their order
    this.drawn = new Set(); // those with a row
    this.opened = new Set(); // those with details
    this.stop = null; // the one row of this tree that Tab reaches
    this.stale = true; // the list is not in order any more
    this.moved = false; // steps stand at other levels than their rows say
    this.element = element("div", { className: "rows", attributes: { id: `turn-${turn.number}`, role: "tree" } });
  }

  get isBig() {
    return this.list.length > WHOLE || this.turn.tree.isLong;
  }

  // A step that was added; at the very end it costs nothing, else the list is made anew when drawn.
  insert(step) {
    if (this.stale || step.foldedInto) return;
    if (isLast(step)) this.list.push(step);
    else this.stale = true;
  }

  // Steps moved: the list is not in order, and each row may stand at another level.
  disorder() {
    this.stale = this.moved = true;
  }

  #arrange() {
    this.list = [...inOrder(this.turn.roots)];
    this.stale = false;
    const shown = new Set(this.list);
    for (const step of [...this.opened, ...this.drawn]) if (!shown.has(step)) this.#leave(step);
  }

  // Brings the page in line with the steps: the changed ones are written anew.
  draw(changed = []) {
    const { turn } = this;
    if (!turn.open || turn.isHidden) return this.clear();
    if (this.stale) this.#arrange();
    turn.article.classList.toggle("is-big", this.isBig);
    this.#stand(this.#wanted());
    for (const step of this.moved ? this.drawn : changed) {
      const shown = step.foldedInto ?? step;
      if (shown.element) this.fill(shown);
    }
    this.moved = false;
  }

  clear() {
    for (const step of this.drawn) step.element = null;
    this.drawn.clear();
    this.opened.clear();
    this.stop = null;
    this.element.replaceChildren();
    this.#setRest(0);
  }

  // After scrolling: only a big turn has other rows to show now.
  look() {
    if (this.turn.open && !this.turn.isHidden && (this.isBig || this.drawn.size < this.list.length)) this.#stand(this.#wanted());
  }

  // --- which rows ---

  // The places in the list of all rows to be drawn, ascending.
  #wanted() {
    if (!this.isBig) return this.list.keys();
    const [from, to] = this.#inView();
    const wanted = new Set();
    for (let at = from; at < to; at += 1) wanted.add(at);
    const active = this.element.contains(document.activeElement) ? document.activeElement.closest(".row")?.step : null;
    const kept = [this.stop ?? this.list[0], active, this.turn.tree.selected, ...this.opened];
    for (const step of kept) if (step?.turn === this.turn) wanted.add(this.list.indexOf(step));
    wanted.delete(-1);
    return [...wanted].sort((a, b) => a - b);
  }

  #inView() {
    const [top, bottom] = this.turn.tree.view, box = this.element.getBoundingClientRect().top;
    const height = this.#rowHeight();
    const from = this.#placeAt(top - box - OVER_PX, height), to = this.#placeAt(bottom - box + OVER_PX, height) + 1;
    return [Math.max(0, from), Math.min(this.list.length, to)];
  }

  #rowHeight() {
    return parseFloat(getComputedStyle(this.element).getPropertyValue("--row")) || 27;
  }

  // The place in the list of what stands so many pixels below the first row's top.
  #placeAt(y, height) {
    const opened = [...this.opened].map((step) => [this.list.indexOf(step), step]).sort(([a], [b]) => a - b);
    let more = 0;
    for (const [at, step] of opened) {
      const size = Math.max(0, (step.element?.offsetHeight ?? height) - height);
      if (y < (at + 1) * height + more) break;
      if (y < (at + 1) * height + more + size) return at;
      more += size;
    }
    return Math.floor((y - more) / height);
  }

  // --- drawing them ---

  #stand(wanted) {
    const places = [...wanted], shown = new Set(places.map((at) => this.list[at]));
    for (const step of this.drawn) if (!shown.has(step)) this.#leave(step);
    let next = this.element.firstElementChild, before = -1;
    for (const at of places) {
      const step = this.list[at];
      if (!step.element) this.#make(step);
      if (step.element === next) next = next.nextElementSibling;
      else this.#put(step.element, next);
      gap(step.element, at - before - 1);
      before = at;
    }
    this.#setRest(this.list.length - 1 - before);
    if (this.isBig) for (const step of shown) place(step);
    if (!this.stop?.element) this.#stopAt(this.list[0]);
  }

  #put(line, next) {
    const focused = line.contains(document.activeElement) ? document.activeElement : null;
    this.element.insertBefore(line, next);
    focused?.focus({ preventScroll: true });
  }

  #setRest(rest) {
    if (rest === this.rest) return;
    this.rest = rest;
    this.element.style.paddingBottom = rows(rest);
  }

  #make(step) {
    step.element = row(step);
    this.drawn.add(step);
    this.fill(step);
    if (step === this.stop) step.element.setAttribute("tabindex", "0");
    if (step === this.turn.tree.selected) step.element.setAttribute("aria-selected", "true");
  }

  #leave(step) {
    step.element?.remove();
    step.element = null;
    this.drawn.delete(step);
    this.opened.delete(step);
  }

  #stopAt(step) {
    this.stop?.element?.setAttribute("tabindex", "-1");
    this.stop = step ?? null;
    step?.element?.setAttribute("tabindex", "0");
  }

  // --- one row ---

  fill(step) {
    const { turn } = this, now = turn.tree.now();
    const said = describe({ start: step.start, end: step.end, over: turn.ended });
    const line = step.element, { parts } = line, folded = step.folded && step.children.length > 0;
    const [from, to] = folded ? extent(step) : step.span;
    step.pace = step.paceAt(now);
    line.dataset.kind = said.kind;
    line.dataset.state = said.state;
    setDepth(line, step.depth);
    parts.icon.textContent = step.running && step.pace ? PACES[step.pace].icon : said.icon;
    write(parts.label, said.label);
    write(parts.facts, said.facts);
    this.#fillPace(step);
    this.#fillRollUp(step, folded);
    parts.words.title = [said.label, parts.words.textContent.slice(said.label.length).trim()].filter(Boolean).join(": ");
    fillBar(step, from, to, folded);
    write(parts.time, to === null || to > from ? duration((to ?? now) - from) : "");
    if (step.end && !parts.end) line.append((parts.end = element("span", { data: { flowId: step.end.flow_id, checkpoint: step.end.checkpoint }, attributes: { hidden: "" } })));
    twist(step);
    if (parts.details && parts.details.of !== step.end) this.showDetails(step);
  }

  // "usual 1.4 s" while it runs; amber words and icon once it is slower; quiet when it is over.
  #fillPace(step) {
    const { usual, pace, running } = step, { parts } = step.element;
    step.element.dataset.pace = running ? pace : "";
    const words = !usual || (!running && !pace) ? "" : running && pace ? `${PACES[pace].words} (${duration(usual.p50)})` : `usual ${duration(usual.p50)}`;
    if (!words) return parts.pace?.remove(), (parts.pace = null);
    if (!parts.pace) parts.facts.before((parts.pace = element("span", { className: "row-pace" })));
    parts.pace.classList.toggle("is-slow", pace !== "");
    parts.pace.title = pace && !running ? `${PACES[pace].words}: ${usually(usual)}` : usually(usual);
    parts.pace.replaceChildren(...(pace && !running ? [icon(PACES[pace].icon)] : []), words);
  }

  // A folded step says what is below it; so does one whose own row has no tokens to show.
  #fillRollUp(step, folded) {
    const { parts } = step.element;
    if (!folded) return parts.sum?.remove(), (parts.sum = null);
    if (!parts.sum) parts.label.after((parts.sum = element("span", { className: "row-sum" })));
    write(parts.sum, rollUpFacts(step));
  }

  // The clocks of what runs. Returns the steps that are slower now than they were.
  tick(running) {
    const now = this.turn.tree.now(), slower = [];
    for (const step of running) {
      const before = step.pace, pace = step.paceAt(now);
      if (pace !== before) slower.push(step);
      step.pace = pace;
      const shown = step.foldedInto ?? step;
      if (!shown.element) continue;
      if (pace !== before || shown !== step) this.fill(shown);
      else write(shown.element.parts.time, duration(now - step.at));
    }
    return slower;
  }

  // --- folding, details, going to a row ---

  fold(step, folded) {
    step.folded = folded;
    this.stale = true;
    this.draw([step]);
  }

  // What a step is folded into opens.
  unfold(step) {
    for (let above = step.parent; above; above = above.parent) above.folded &&= (this.stale = true) && false;
  }

  toggleDetails(step, wanted = !this.opened.has(step)) {
    if (wanted) return this.showDetails(step);
    this.opened.delete(step);
    step.element.parts.details?.remove();
    step.element.parts.details = null;
    step.element.classList.remove("has-details");
    this.look();
  }

  showDetails(step) {
    const { parts } = step.element, made = details(step);
    made.of = step.end;
    if (parts.details) parts.details.replaceWith(made);
    else step.element.append(made);
    parts.details = made;
    step.element.classList.add("has-details");
    this.opened.add(step);
  }

  // The row of this step, drawn wherever the view is.
  rowOf(step) {
    if (this.stale) this.#arrange();
    if (!step.element) this.#stopAt(step), this.#stand(this.#wanted());
    return step.element;
  }

  goTo(step) {
    if (!step) return;
    const line = this.rowOf(step);
    this.#stopAt(step);
    line.focus({ preventScroll: true });
    line.scrollIntoView({ block: "nearest" });
  }

  atFocus(step) {
    this.#stopAt(step);
  }
}

// --- pieces ------------------------------------------------------------------------------------

function* inOrder(steps) {
  const stack = [...steps].reverse();
  while (stack.length) {
    const step = stack.pop();
    yield step;
    if (!step.folded) for (let at = step.children.length - 1; at >= 0; at -= 1) stack.push(step.children[at]);
  }
}

function isLast(step) {
  for (let at = step; at; at = at.parent) {
    const siblings = at.parent ? at.parent.children : at.turn.roots;
    if (siblings.at(-1) !== at) return false;
  }
  return true;
}

function extent(step) {
  const { from, to } = step.rollUp;
  return [from, to];
}

function row(step) {
  const parts = {
    icon: icon(""),
    label: element("b", { className: "row-label" }),
    facts: element("span", { className: "row-facts" }),
    bar: element("i"),
    time: element("span", { className: "row-time" }),
    pace: null, sum: null, usual: null, first: null, below: null, twist: null, end: null, details: null,
  };
  parts.icon.classList.add("row-icon");
  parts.words = element("span", { className: "row-words" }, parts.label, " ", parts.facts);
  parts.frame = element("span", { className: "row-bar", attributes: { "aria-hidden": "true" } }, parts.bar);
  const made = element("div", {
    className: "row",
    data: { flowId: step.start.flow_id, checkpoint: step.start.checkpoint },
    attributes: { role: "treeitem", tabindex: "-1" },
  }, parts.icon, parts.words, parts.frame, parts.time);
  made.parts = parts;
  made.step = step;
  return made;
}

// The bar on the turn's axis: from..to, where the usual end of it would be, its first token, and,
// paler, until when what is below it took.
function fillBar(step, from, to, folded) {
  const { parts } = step.element, { bar } = parts, { turn } = step, base = turn.at, { usual } = step;
  set(bar, "--s", Math.max(0, from - base));
  set(bar, "--e", to === null ? null : Math.max(0, to - base));
  bar.className = to === from ? "is-point" : "";
  const first = step.end?.metadata?.ttft_ms;
  mark(parts, "usual", usual && usual.p95 >= LEAST_MS && !folded ? from - base + usual.p50 : null, "is-usual");
  mark(parts, "first", Number.isFinite(first) && step.end.checkpoint === "llm_complete" && !folded ? from - base + first : null, "is-first");
  const last = tail(step, folded);
  mark(parts, "below", last === null ? null : (to ?? from) - base, "is-below");
  if (parts.below) set(parts.below, "--e", last - base);
  parts.frame.title = [usual && !folded ? usually(usual) : "", parts.first ? `first token after ${duration(first)}` : "", last === null ? "" : `all below it after ${duration(last - from)}`].filter(Boolean).join(" · ");
}

// When the last step below one was over, where that is later than its own end; for checks it always
// is, so it says nothing there.
function tail(step, folded) {
  const own = step.endAt;
  if (folded || own === null || step.children.length === 0 || step.element.dataset.kind === "check") return null;
  const last = Math.max(...step.children.slice(-50).map((child) => child.endAt ?? own));
  return last > own ? last : null;
}

function mark(parts, name, at, className) {
  if (at === null) return parts[name]?.remove(), (parts[name] = null);
  if (!parts[name]) parts.frame.append((parts[name] = element("i", { className })));
  set(parts[name], "--s", at);
}

function set(one, name, value) {
  const text = value === null ? "" : String(value);
  if (one.style.getPropertyValue(name) !== text) one.style.setProperty(name, text);
}

// Only a text that changed is written: a selection in it stays, and nothing is laid out anew.
function write(one, text) {
  if (one.textContent !== text) one.textContent = text;
}

function setDepth(line, depth) {
  const level = String(depth + 1);
  if (line.getAttribute("aria-level") === level) return;
  line.setAttribute("aria-level", level);
  line.style.setProperty("--depth", Math.min(depth, DEEPEST));
}

// The height of so many rows. Not as a property of our own: those are inherited, and each change of
// one would style anew everything below it.
const rows = (count) => (count > 0 ? `calc(${count} * var(--row))` : "");

function gap(line, count) {
  if ((line.gap ?? 0) === count) return;
  line.gap = count;
  line.style.marginTop = rows(count);
}

// Where it stands among its siblings: those are not all in the page.
function place(step) {
  const siblings = step.parent ? step.parent.children : step.turn.roots;
  const line = step.element, size = siblings.length;
  if (line.siblings === size) return;
  line.siblings = size;
  line.setAttribute("aria-setsize", size);
  line.setAttribute("aria-posinset", siblings.indexOf(step) + 1);
}

// The little arrow of a row with children; with the pointer only, keys have the arrows.
function twist(step) {
  const line = step.element;
  if (step.children.length === 0) return line.removeAttribute("aria-expanded");
  line.setAttribute("aria-expanded", String(!step.folded));
  if (!line.parts.twist) line.prepend((line.parts.twist = element("span", { className: "twist", attributes: { "aria-hidden": "true" } }, icon("expand_more"))));
}
