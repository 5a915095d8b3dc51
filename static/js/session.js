// A stored session: the same rows as the live page, and beside them what was said. It grows while it
// is open: over the socket where the reader may watch and the user is monitored, otherwise by asking
// again. Of a long session the older turns are one line each, and bring their rows when opened.

import { announce, button, element, icon, pageData, typing } from "./dom.js";
import { FlowSocket } from "./flow_socket.js";
import { FlowTree } from "./flow_tree.js";
import { count, instant, money } from "./format.js";
import { Player, SPEEDS } from "./play.js";
import { StopButton } from "./stop.js";
import { showLocalTimes } from "./times.js";
import { Transcript } from "./transcript.js";
import { OUTCOMES } from "./words.js";

const data = pageData("session-data");
const place = document.getElementById("session");
const growing = document.getElementById("growing");

const ASK_MS = 2000; // while a turn runs
const ASK_QUIET_MS = 6000; // while one may still begin
const QUIET_FOR_MS = 15 * 60_000; // after that nobody waits for another turn here
const UNSTORED_MS = 5000; // what was made so long before the newest may still be on its way

const told = new Map(); // turn_id -> [checkpoint], what the transcripts are made of
const transcripts = new Map(); // turn_id -> Transcript
const stops = new Map(); // turn_id -> StopButton
const behind = new Map(); // turn_id -> summary: turns whose checkpoints did not come with the page
let socket = null, socketIsLive = false, timer = null, player = null, linked = 0;

const tree = new FlowTree(place, {
  order: "oldest",
  speak: true,
  usual: data.usual,
  now: () => Date.now() - (socket?.offset ?? 0),
  historyOf: (session, flowId) => `/flows/${encodeURIComponent(session)}/#${flowId}`,
  load: (session, turnId) => bring(turnId),
  onselect: (flowId) => {
    // the tree says so as well when a turn was opened
    if (tree.turns.has(flowId)) dress(tree.turns.get(flowId));
    markSaid(flowId);
    keepInUrl(flowId);
  },
});

document.getElementById("without-script").remove();
showLocalTimes();
for (const line of data.lines) addLine(line);
add(data.flows);
draw();
for (const { turn_id: id } of data.lines) foldLine(id);
linkTurns();
showFacts();
if (tree.isEmpty) place.append(element("p", { className: "soft", text: "Nothing is stored of this session." }));

// --- turns that are only a line ------------------------------------------------------------------

// A line is drawn from what the turn's summary says: as if its first and last checkpoint had come.
function addLine(line) {
  behind.set(line.turn_id, line);
  const of = { turn_id: line.turn_id, session_id: line.session_id, user_id: line.user_id };
  const root = { ...of, flow_id: line.turn_id, parent_id: null, checkpoint: "auth_check", created_at: line.started_at,
    metadata: { status: "passed", ...(line.question ? { question: line.question } : {}) } };
  const inner = { ...of, parent_id: line.turn_id, created_at: line.ended_at ?? line.started_at };
  tree.add(root);
  if (line.error) tree.add({ ...inner, flow_id: `${line.turn_id}-error`, checkpoint: "error", metadata: { code: line.error } });
  tree.add({ ...inner, flow_id: `${line.turn_id}-end`, checkpoint: "flow_end", metadata: { outcome: line.outcome, duration_ms: line.duration_ms ?? undefined, ttft_ms: line.ttft_ms ?? undefined } });
  const turn = tree.turns.get(line.turn_id);
  turn.free(); // before it is drawn: no rows are made of it
  Object.assign(turn, { tokens: line.input_tokens + line.output_tokens, cost: line.cost_usd ?? 0, tools: line.tool_calls });
}

function foldLine(id) {
  const turn = tree.turns.get(id);
  turn.open = false;
  turn.draw();
}

// What a folded turn consists of, when it is opened.
async function bring(turnId) {
  const answer = await fetch(`${data.grow}&of=${encodeURIComponent(turnId)}`, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`history answered ${answer.status}`);
  const { flows } = await answer.json();
  told.set(turnId, flows);
  behind.delete(turnId);
  return flows;
}

async function open(turn) {
  if (!turn.open) await tree.toggle(turn, true);
  dress(turn);
}

// --- the tree, what was said beside it, the facts on top ----------------------------------------------

function add(checkpoints) {
  for (const one of checkpoints) {
    if (one.session_id !== data.session_id || !tree.add(one)) continue;
    const { id } = tree.turnOf.get(one.flow_id);
    if (told.has(id)) told.get(id).push(one);
    else told.set(id, [one]);
  }
}

function draw() {
  const changed = new Set(tree.flush().map((one) => tree.turnOf.get(one.flow_id)));
  for (const turn of changed) if (turn?.article && !behind.has(turn.id)) dress(turn);
  if (changed.size === 0) return;
  showFacts();
  if (linked && linked !== tree.turns.size) linkTurns();
}

// Gives an open turn its transcript and its controls.
function dress(turn) {
  if (!turn.open || !turn.article || !told.has(turn.id)) return;
  if (!transcripts.has(turn.id)) {
    const transcript = new Transcript({ name: turn.title, onchoose: chooseSaid });
    transcripts.set(turn.id, transcript);
    turn.head.after(tools(turn), transcript.element);
    if (linked) linkTurns();
  }
  transcripts.get(turn.id).draw(told.get(turn.id));
  turn.article.querySelector(".turn-play").hidden = !turn.ended;
  stops.get(turn.id)?.draw();
}

function tools(turn) {
  const play = button("Play", { symbol: "play_arrow", className: "tool turn-play", title: "Play this turn again" }, () => startPlay(turn.id));
  return element("nav", { className: "turn-tools", attributes: { "aria-label": `Turn: ${turn.title}` } },
    play, stopOf(turn), compareLink(turn.id), step("arrow_upward", "Turn before ([)", "prev"), step("arrow_downward", "Turn after (])", "next"));
}

// For whoever may stop this turn: his own, or anybody's.
function stopOf(turn) {
  if (!data.may_stop && !data.is_own) return null;
  stops.set(turn.id, new StopButton(turn, { mayTell: data.may_stop, className: "tool is-danger" }));
  return stops.get(turn.id).element;
}

function step(symbol, label, rel) {
  const link = element("a", { className: "icon-button", title: label, attributes: { rel, "aria-label": label } }, icon(symbol));
  link.addEventListener("click", (event) => {
    event.preventDefault();
    goTo(link.hash.slice(1));
  });
  return link;
}

function compareLink(turnId) {
  const chosen = data.compare;
  if (chosen === turnId) return element("a", { className: "tool is-chosen", title: "Chosen to be compared: choose another one", attributes: { href: location.pathname + "#" + turnId, "aria-current": "true" } }, icon("compare_arrows"), element("span", { text: "Chosen" }));
  const href = chosen ? `/flows/compare/?a=${encodeURIComponent(chosen)}&b=${turnId}` : `?compare=${turnId}#${turnId}`;
  const text = chosen ? "Compare with this" : "Compare";
  return element("a", { className: "tool", title: chosen ? "Compare the chosen turn with this one" : "Compare this turn with another one", attributes: { href } }, icon("compare_arrows"), element("span", { text }));
}

function turnsInOrder() {
  return [...tree.turns.values()].filter((turn) => turn.article).sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
}

function linkTurns() {
  const turns = turnsInOrder();
  linked = tree.turns.size;
  turns.forEach((turn, at) => {
    for (const [rel, other] of [["prev", turns[at - 1]], ["next", turns[at + 1]]]) {
      const link = turn.article.querySelector(`.turn-tools [rel="${rel}"]`);
      if (!link) continue;
      link.classList.toggle("is-off", !other);
      if (other) link.href = `#${other.id}`;
      else link.removeAttribute("href");
      // without an address it is no link to a screen reader, and may not have a name either
      for (const [name, value] of [["role", "link"], ["aria-disabled", "true"]]) other ? link.removeAttribute(name) : link.setAttribute(name, value);
    }
  });
}

function showFacts() {
  const turns = [...tree.turns.values()], sum = (name) => turns.reduce((all, turn) => all + turn[name], 0);
  const say = (name, text) => (document.querySelector(`[data-fact="${name}"]`).textContent = text);
  say("turns", count(turns.length));
  say("tools", count(sum("tools")));
  say("tokens", count(sum("tokens")));
  if (sum("cost")) say("cost", money(sum("cost")));
  const ways = Map.groupBy(turns, (turn) => (turn.ended ? turn.outcome : "running"));
  document.querySelector('[data-fact="outcomes"]').replaceChildren(...[...ways].sort((a, b) => b[1].length - a[1].length).map(([way, of]) => {
    const known = way === "running" ? { icon: "pending", state: "running", label: "Running" } : OUTCOMES[way] ?? { icon: "flag", state: "left", label: way ?? "ended" };
    return element("span", { className: "outcome", data: { state: known.state } }, icon(known.icon), ` ${of.length} ${known.label.toLowerCase()}`);
  }));
}

// --- choosing: a row marks its line, a line its row ------------------------------------------------

function markSaid(flowId) {
  const turn = tree.turnOf.get(flowId), step_ = turn?.steps.get(flowId);
  for (const [id, transcript] of transcripts) if (id !== turn?.id) transcript.mark(null);
  const transcript = transcripts.get(turn?.id);
  // the answer is said by the end of a model's round
  if (transcript && !transcript.mark(step_?.start.flow_id)) transcript.mark(step_?.end?.flow_id);
}

function chooseSaid(flowId) {
  tree.select(flowId);
  markSaid(flowId);
  keepInUrl(flowId);
}

function keepInUrl(flowId) {
  history.replaceState(null, "", `${location.pathname}${location.search}#${flowId}`);
}

// --- going to a turn or a checkpoint -----------------------------------------------------------------

// #<flow_id>: a turn by its first checkpoint, any other one with its details.
async function revealHash() {
  const id = decodeURIComponent(location.hash.slice(1));
  if (!id) return;
  if (tree.turns.has(id)) return goTo(id);
  if (!tree.turnOf.has(id)) await bringTurnOf(id);
  if (tree.reveal(id)) markSaid(id);
}

// A link to a checkpoint of a turn that is only a line: history knows which one.
async function bringTurnOf(flowId) {
  const answer = await fetch(`${data.grow}&of=${encodeURIComponent(flowId)}`, { headers: { Accept: "application/json" } });
  const of = answer.ok ? (await answer.json()).flows.find((one) => one.flow_id === flowId) : null;
  const turn = of && tree.turns.get(of.turn_id);
  if (turn) await open(turn);
}

async function goTo(turnId) {
  const turn = tree.turns.get(turnId);
  if (!turn?.article) return;
  await open(turn);
  keepInUrl(turnId);
  turn.article.scrollIntoView({ block: "start" });
  turn.head.focus({ preventScroll: true });
}

// The turn one is in: with the focus, else the first whose end is in view.
function turnHere(turns) {
  const own = document.activeElement?.closest?.("[data-turn-id]")?.dataset.turnId;
  const at = turns.findIndex((turn) => turn.id === own);
  return at >= 0 ? at : turns.findIndex((turn) => turn.article.getBoundingClientRect().bottom > 80);
}

function goBeside(by) {
  const turns = turnsInOrder(), here = turnHere(turns), next = turns[here + by];
  if (next) goTo(next.id);
  else announce(by < 0 ? "This is the first turn" : "This is the last turn");
}

function toggleAll() {
  tree.toggleAll();
  for (const turn of tree.turns.values()) dress(turn);
}

// --- playing a turn again ----------------------------------------------------------------------------

async function startPlay(turnId, { speed = SPEEDS[0] } = {}) {
  const turn = tree.turns.get(turnId);
  if (!turn?.article) return;
  await open(turn);
  stopPlay();
  player = new Player({
    checkpoints: told.get(turnId), title: turn.title, usual: data.usual, speed,
    onspeed: (chosen) => playInUrl(turnId, chosen),
    onclose: () => {
      stopPlay();
      turn.head.focus();
    },
  });
  turn.article.before(player.element);
  player.stored = turn;
  hide(turn, true);
  playInUrl(turnId, player.speed);
  player.element.scrollIntoView({ block: "nearest" });
  player.begin();
}

function stopPlay() {
  if (!player) return;
  player.destroy();
  hide(player.stored, false);
  player = null;
  playInUrl(null);
}

// As the tree's own filter hides a turn: its keys pass it by.
function hide(turn, isHidden) {
  turn.isHidden = isHidden;
  turn.draw();
}

function playInUrl(turnId, speed) {
  const url = new URL(location.href);
  url.searchParams.delete("play");
  url.searchParams.delete("speed");
  if (turnId) {
    url.searchParams.set("play", turnId);
    url.searchParams.set("speed", speed);
  }
  history.replaceState(null, "", url);
}

// --- growing -----------------------------------------------------------------------------------------

function newest() {
  return Math.max(0, ...[...tree.turns.values()].map((turn) => turn.lastAt));
}

// From the first turn that has not ended, else from shortly before the last one's end.
function since() {
  const began = tree.running.map((turn) => turn.at);
  return new Date((began.length ? Math.min(...began) : newest()) - UNSTORED_MS).toISOString();
}

function isQuiet() {
  return tree.running.length === 0 && Date.now() - newest() > QUIET_FOR_MS;
}

function showGrowing(text) {
  growing.hidden = text === null;
  growing.textContent = text ?? "";
  growing.dataset.state = text === null ? "" : "connected";
}

async function ask() {
  clearTimeout(timer);
  if (!document.hidden && !socketIsLive) {
    try {
      const answer = await fetch(`${data.grow}&since=${encodeURIComponent(since())}`, { headers: { Accept: "application/json" } });
      if (answer.status === 401 || answer.status === 403) return stopped("Not growing any more: load the page again");
      if (answer.ok) add((await answer.json()).flows);
      draw();
    } catch {
      // the server is away for a moment; the next question may reach it
    }
  }
  showGrowing(tree.running.length ? "Growing" : null);
  if (!isQuiet()) timer = setTimeout(ask, tree.running.length ? ASK_MS : ASK_QUIET_MS);
}

function stopped(text) {
  tree.still = true;
  growing.hidden = false;
  growing.textContent = text;
  growing.dataset.state = "disconnected";
}

function watch() {
  socket = new FlowSocket(data.user_id, {
    state: ({ name }) => {
      if (name !== "connected") socketIsLive = false;
    },
    hello: ({ monitoring }) => setLive(monitoring.active),
    monitoring: ({ active }) => setLive(active),
    live: () => {},
    snapshot: (checkpoints) => add(checkpoints),
    checkpoint: (one) => add([one]),
    draw: () => {
      draw();
      showGrowing(tree.running.length ? "Growing" : null);
    },
  });
}

function setLive(active) {
  socketIsLive = active;
  if (!active) ask();
}

// --- events ------------------------------------------------------------------------------------------

addEventListener("hashchange", revealHash);
document.addEventListener("visibilitychange", () => document.hidden || ask());
document.addEventListener("keydown", (event) => {
  // on many keyboards a bracket needs AltGr, which counts as Ctrl and Alt
  const by = { "[": -1, "]": 1 }[event.key];
  if (by && !event.target.closest?.("input, textarea, select, dialog[open]")) return goBeside(by);
  if (typing(event)) return;
  if (event.key === "j") tree.moveFocus(1);
  else if (event.key === "k") tree.moveFocus(-1);
  else if (event.key === "e") toggleAll();
  else return;
  event.preventDefault();
});

const asked = new URL(location.href).searchParams;
if (asked.has("play")) startPlay(asked.get("play"), { speed: Number(asked.get("speed")) });
else revealHash();
if (!isQuiet()) {
  if (data.may_watch) watch();
  ask();
}
