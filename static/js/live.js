// The live wall: who is monitored, a panel for each user watched, what an operator may do about it.
// The URL says who is watched; everything else is told by the sockets and by /live/people.

import { announce, button, element, icon, pageData, typing } from "./dom.js";
import { FlowSocket } from "./flow_socket.js";
import { FlowTree } from "./flow_tree.js";
import { ago, clock, count, duration, exact, initials, instant, moment, plural, remaining } from "./format.js";
import { send } from "./send.js";
import { StopButton, blockButton } from "./stop.js";

const page = pageData("live-page");
const POLL_MS = 4000, POLL_HIDDEN_MS = 20_000;
const MINUTE_MS = 60_000;
const SILENT_MS = 60_000; // from then on a panel says since when nothing came
const MOST_HELD = 5000; // checkpoints kept back while the picture is held still
const USUAL_MS = 90_000; // what is usual is asked for again so often
const TYPING_MS = 250; // the filter waits until one stops typing
const PRESETS = [[0.25, "15 min"], [1, "1 h"], [8, "8 h"], [24, "24 h"]].filter(([hours]) => hours <= page.max_ttl_hours);
const STATES = ["running", "refused", "failed"];

const panels = new Map(); // user_id -> Panel, in the order of the URL
const people = new Map(); // user_id -> who is monitored, with `until` in this machine's time
const others = new Map(); // user_id -> who is not, and how his last period ended
const delays = []; // [when, milliseconds], the last minute of all panels
let paused = false, following = true, usual = page.usual;

const place = (id) => document.getElementById(id);
const nameOf = (userId) => people.get(userId)?.name || others.get(userId)?.name || userId;

// --- a panel -------------------------------------------------------------------------------------

class Panel {
  constructor(userId) {
    this.userId = userId;
    this.live = []; // drawn next: came by themselves, not in a snapshot, so their delay can be told
    this.delays = [];
    this.state = null;
    this.active = null; // is he monitored? null: not known yet
    this.level = page.live;
    this.seen = null; // when something last came
    this.#build();
    this.tree = new FlowTree(this.body, {
      order: "newest",
      now: () => Date.now() - (this.socket?.offset ?? 0),
      speak: true,
      load: page.may_view ? loadTurn : null,
      usual,
      onchange: () => this.#showCounts(),
      stopFor: page.may_stop ? (turn) => new StopButton(turn, { mayTell: true }) : null,
      historyOf: page.may_view ? (session, flowId) => `/flows/${encodeURIComponent(session)}/#${flowId}` : null,
    });
    this.tree.follow = following;
    this.tree.filter = filter();
    this.body.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    if (page.live !== "off") this.socket = new FlowSocket(userId, this.#words());
    else this.state = { name: "disconnected", why: "Live is off: Omni2 runs without Redis." };
    this.show();
  }

  #build() {
    this.avatar = element("span", { className: "avatar", attributes: { "aria-hidden": "true" } });
    this.name = element("h2");
    this.address = element("span", { className: "soft" });
    this.pill = element("span", { className: "pill", attributes: { role: "status" } });
    this.speed = element("span", { className: "pill", title: "From checkpoint to screen, half of them within this time" });
    this.timer = element("details", { className: "menu" });
    this.timeLeft = element("span");
    const close = button("", { symbol: "close", className: "icon-button", label: "Close this panel", title: "Close this panel" }, () => select(this.userId, false));
    const block = page.may_block && others.get(this.userId)?.known !== false ? blockButton(this.userId, () => nameOf(this.userId), { mayEnd: page.may_unblock }) : null;
    this.note = element("div", { className: "panel-note", attributes: { hidden: "" } });
    this.empty = element("div", { className: "panel-empty" });
    this.body = element("div", { className: "panel-body", attributes: { tabindex: "-1" } });
    const head = element("header", { className: "panel-head" },
      element("div", { className: "panel-who", title: this.userId }, this.avatar, this.name, this.address),
      element("div", { className: "panel-state" }, this.pill, this.speed, this.timer, block, close));
    this.counts = element("div", { className: "panel-counts", attributes: { hidden: "" } });
    this.foot = element("div", { className: "panel-foot", attributes: { hidden: "" } });
    this.element = element("section", { className: "panel", data: { user: this.userId }, attributes: { "aria-label": nameOf(this.userId) } }, head, this.note, this.empty, this.body, this.counts, this.foot);
    this.#buildTimer();
  }

  #buildTimer() {
    const summary = element("summary", { className: "pill" }, icon("timer"), this.timeLeft);
    this.timer.append(summary);
    if (!page.may_manage) return summary.setAttribute("tabindex", "-1"), summary.addEventListener("click", (event) => event.preventDefault());
    summary.title = "Extend or stop";
    fillMenu(this.timer, this.userId);
  }

  close() {
    this.socket?.close();
    this.tree.destroy();
    this.element.remove();
  }

  // --- what the socket says (see flow_socket.js) ---

  #words() {
    return {
      state: (state) => {
        this.state = state;
        this.show();
      },
      hello: ({ monitoring: { active, expires_at: expires } }) => this.#setMonitoring(active, expires),
      monitoring: ({ active, expires_at: expires }) => {
        this.#setMonitoring(active, expires);
        if (!active) announce(`Monitoring of ${nameOf(this.userId)} ended`);
        askPeople();
      },
      live: (level) => this.#setLevel(level),
      snapshot: (checkpoints, how) => this.#snapshot(checkpoints, how),
      checkpoint: (checkpoint) => this.#checkpoint(checkpoint),
      draw: () => this.draw(),
    };
  }

  #setMonitoring(active, expires) {
    const ended = this.active === true && !active;
    this.active = active;
    this.tree.still = paused || !active;
    if (ended) others.set(this.userId, { user_id: this.userId, name: nameOf(this.userId), known: true, ended_at: new Date().toISOString() });
    if (ended) people.delete(this.userId);
    if (active && expires) {
      const known = people.get(this.userId);
      people.set(this.userId, { ...(known ?? { user_id: this.userId, name: nameOf(this.userId) === this.userId ? "" : nameOf(this.userId) }), until: instant(expires) + (this.socket?.offset ?? 0) });
    }
    showPeople();
    this.show();
  }

  #setLevel(level) {
    if (level === this.level) return;
    this.level = level;
    this.show();
  }

  #snapshot(checkpoints, { fresh }) {
    // what was seen stays when there is nothing to be seen any more
    if (this.active === false && checkpoints.length === 0) return;
    if (fresh) this.tree.replace(checkpoints);
    else for (const one of checkpoints) this.tree.add(one);
    for (const one of checkpoints) this.seen = Math.max(this.seen ?? 0, instant(one.created_at));
  }

  #checkpoint(checkpoint) {
    if (this.tree.add(checkpoint)) this.live.push(checkpoint);
    if (paused && this.tree.fresh.length > MOST_HELD) this.socket.hold();
  }

  draw() {
    if (paused) return;
    this.tree.flush();
    const now = Date.now();
    for (const one of this.live) {
      const at = instant(one.created_at);
      this.seen = Math.max(this.seen ?? 0, at);
      if (!document.hidden) remember(this.delays, now, now - at);
    }
    this.live = [];
    this.show();
  }

  // --- what is shown around the tree ---

  show() {
    const monitored = people.get(this.userId), other = others.get(this.userId);
    const name = nameOf(this.userId);
    this.avatar.textContent = initials(name);
    this.name.textContent = name;
    this.name.title = this.userId;
    this.element.setAttribute("aria-label", name);
    this.address.textContent = name === this.userId ? "" : this.userId;
    this.#showPill();
    this.#showNote(other);
    this.timer.hidden = !monitored || this.active === false;
    if (monitored) this.timeLeft.textContent = remaining(monitored.until - Date.now());
    const half = delayOf(recent(this.delays), 0.5);
    this.speed.hidden = half === null;
    if (half !== null) this.speed.textContent = duration(half);
    this.#showEmpty();
  }

  #showPill() {
    const { name, attempt, since, why } = this.state ?? { name: "connecting" };
    const ended = name === "connected" && this.active === false;
    const text = ended ? (others.get(this.userId)?.ended_at ? "Monitoring ended" : "Not monitored") : { connecting: "Connecting", connected: paused ? "Paused" : "Connected", reconnecting: `Reconnecting (${attempt})`, disconnected: "Disconnected" }[name];
    this.pill.dataset.state = ended ? "ended" : name;
    if (this.pill.textContent !== text) this.pill.textContent = text;
    this.pill.title = name === "reconnecting" && since ? `No connection since ${clock(since)}; what is missed comes when it is back` : why ?? "";
  }

  #showNote(other) {
    const { name, why, signIn } = this.state ?? {};
    const parts = [];
    if (name === "disconnected") {
      parts.push(why);
      if (signIn) parts.push(element("a", { text: "Sign in", className: "button", attributes: { href: `/login/?next=${encodeURIComponent(location.pathname + location.search)}` } }));
    } else if (this.active === false) {
      parts.push(endedWords(other));
      if (page.may_manage && other?.known !== false) parts.push(button(other?.ended_at ? "Watch again" : "Watch now", { symbol: "visibility" }, () => openSheet(this.userId)));
      else if (!page.may_manage) parts.push("Somebody who may manage monitoring can enable it.");
    } else if (this.level === "degraded") {
      parts.push("Redis takes no checkpoints at the moment. Chats go on and every checkpoint is kept; this panel catches up by itself.");
    }
    const key = parts.map((part) => part.textContent ?? part).join("|");
    if (key === this.noteKey) return;
    this.noteKey = key;
    this.note.hidden = parts.length === 0;
    this.note.replaceChildren(...parts.map((part) => (typeof part === "string" ? element("p", { text: part }) : part)));
  }

  #showEmpty() {
    const nothing = this.tree.isEmpty && this.tree.cleared === 0;
    const words = nothing ? "" : this.#silence();
    this.foot.hidden = words === "";
    if (this.foot.textContent !== words) this.foot.textContent = words;
    this.empty.hidden = !nothing || this.active === false || this.state?.name === "disconnected";
    this.body.hidden = nothing || this.tree.isEmpty;
    if (this.empty.hidden) return;
    const since = people.get(this.userId)?.enabled_at;
    this.empty.textContent = this.state?.name !== "connected" ? "Connecting…"
      : `Watching. Nothing since ${since ? moment(instant(since)) : "you came"}: ${nameOf(this.userId)} has asked nothing. The next question appears here as it is being answered.`;
  }

  // Why nothing moves: no connection, or nothing happens.
  #silence() {
    const { name, since } = this.state ?? {};
    if (name === "reconnecting" && since) return `No connection since ${clock(since)}. What is missed comes when it is back.`;
    if (!this.active || this.seen === null || this.tree.running.length || this.tree.now() - this.seen <= SILENT_MS) return "";
    return `Watching. Nothing since ${moment(this.seen)}.`;
  }

  // What is not in this panel, and where it is: hidden by the filter, cleared, or too old.
  #showCounts() {
    const { hiddenTurns, cleared, older } = this.tree;
    const inHistory = page.may_view ? element("a", { text: "in history", attributes: { href: `/flows/?user_id=${encodeURIComponent(this.userId)}` } }) : "in history";
    const lines = [
      hiddenTurns ? [element("b", { text: count(hiddenTurns) }), " hidden by the filter ", button("Show", { className: "link-button", label: "Show all turns" }, () => setFilter({ text: "", states: new Set() }))] : null,
      cleared || older ? [[cleared ? `${plural(cleared, "turn")} cleared` : "", older ? `${plural(older, "older turn")}` : ""].filter(Boolean).join(", "), ": ", inHistory] : null,
    ].filter(Boolean);
    this.counts.hidden = lines.length === 0;
    this.counts.replaceChildren(...lines.map((parts) => element("p", {}, ...parts)));
  }

  #scrolled() {
    if (!following) return;
    const { current } = this.tree, last = current.lastElementChild;
    const end = last ? last.offsetTop + last.offsetHeight : 0;
    const { scrollTop, clientHeight } = this.body;
    this.tree.follow = end <= scrollTop + clientHeight + 40 && end >= scrollTop;
  }
}

function endedWords(other) {
  if (other?.known === false) return "There is no such user.";
  if (!other?.ended_at) return "Not monitored: nothing is shown live.";
  const when = ago(instant(other.ended_at));
  return other.ended_by ? `Monitoring was ended ${when} by ${other.ended_by}.` : `Monitoring ended ${when}${"ended_by" in other ? ": its time ran out" : ""}.`;
}

async function loadTurn(session, turnId) {
  const answer = await fetch(`/api/v1/flows/session/${encodeURIComponent(session)}`, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(answer.statusText);
  return (await answer.json()).flows.filter((one) => one.turn_id === turnId);
}

// Extend or stop, for a panel and for a chip.
function fillMenu(menu, userId) {
  const act = (work) => () => {
    menu.open = false;
    work();
  };
  menu.append(element("div", {}, element("p", { text: "From now on for" }),
    ...PRESETS.map(([hours, text]) => button(text, { symbol: "more_time", className: "" }, act(() => enable(userId, hours).catch(complain)))),
    button("Another time…", { symbol: "edit_calendar", className: "" }, act(() => openSheet(userId))),
    button("Stop monitoring", { symbol: "visibility_off", className: "button-stop" }, act(() => disable(userId).catch(complain)))));
}

// --- delays ----------------------------------------------------------------------------------------
// Kept by this machine's clock; the server's comes off when they are shown, as soon as it is known.

function remember(list, now, ms) {
  const entry = [now, ms];
  for (const kept of [list, delays]) {
    kept.push(entry);
    if (kept.length > 4000) kept.splice(0, 2000);
  }
}

function recent(list) {
  const from = Date.now() - MINUTE_MS;
  while (list.length && list[0][0] < from) list.shift();
  return list.map(([, ms]) => ms).sort((a, b) => a - b);
}

// The delay that this part of them stay under, or null while there is none, or no clock to tell it by.
function delayOf(sorted, part) {
  const clocks = [...panels.values()].filter((panel) => panel.socket?.knowsClock).map((panel) => panel.socket.offset);
  if (!sorted.length || !clocks.length) return null;
  return Math.max(1, sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] - Math.min(...clocks));
}

function showDelay() {
  const sorted = recent(delays), pill = place("delay"), half = delayOf(sorted, 0.5);
  pill.hidden = half === null;
  if (half !== null) pill.textContent = `checkpoint to screen: ${duration(half)}, 95 % under ${duration(delayOf(sorted, 0.95))}`;
}

// --- who is monitored ------------------------------------------------------------------------------

function learn({ people: monitored, others: rest }) {
  const before = new Map(people);
  people.clear();
  for (const one of monitored) people.set(one.user_id, { ...one, until: Date.now() + one.remaining_ms });
  for (const one of rest) others.set(one.user_id, one);
  for (const [userId, one] of before) if (!people.has(userId) && !others.has(userId)) others.set(userId, { ...one, known: true });
  showPeople();
  for (const panel of panels.values()) panel.show();
}

function showPeople() {
  const list = place("people");
  const kept = new Map([...list.children].map((item) => [item.dataset.user, item]));
  const wanted = [...people.values()].map((one) => kept.get(one.user_id) ?? chip(one.user_id));
  // only what changed is touched: a focused chip keeps its focus
  for (const [userId, item] of kept) if (!people.has(userId)) item.remove();
  wanted.forEach((item, at) => list.children[at] !== item && list.insertBefore(item, list.children[at] ?? null));
  for (const item of list.children) fillChip(item);
  showNobody();
}

function chip(userId) {
  const item = element("li", { data: { user: userId } });
  const toggle = element("button", { className: "chip", attributes: { type: "button" } },
    element("span", { className: "avatar", attributes: { "aria-hidden": "true" } }), element("span"), element("time"));
  toggle.addEventListener("click", () => select(userId, !panels.has(userId)));
  item.append(toggle);
  if (page.may_manage) item.append(chipMenu(userId));
  return item;
}

function chipMenu(userId) {
  const summary = element("summary", { className: "icon-button", title: "Extend or stop", attributes: { "aria-label": `Extend or stop: ${nameOf(userId)}` } }, icon("more_vert"));
  const menu = element("details", { className: "menu" }, summary);
  // made when it is needed: there may be many chips
  menu.addEventListener("toggle", () => {
    menu.querySelector("div")?.remove();
    if (menu.open) fillMenu(menu, userId);
  });
  return menu;
}

function fillChip(item) {
  const one = people.get(item.dataset.user), [toggle] = item.children;
  const [avatar, name, time] = toggle.children;
  avatar.textContent = initials(one.name || one.user_id);
  name.textContent = one.name || one.user_id;
  time.textContent = remaining(one.until - Date.now());
  toggle.setAttribute("aria-pressed", String(panels.has(one.user_id)));
  toggle.title = [one.user_id, one.enabled_by ? `enabled by ${one.enabled_by}` : "", one.enabled_at ? `since ${exact(instant(one.enabled_at))}` : "", one.reason ? `“${one.reason}”` : ""].filter(Boolean).join(" · ");
}

function showNobody() {
  const box = place("nobody");
  const key = panels.size ? "" : people.size ? "choose" : "nobody";
  if (box.dataset.key === key || page.live === "off") return;
  box.dataset.key = key;
  if (!key) return box.replaceChildren();
  const first = key === "choose" ? ["Choose whom to watch", "Pick somebody above. What he asks appears here step by step, while it is being answered."]
    : ["Nobody is monitored yet", "Choose a user and for how long. What he asks then appears here step by step, while it is being answered; who watched whom is kept in the access log."];
  box.replaceChildren(element("div", { className: "empty" }, icon("sensors"), element("h2", { text: first[0] }), element("p", { text: first[1] }),
    key === "nobody" ? (page.may_manage ? button("Watch someone", { symbol: "add", className: "button is-main" }, () => openSheet()) : element("p", { text: "Somebody who may manage monitoring can enable it." })) : null));
}

let asking = null;
function askPeople() {
  clearTimeout(asking);
  asking = setTimeout(pollPeople, 150);
}

async function pollPeople() {
  clearTimeout(asking);
  try {
    const query = new URLSearchParams([...panels.keys()].map((userId) => ["user", userId]));
    const answer = await fetch(`/live/people?${query}`, { headers: { Accept: "application/json" } });
    if (answer.ok) learn(await answer.json());
  } catch {
    // the server is away: the panels' sockets say so
  }
  clearTimeout(asking);
  asking = setTimeout(pollPeople, document.hidden ? POLL_HIDDEN_MS : POLL_MS);
}

// --- the choice, kept in the URL -----------------------------------------------------------------

const chosen = () => [...new Set(new URLSearchParams(location.search).getAll("user").map((one) => one.trim().toLowerCase()).filter(Boolean))].slice(0, page.most_panels);

function select(userId, wanted) {
  const users = wanted ? [...panels.keys(), userId] : [...panels.keys()].filter((one) => one !== userId);
  if (users.length > page.most_panels) return complain(new Error(`At most ${page.most_panels} panels at once: close one first.`));
  history.pushState(null, "", address(users, filter()));
  showChoice();
}

function address(users, { text, states }) {
  const query = new URLSearchParams([...users.map((one) => ["user", one]), ...(text ? [["filter", text]] : []), ...[...states].map((one) => ["state", one])]);
  return query.size ? `?${query}` : location.pathname;
}

function showChoice() {
  const users = chosen();
  for (const [userId, panel] of [...panels]) {
    if (users.includes(userId)) continue;
    panel.close();
    panels.delete(userId);
  }
  for (const userId of users) {
    if (panels.has(userId)) continue;
    const panel = new Panel(userId);
    panels.set(userId, panel);
    place("panels").append(panel.element);
  }
  place("panels").dataset.many = panels.size > 4 ? "rows" : panels.size > 2 ? "columns" : "";
  place("tools").hidden = panels.size === 0 || page.live === "off";
  showFilter();
  showPeople();
  askPeople();
}

// --- the filter, kept in the URL ------------------------------------------------------------------

function filter() {
  const query = new URLSearchParams(location.search);
  return { text: query.get("filter") ?? "", states: new Set(query.getAll("state").filter((one) => STATES.includes(one))) };
}

// Typing makes no new entry of the browser's history, a chip does.
function setFilter(wanted, { typed = false } = {}) {
  history[typed ? "replaceState" : "pushState"](null, "", address([...panels.keys()], wanted));
  showFilter();
  const hidden = trees().reduce((sum, tree) => sum + tree.hiddenTurns, 0);
  announce(hidden ? `${plural(hidden, "turn")} hidden by the filter` : "No turn is hidden");
}

function showFilter() {
  const { text, states } = filter(), field = place("filter");
  if (document.activeElement !== field || field.value.trim() !== text) field.value = text;
  for (const chip of place("states").children) chip.setAttribute("aria-pressed", String(states.has(chip.dataset.state)));
  for (const tree of trees()) tree.filter = { text, states };
}

function toggleState(state) {
  const { text, states } = filter();
  if (!states.delete(state)) states.add(state);
  setFilter({ text, states });
}

function prepareTools() {
  const field = place("filter");
  let waiting = null;
  field.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => setFilter({ ...filter(), text: field.value.trim() }, { typed: true }), TYPING_MS);
  });
  place("states").addEventListener("click", ({ target }) => {
    const chip = target.closest("button");
    if (chip) toggleState(chip.dataset.state);
  });
  place("expand").addEventListener("click", () => trees().forEach((tree) => tree.expandAll()));
  place("collapse").addEventListener("click", () => trees().forEach((tree) => tree.collapseAll()));
  place("clear").addEventListener("click", clearEnded);
}

function clearEnded() {
  const before = trees().reduce((sum, tree) => sum + tree.cleared, 0);
  for (const panel of panels.values()) {
    panel.tree.clear();
    panel.show();
  }
  announce(`${plural(trees().reduce((sum, tree) => sum + tree.cleared, 0) - before, "turn")} cleared; history keeps them`);
}

// --- what is usual --------------------------------------------------------------------------------

async function askUsual() {
  try {
    const answer = document.hidden ? null : await fetch("/live/usual", { headers: { Accept: "application/json" } });
    if (answer?.ok) usual = await answer.json();
    if (answer?.ok) for (const tree of trees()) tree.usual = usual;
  } catch {
    // the server is away: what was usual is still a good guess
  }
}

// --- what an operator may do ------------------------------------------------------------------------

async function enable(userId, hours, reason) {
  await send("/api/v1/monitoring/enable", { user_id: userId, ttl_hours: hours, ...(reason ? { reason } : {}) });
  await pollPeople();
}

async function disable(userId) {
  await send("/api/v1/monitoring/disable", { user_id: userId });
  await pollPeople();
}

function complain(problem) {
  const said = element("div", { className: "notice is-bad", attributes: { role: "alert" } }, icon("error"), element("p", { text: problem.message }));
  place("panels").before(said);
  setTimeout(() => said.remove(), 8000);
}

// The sheet: search, time, reason. Arrow keys choose among what was found.
const sheet = place("watch-sheet");
let picked = null, searching = null, lastSearch = 0, foundFor = null;

function openSheet(userId = null) {
  if (!sheet) return;
  for (const id of ["who", "ttl", "reason"]) place(`watch-${id}-error`).textContent = "";
  place("watch-who").value = userId ?? "";
  place("watch-found").replaceChildren();
  picked = userId;
  sheet.showModal();
  (userId ? place("watch-go") : place("watch-who")).focus();
}

async function searchUsers() {
  const words = place("watch-who").value.trim(), turn = ++lastSearch;
  if (!words) return showFound([]);
  const answer = await fetch(`/live/search?${new URLSearchParams({ q: words })}`, { headers: { Accept: "application/json" } }).catch(() => null);
  if (turn !== lastSearch || !answer?.ok) return;
  const { people: found } = await answer.json();
  // somebody may have been picked, or more typed, while it was read
  if (turn !== lastSearch) return;
  foundFor = words;
  showFound(found);
}

function showFound(found) {
  const list = place("watch-found");
  list.replaceChildren(...found.map(({ user_id: userId, name }, at) => {
    const option = element("div", { data: { user: userId }, attributes: { role: "option", id: `found-${at}`, "aria-selected": "false" } },
      element("span", { className: "avatar", text: initials(name || userId), attributes: { "aria-hidden": "true" } }),
      element("span", {}, element("b", { text: name || userId }), name ? element("span", { className: "soft", text: ` ${userId}` }) : null));
    option.addEventListener("pointerdown", (event) => event.preventDefault());
    option.addEventListener("click", () => pick(userId));
    return option;
  }));
  place("watch-who").setAttribute("aria-expanded", String(found.length > 0));
  if (!found.length && place("watch-who").value.trim()) list.replaceChildren(element("p", { className: "panel-empty", text: "Nobody found." }));
  mark(found.length ? 0 : -1);
}

const options = () => [...place("watch-found").querySelectorAll("[role=option]")];
const marked = () => options().findIndex((one) => one.getAttribute("aria-selected") === "true");

function mark(at) {
  const all = options();
  all.forEach((one, index) => one.setAttribute("aria-selected", String(index === at)));
  all[at]?.scrollIntoView({ block: "nearest" });
  if (all[at]) place("watch-who").setAttribute("aria-activedescendant", all[at].id);
  else place("watch-who").removeAttribute("aria-activedescendant");
}

function pick(userId) {
  picked = userId;
  place("watch-who").value = userId;
  place("watch-who-error").textContent = "";
  lastSearch += 1;
  place("watch-found").replaceChildren();
  place("watch-who").setAttribute("aria-expanded", "false");
}

async function submitSheet(event) {
  event.preventDefault();
  const typed = place("watch-who").value.trim();
  // who was found for words that were changed since is not who is meant
  if (!picked && foundFor === typed && options().length) pick(options()[Math.max(0, marked())].dataset.user);
  const userId = picked ?? typed.toLowerCase();
  const choice = sheet.querySelector("[name=ttl]:checked").value;
  const hours = Number(choice === "own" ? place("watch-hours").value : choice);
  for (const id of ["who", "ttl", "reason"]) place(`watch-${id}-error`).textContent = "";
  if (!userId) return (place("watch-who-error").textContent = "Choose somebody first.");
  place("watch-go").disabled = true;
  try {
    await enable(userId, hours, place("watch-reason").value.trim());
    sheet.close();
    if (!panels.has(userId)) select(userId, true);
  } catch (problem) {
    showProblem(problem);
  } finally {
    place("watch-go").disabled = false;
  }
}

function showProblem({ fields = {}, message }) {
  const said = (name) => [fields[name]].flat().filter(Boolean).join(" ");
  place("watch-who-error").textContent = said("user_id") || (said("ttl_hours") || said("reason") ? "" : message);
  place("watch-ttl-error").textContent = said("ttl_hours");
  place("watch-reason-error").textContent = said("reason");
}

function prepareSheet() {
  for (const choice of sheet.querySelectorAll("[name=ttl]")) choice.parentElement.hidden = Number(choice.value) > page.max_ttl_hours;
  place("watch-someone").addEventListener("click", () => openSheet());
  place("watch-cancel").addEventListener("click", () => sheet.close());
  sheet.querySelector("form").addEventListener("submit", submitSheet);
  sheet.addEventListener("change", ({ target }) => {
    if (target.name === "ttl") place("watch-own").hidden = target.value !== "own";
  });
  const who = place("watch-who");
  who.addEventListener("input", () => {
    picked = null;
    clearTimeout(searching);
    searching = setTimeout(searchUsers, 150);
  });
  // the list is only there while one types: it lies over the fields below
  who.addEventListener("blur", () => who.setAttribute("aria-expanded", "false"));
  who.addEventListener("focus", () => who.setAttribute("aria-expanded", String(options().length > 0)));
  place("watch-found").addEventListener("mousedown", (event) => event.preventDefault());
  who.addEventListener("keydown", (event) => {
    const all = options();
    if (!all.length) return;
    if (event.key === "ArrowDown") mark((marked() + 1) % all.length);
    else if (event.key === "ArrowUp") mark((marked() - 1 + all.length) % all.length);
    else if (event.key === "Enter" && marked() >= 0) pick(all[marked()].dataset.user);
    else return;
    event.preventDefault();
  });
}

// --- pause, follow, keys -----------------------------------------------------------------------------

function setPaused(wanted) {
  paused = wanted;
  const control = place("pause");
  control.setAttribute("aria-pressed", String(paused));
  control.children[0].textContent = paused ? "play_arrow" : "pause";
  control.children[1].textContent = paused ? "Go on" : "Pause";
  for (const panel of panels.values()) {
    panel.tree.still = paused || panel.active === false;
    panel.live = [];
    panel.socket?.release();
    panel.draw();
    panel.show();
  }
}

function setFollowing(wanted) {
  following = wanted;
  place("follow").setAttribute("aria-pressed", String(following));
  for (const panel of panels.values()) {
    panel.tree.follow = following;
    if (following) panel.tree.release();
  }
}

const trees = () => [...panels.values()].map((panel) => panel.tree);

// j and k stay in the panel that has the focus, else begin in the first.
function moveFocus(by) {
  const here = [...panels.values()].find((panel) => panel.element.contains(document.activeElement)) ?? panels.values().next().value;
  here?.tree.moveFocus(by);
}

// All panels do the same: they open as long as anything can be opened.
function toggleAll() {
  const open = trees().some((tree) => tree.canExpand);
  for (const tree of trees()) open ? tree.expandAll() : tree.collapseAll();
}

const KEYS = {
  "/": () => (sheet ? openSheet() : place("filter").focus()),
  j: () => moveFocus(1),
  k: () => moveFocus(-1),
  p: () => setPaused(!paused),
  f: () => setFollowing(!following),
  e: toggleAll,
  "?": () => place("keys-sheet").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (typing(event) || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
document.addEventListener("keydown", ({ key }) => {
  const menu = key === "Escape" ? document.querySelector("details.menu[open]") : null;
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
document.addEventListener("click", ({ target }) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(target)) menu.open = false;
});
place("pause").addEventListener("click", () => setPaused(!paused));
place("follow").addEventListener("click", () => setFollowing(!following));
place("help").addEventListener("click", () => place("keys-sheet").showModal());
addEventListener("popstate", showChoice);
document.addEventListener("visibilitychange", () => document.hidden || askPeople());
if (sheet) prepareSheet();
prepareTools();

learn(page);
showChoice();
document.body.classList.add("is-drawn");
setInterval(() => {
  if (document.hidden) return;
  for (const item of place("people").children) fillChip(item);
  for (const panel of panels.values()) panel.show();
  showDelay();
}, 1000);
setInterval(askUsual, USUAL_MS);
