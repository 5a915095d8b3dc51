// A stored session, drawn with the same rows as the live page; it grows while it is open: over the
// socket where the reader may watch and the user is monitored, otherwise by asking again.

import { element, pageData, typing } from "./dom.js";
import { FlowSocket } from "./flow_socket.js";
import { FlowTree } from "./flow_tree.js";
import { instant } from "./format.js";
import { showLocalTimes } from "./times.js";

const data = pageData("session-data");
const place = document.getElementById("session");
const growing = document.getElementById("growing");

const ASK_MS = 2000; // while a turn runs
const ASK_QUIET_MS = 6000; // while one may still begin
const QUIET_FOR_MS = 15 * 60_000; // after that nobody waits for another turn here
const UNSTORED_MS = 5000; // what was made so long before the newest may still be on its way

const tree = new FlowTree(place, {
  order: "oldest",
  speak: true,
  now: () => Date.now() - (socket?.offset ?? 0),
  historyOf: (session, flowId) => `/flows/${encodeURIComponent(session)}/#${flowId}`,
});
let socket = null, socketIsLive = false, timer = null;

document.getElementById("without-script").remove();
showLocalTimes();
for (const one of data.flows) tree.add(one);
tree.flush();
if (tree.isEmpty) place.append(element("p", { className: "soft", text: "Nothing is stored of this session." }));
revealHash();

// #<flow_id>: a turn by its first checkpoint, any other one with its details.
function revealHash() {
  const id = decodeURIComponent(location.hash.slice(1));
  if (!id) return;
  const turn = [...place.querySelectorAll("[data-turn-id]")].find((one) => one.dataset.turnId === id);
  if (turn) {
    turn.scrollIntoView({ block: "start" });
    turn.querySelector(".turn-head").focus({ preventScroll: true });
  } else {
    tree.reveal(id);
  }
}

function add(checkpoints) {
  for (const one of checkpoints) if (one.session_id === data.session_id) tree.add(one);
}

function newest() {
  return Math.max(0, ...[...tree.turns.values()].map((turn) => turn.lastAt));
}

// From the first turn that has not ended, else from shortly before the last one's end.
function since() {
  const open = tree.running.map((turn) => turn.at);
  return new Date((open.length ? Math.min(...open) : newest()) - UNSTORED_MS).toISOString();
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
      tree.flush();
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
      tree.flush();
      showGrowing(tree.running.length ? "Growing" : null);
    },
  });
}

function setLive(active) {
  socketIsLive = active;
  if (!active) ask();
}

addEventListener("hashchange", revealHash);
document.addEventListener("visibilitychange", () => document.hidden || ask());
document.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  if (event.key === "j") tree.moveFocus(1);
  else if (event.key === "k") tree.moveFocus(-1);
  else if (event.key === "e") tree.toggleAll();
  else return;
  event.preventDefault();
});

if (!isQuiet()) {
  if (data.may_watch) watch();
  ask();
}
