// The tree of a turn, the same rows on every page. It is fed checkpoints one by one and draws each
// turn as a line that opens into rows: indent guides, icon, label, facts, a bar on the turn's own
// time axis, the duration. The start and the end of a step are one row that changes.
//
//   const tree = new FlowTree(place, { order: "newest" | "oldest", now, load, historyOf, stopFor, speak, onselect, usual })
//   tree.add(checkpoint)      -> false when it has that flow_id already; nothing is drawn yet
//   tree.flush()              -> draws what came since, returns those checkpoints
//   tree.replace(checkpoints) -> shows exactly these, keeping what is open, focused and in view
//   tree.remove(turnId)       -> takes a turn away
//   tree.clear()              -> the ended turns leave this page, and do not come back to it
//   tree.select(flowId)       -> marks the row of this checkpoint and brings it into view; null: none
//   tree.reveal(flowId)       -> the same, with its details and the focus: for links
//   stopFor(turn)             -> a StopButton (stop.js) for the line of a turn
//   onselect(flowId)          <- the reader went to this row himself (the start of its step)
//   tree.usual = {…}          -> what is usual for a step: see pace.js
//   tree.filter = { text, states }   states: a Set of running, ok, refused, failed, left
//   tree.tick()               -> draws the running clocks now; five times a second it does so itself
//   onchange()                <- the counts below changed: hiddenTurns, cleared, older
//
// Rows stay few: of a turn with many only those near the view are drawn (flow_rows.js), a turn that
// folds frees its rows, old turns free their checkpoints, the oldest their line too.

import { announce, button, element } from "./dom.js";
import { Turn, lower } from "./flow_turn.js";
import { duration, plural } from "./format.js";
import { PACES } from "./pace.js";
import { OUTCOMES, describe, known } from "./words.js";

const KEPT_TURNS = 40, KEPT_CHECKPOINTS = 20_000; // of ended turns, in memory, so that they open at once
const KEPT_LINES = 300; // lines of ended turns; older ones are in history
const KEPT_OPEN = 20; // ended turns left open while the page does not follow
const LONG_ROWS = 600; // a page with more rows draws only those near the view
const NO_FILTER = { text: "", states: new Set() };

export class FlowTree {
  #filter = NO_FILTER;
  #usual;
  #looking = null;
  #clearedIds = new Set();

  constructor(place, { order = "oldest", now = Date.now, load = null, historyOf = null, stopFor = null, speak = false, onselect = null, onchange = null, usual = null } = {}) {
    Object.assign(this, { place, order, now, load, historyOf, stopFor, speak, onselect, onchange });
    this.#usual = usual;
    this.turns = new Map(); // turn_id -> Turn
    this.turnOf = new Map(); // flow_id -> Turn, for checkpoints that name no turn
    this.fresh = []; // added and not yet drawn
    this.dirty = new Set();
    this.held = []; // turns that wait, because drawing them would push what is being read
    this.selected = null; // a Step
    this.isLong = false;
    this.hiddenTurns = 0; // by the filter
    this.cleared = 0; // by the reader
    this.older = 0; // dropped, because too many came after them
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
    place.addEventListener("focusin", ({ target }) => target.step && this.#goTo(target.step));
    this.#watchView();
    TREES.add(this);
    startTicking();
  }

  destroy() {
    TREES.delete(this);
    this.resized.disconnect();
    removeEventListener("scroll", this.lookSoon, true);
  }

  get running() {
    return [...this.turns.values()].filter((turn) => !turn.ended);
  }

  get isEmpty() {
    return this.turns.size === 0;
  }

  get usual() {
    return this.#usual;
  }

  set usual(usual) {
    this.#usual = usual;
    for (const turn of this.turns.values()) for (const step of turn.rows?.drawn ?? []) turn.rows.fill(step);
  }

  // --- what comes in ---

  add(checkpoint) {
    if (this.#wasCleared(checkpoint)) return false;
    const turn = this.#turnFor(checkpoint);
    // a freed turn has ended: what comes of it again was seen
    if (turn.freed || !turn.add(checkpoint)) return false;
    this.turnOf.set(checkpoint.flow_id, turn);
    this.dirty.add(turn);
    this.fresh.push(checkpoint);
    return true;
  }

  #turnFor(checkpoint) {
    const parent = checkpoint.turn_id ? null : this.turnOf.get(checkpoint.parent_id);
    const id = parent?.id ?? checkpoint.turn_id ?? checkpoint.flow_id;
    if (!this.turns.has(id)) this.turns.set(id, new Turn(this, id));
    return this.turns.get(id);
  }

  flush() {
    const drawn = this.fresh;
    this.fresh = [];
    const waiting = [...this.dirty].sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
    const first = this.current.childElementCount + this.earlier.childElementCount === 0;
    this.dirty.clear();
    this.#measure(waiting);
    if (first) this.#showAll(waiting);
    else for (const turn of waiting) this.#show(turn);
    if (drawn.length) this.#bound();
    if (this.follow) this.#keepInView(waiting);
    this.#count();
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

  // What was cleared must not come back with the next snapshot.
  clear() {
    for (const turn of [...this.turns.values()]) {
      if (!turn.ended) continue;
      this.#clearedIds.add(turn.id);
      this.cleared += 1;
      this.#drop(turn);
    }
    for (const id of [...this.#clearedIds].slice(0, -KEPT_LINES * 4)) this.#clearedIds.delete(id);
    this.older = 0;
    this.current.style.minHeight = "";
    this.#count();
  }

  #wasCleared({ turn_id: turnId, flow_id: flowId }) {
    return this.#clearedIds.size > 0 && this.#clearedIds.has(turnId ?? flowId);
  }

  #drop(turn) {
    for (const id of turn.steps.keys()) this.turnOf.delete(id);
    this.turns.delete(turn.id);
    this.dirty.delete(turn);
    this.held = this.held.filter((one) => one !== turn);
    if (this.fresh.length) this.fresh = this.fresh.filter((one) => !turn.steps.has(one.flow_id));
    if (this.selected?.turn === turn) this.selected = null;
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
      turn.isHidden = turn.isHidden && !turn.matches(this.#filter);
      turn.draw();
      if (wasRunning && turn.ended) this.#say(`Turn ${lower(known(OUTCOMES, turn.outcome)?.label ?? "ended")}: ${turn.title}`);
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
    turn.isHidden = !turn.matches(this.#filter);
    if (this.order === "oldest" || turn.open) return insertByTime(this.current, article, 1);
    insertByTime(this.earlier, article, -1);
  }

  // Ended turns leave the top for their line; the top keeps its height, so nothing below it moves.
  #makeRoom() {
    if (this.order !== "newest" || !this.follow) return;
    const over = this.#ended(this.current).filter((turn) => !turn.byHand && !turn.isRead);
    if (over.length === 0) return;
    // what is drawn, not what an earlier fold kept free: room that nobody used is given back now
    const height = this.#heightOfNow();
    for (const turn of over) this.#fold(turn);
    this.current.style.minHeight = `${Math.min(height, this.place.clientHeight || height)}px`;
  }

  #ended(list) {
    return [...list.children].map((article) => article.turn).filter((turn) => turn.ended);
  }

  #fold(turn) {
    turn.open = false;
    // a turn that ended in view stays, whatever the filter says; from now on it is a line like others
    this.#stand(turn);
    turn.draw();
  }

  #readingEarlier() {
    return this.earlier.contains(document.activeElement) || this.#ended(this.earlier).some((turn) => turn.rows.opened.size > 0);
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

  // Old turns free their checkpoints, then their line: an hour of traffic costs what ten minutes cost.
  #bound() {
    if (this.order !== "newest") return;
    if (this.current.childElementCount > KEPT_OPEN) this.#foldOutOfView();
    const ended = [...this.turns.values()].filter((turn) => turn.ended && !turn.open);
    if (ended.length <= KEPT_TURNS && this.turnOf.size <= KEPT_CHECKPOINTS) return;
    ended.sort((a, b) => b.at - a.at);
    let checkpoints = 0;
    for (const [at, turn] of ended.entries()) {
      checkpoints += turn.steps.size;
      if (turn.freed || (at < KEPT_TURNS && checkpoints <= KEPT_CHECKPOINTS)) continue;
      for (const id of turn.steps.keys()) this.turnOf.delete(id);
      turn.free();
    }
    for (const turn of ended.slice(KEPT_LINES)) this.#forget(turn);
  }

  #forget(turn) {
    this.older += 1;
    this.#drop(turn);
  }

  // While the page does not follow, ended turns stay open where they are; not all of them for ever.
  #foldOutOfView() {
    const [top, bottom] = this.view;
    const over = this.#ended(this.current).filter((turn) => turn.open && !turn.byHand && !turn.isRead);
    for (const turn of over.slice(0, -KEPT_OPEN)) {
      const box = turn.article.getBoundingClientRect();
      if (box.bottom < top || box.top > bottom) this.#fold(turn);
    }
  }

  // Follows the growing end of what runs, never further than that it stays whole in view.
  #keepInView(turns) {
    if (this.order !== "newest" || !turns.some((turn) => !turn.ended)) return;
    const below = this.current.offsetTop + this.#heightOfNow() - (this.place.scrollTop + this.place.clientHeight);
    if (below <= 0) return;
    this.place.scrollTop += below;
    this.look();
  }

  #heightOfNow() {
    const last = [...this.current.children].findLast((article) => !article.hidden);
    return last ? last.offsetTop + last.offsetHeight - this.current.offsetTop : 0;
  }

  // --- the view: which part of a long tree is looked at ---

  // Top and bottom of what can be seen of this tree, in pixels of the window.
  get view() {
    const { top, bottom } = this.place.getBoundingClientRect();
    return [Math.max(0, top), Math.min(innerHeight, bottom)];
  }

  #watchView() {
    this.lookSoon = () => {
      this.#looking ??= requestAnimationFrame(() => this.look());
    };
    addEventListener("scroll", this.lookSoon, { capture: true, passive: true });
    this.resized = new ResizeObserver(this.lookSoon);
    this.resized.observe(this.place);
  }

  look() {
    cancelAnimationFrame(this.#looking);
    this.#looking = null;
    for (const turn of this.turns.values()) turn.rows?.look();
  }

  #measure(changed) {
    let rows = 0;
    for (const turn of this.turns.values()) rows += turn.open && !turn.isHidden ? turn.rows?.list.length ?? 0 : 0;
    for (const turn of changed) if (!turn.article && this.order === "oldest") rows += turn.steps.size;
    this.isLong = rows > LONG_ROWS;
  }

  // --- the filter, and what is not shown ---

  get filter() {
    return this.#filter;
  }

  set filter({ text = "", states = new Set() }) {
    this.#filter = { text: text.trim().toLowerCase(), states };
    for (const turn of this.turns.values()) {
      if (!turn.article) continue;
      const hide = !turn.matches(this.#filter);
      if (hide === turn.isHidden) continue;
      turn.isHidden = hide;
      turn.draw();
    }
    this.look();
    this.#count();
  }

  #count() {
    const hidden = [...this.turns.values()].filter((turn) => turn.isHidden).length;
    const counts = [hidden, this.cleared, this.older].join();
    if (counts === this.counts) return;
    [this.counts, this.hiddenTurns] = [counts, hidden];
    this.onchange?.();
  }

  // --- opening, folding, keys ---

  async toggle(turn, open = !turn.open) {
    turn.byHand = true;
    turn.open = open;
    if (open && turn.freed) await this.#bring(turn);
    turn.draw();
    if (open) this.onselect?.(turn.id);
  }

  async #bring(turn) {
    turn.meta.textContent = "reading from history…";
    try {
      turn.refill((await this.load?.(turn.session, turn.id)) ?? []);
      for (const id of turn.steps.keys()) this.turnOf.set(id, turn);
    } catch {
      turn.freed = true;
    }
    if (turn.freed) turn.open = false;
    if (turn.freed) announce("This turn is no longer in this page: open it in history");
  }

  // Every turn that is in memory; the others would each ask history.
  expandAll() {
    for (const turn of this.#shown()) {
      for (const step of turn.steps.values()) if (step.folded) turn.rows.stale = !(step.folded = false);
      if (!turn.freed) this.#open(turn, true);
    }
  }

  collapseAll() {
    for (const turn of this.#shown()) this.#open(turn, false);
  }

  get canExpand() {
    return this.#shown().some((turn) => !turn.open && !turn.freed);
  }

  toggleAll() {
    if (this.canExpand) this.expandAll();
    else this.collapseAll();
  }

  #shown() {
    return [...this.turns.values()].filter((turn) => turn.article && !turn.isHidden);
  }

  #open(turn, open) {
    [turn.byHand, turn.open] = [true, open];
    this.#measure([]);
    turn.draw();
  }

  // A row by its checkpoint's id, opened and brought into view: for links.
  reveal(flowId) {
    const step = this.turnOf.get(flowId)?.steps.get(flowId);
    if (!step) return false;
    this.#bringOut(step);
    step.turn.rows.toggleDetails(step, true);
    step.element.focus({ preventScroll: true });
    step.element.scrollIntoView({ block: "center" });
    this.look();
    return true;
  }

  // The row of a checkpoint, marked and in view, without its details; says it to nobody.
  select(flowId) {
    const step = flowId === null ? null : this.turnOf.get(flowId)?.steps.get(flowId);
    this.#mark(step ?? null);
    if (!step) return false;
    this.#bringOut(step);
    step.element.scrollIntoView({ block: "nearest" });
    this.look();
    return true;
  }

  // Opens whatever a row is folded into, and draws it.
  #bringOut(step) {
    const { turn } = step;
    turn.rows.unfold(step);
    turn.open = true;
    turn.isHidden = false;
    turn.draw();
    turn.rows.rowOf(step);
  }

  #mark(step) {
    this.selected?.element?.removeAttribute("aria-selected");
    this.selected = step;
    step?.element?.setAttribute("aria-selected", "true");
  }

  #goTo(step) {
    step.turn.rows.atFocus(step);
    if (this.selected === step) return;
    this.#mark(step);
    this.onselect?.(step.start.flow_id);
  }

  // j and k: the next row or turn from where the focus is.
  moveFocus(by) {
    const turns = [...this.place.querySelectorAll(".turn:not([hidden])")].map((article) => article.turn);
    const here = this.place.contains(document.activeElement) ? document.activeElement.closest(".row, .turn-head") : null;
    if (!here) return turns.length ? goTo(by > 0 ? turns[0] : turns.at(-1), by > 0 ? -1 : Infinity) : null;
    const { turn } = here.closest(".turn"), at = (here.step ? turn.rows.list.indexOf(here.step) : -1) + by;
    if (at >= -1 && at < turn.size) return goTo(turn, at);
    const next = turns[turns.indexOf(turn) + by];
    if (next) goTo(next, by > 0 ? -1 : Infinity);
  }

  #click(event) {
    const line = event.target.closest(".row");
    if (!line || event.target.closest(".details")) return;
    const { step } = line, { rows } = step.turn;
    if (event.target.closest(".twist")) return rows.fold(step, !step.folded);
    if (getSelection().isCollapsed) rows.toggleDetails(step);
    line.focus({ preventScroll: true });
  }

  #key(event) {
    const { step } = event.target;
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    const { children, turn } = step, { rows } = turn;
    const act = {
      ArrowDown: () => this.moveFocus(1),
      ArrowUp: () => this.moveFocus(-1),
      ArrowRight: () => (step.folded ? rows.fold(step, false) : rows.goTo(children[0])),
      ArrowLeft: () => (children.length && !step.folded ? rows.fold(step, true) : rows.goTo(step.parent)),
      Enter: () => rows.toggleDetails(step),
      " ": () => rows.toggleDetails(step),
      Escape: () => rows.toggleDetails(step, false),
      Home: () => rows.goTo(rows.list[0]),
      End: () => rows.goTo(rows.list.at(-1)),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
    this.look();
  }

  // --- the clocks ---

  tick() {
    for (const turn of this.running) for (const step of turn.tick()) this.#saySlow(step);
  }

  #saySlow(step) {
    const { words } = PACES[step.pace];
    if (words) this.#say(`${describe({ start: step.start, end: null }).label} is ${words}: ${duration(this.now() - step.at)}`);
  }
}

// The row at this place of a turn; -1 is its line, beyond the last row is the last.
function goTo(turn, at) {
  const place = Math.min(at, turn.size - 1);
  if (place >= 0) return turn.rows.goTo(turn.rows.list[place]);
  turn.head.focus({ preventScroll: true });
  turn.head.scrollIntoView({ block: "nearest" });
}

function insertByTime(list, article, direction) {
  const at = article.turn.at * direction;
  const isAfter = (other) => other !== article && other.turn.at * direction > at;
  // nearly always the newest comes: it is looked for from its end of the list
  let next = null;
  if (direction > 0) for (let one = list.lastElementChild; one && (one === article || isAfter(one)); one = one.previousElementSibling) next = one === article ? next : one;
  else next = [...list.children].find(isAfter) ?? null;
  if (article.parentElement === list && article.nextElementSibling === next) return;
  list.insertBefore(article, next);
}

// --- one clock for all trees of a page ---------------------------------------------------------

const TREES = new Set();
let ticking = null;

function startTicking() {
  ticking ??= setInterval(() => {
    if (!document.hidden) for (const tree of TREES) if (!tree.still) tree.tick();
  }, 200);
}
