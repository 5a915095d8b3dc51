// Talking: one question at a time through POST /api/v1/ask/stream, the answer as it comes.

import { approvalCard, waiting } from "./approvals.js";
import { post } from "./chat_api.js";
import { listConversations, showConversation } from "./conversations.js";
import { announce, button, element, icon } from "./dom.js";
import { count, duration, instant, moment, money, remaining, short } from "./format.js";
import { GrowingAnswer, frameWide } from "./growing_answer.js";
import { ModelChoice } from "./model_choice.js";
import { events } from "./server_events.js";
import { showLocalTimes } from "./times.js";

const chat = document.getElementById("chat");
const lines = document.getElementById("lines"); // what scrolls
const talk = document.getElementById("said"); // what is in it
const form = document.getElementById("ask");
const message = document.getElementById("message");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const toNewest = document.getElementById("to-newest");
const DRAFT = "omni2.chat.draft";
const TICK_MS = 200;
const FONTS_MS = 300;
const STOP_MS = 5000; // so long the server may take to end what it was told to stop

let session = chat.dataset.session || null;
let asking = null; // the question that is being answered: its AbortController and its Answer
const models = new ModelChoice(document.getElementById("model-choice"), chat.dataset.model);
listConversations(() => session);

// --- the end of the page -------------------------------------------------------------------------

// The page follows the answer while its reader is at its end, and leaves him where he is otherwise.
let following = true;
const toEnd = () => { lines.scrollTop = lines.scrollHeight; };

function change(draw) {
  draw();
  if (following) toEnd();
  else toNewest.hidden = false;
}

lines.addEventListener("scroll", () => {
  following = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
  toNewest.hidden = following;
}, { passive: true });

toNewest.addEventListener("click", () => {
  following = true;
  toEnd();
  message.focus({ preventScroll: true });
});

// What grows without us (a font that arrives, a window that becomes narrow) keeps the end in view as well.
const ends = new ResizeObserver(() => following && toEnd());
ends.observe(lines);
ends.observe(talk);

// --- what stands there already ---------------------------------------------------------------------

function dress(within) {
  showLocalTimes(within);
  for (const answer of within.querySelectorAll(".answer")) frameWide(answer);
}

const said = (query) => fetch(`/chat/${session}/exchanges?${query}`).then((reply) => (reply.ok ? reply.text() : Promise.reject(reply.status)));

function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // our own server's page, in which all text is escaped or sanitized
  dress(template.content);
  return template.content;
}

// Older questions come above what one reads, and move nothing.
async function showEarlier(link) {
  link.setAttribute("aria-busy", "true");
  try {
    const older = parsed(await said(`before=${link.dataset.before}`));
    const first = link.closest(".earlier").nextElementSibling;
    const fromEnd = lines.scrollHeight - lines.scrollTop;
    link.closest(".earlier").replaceWith(older);
    lines.scrollTop = lines.scrollHeight - fromEnd;
    first?.querySelector("a")?.focus({ preventScroll: true });
  } catch {
    location.href = link.href;
  }
}

// An answer that is made for another page, or was when this one was loaded again.
async function awaitAnswer(exchange) {
  const turn = exchange.dataset.turnId;
  for (let seconds = 1; exchange.isConnected && "running" in exchange.dataset; seconds = Math.min(seconds * 1.2, 10)) {
    await new Promise((wake) => setTimeout(wake, seconds * 1000));
    if (document.hidden) continue;
    try {
      const now = parsed(await said(`turn=${turn}`)).querySelector(".exchange");
      await showApprovals(exchange);
      const cards = [...exchange.querySelectorAll(".approval")];
      for (const card of cards) card.remove();
      if (now.outerHTML !== exchange.outerHTML) {
        change(() => exchange.replaceWith(now));
        exchange = now;
      }
      if ("running" in exchange.dataset) exchange.querySelector(".tool-steps")?.after(...cards);
    } catch (status) {
      if (status === 401 || status === 404) return;
    }
  }
  announce(told(exchange.querySelector(".answer")));
}

// What waits for its user's yes in a turn that is answered elsewhere, such as in a program. Asked only while a
// tool runs: it is the tool that waits.
async function showApprovals(exchange) {
  if (!exchange.querySelector('.tool-step[data-step="running"]')) return;
  for (const one of await waiting()) {
    if (one.turn_id !== exchange.dataset.turnId || exchange.querySelector(`.approval[data-call="${CSS.escape(one.call_id)}"]`)) continue;
    change(() => exchange.querySelector(".tool-steps").after(approvalCard(one)));
  }
}

// The same for turns that are not on this page.
async function showElsewhere() {
  const place = document.getElementById("elsewhere");
  const asked = await waiting();
  // looked at only now: a question may have been asked here meanwhile
  const here = new Set([...lines.querySelectorAll(".exchange")].map((exchange) => exchange.dataset.turnId));
  const cards = asked.filter((one) => !here.has(one.turn_id)).map((one) => approvalCard(one));
  if (!cards.length) return;
  place.replaceChildren(element("p", { text: "In an answer that is not on this page:" }), ...cards);
  place.hidden = false;
}

const told = (answer) => (answer ? `Answered: ${short(answer.textContent, 700)}` : "There is no answer");

lines.addEventListener("click", (event) => {
  const clicked = event.target.closest("[data-before], [data-edit], [data-ask-again]");
  if (!clicked) return;
  const question = clicked.closest(".exchange")?.querySelector(".question").textContent;
  if (clicked.dataset.before) {
    event.preventDefault();
    showEarlier(clicked);
  } else if ("edit" in clicked.dataset) {
    compose(question);
  } else if (!asking) {
    clicked.remove();
    ask(question);
  }
});

// --- the answer that comes now ------------------------------------------------------------------------

class Answer {
  constructor(question) {
    this.question = question;
    this.turn = null;
    this.steps = new Map();
    this.cards = new Map(); // of the tools that wait for a yes
    this.stopped = false; // by the button on this page
    this.since = Date.now();
    this.tools = element("ul", { className: "tool-steps", attributes: { "aria-label": "Tools" } });
    this.shown = element("div", { className: "answer is-running", attributes: { dir: "auto", "aria-busy": "true" } });
    this.clock = element("span", { className: "line-clock" });
    this.how = element("a", { className: "line-how", text: "See how it goes", attributes: { hidden: "" } });
    this.foot = element("div", { className: "line-foot" }, this.clock, this.how);
    this.line = element("div", { className: "line" }, this.tools, this.shown, this.foot);
    const edit = button("", { symbol: "edit", className: "icon-button line-edit", title: "Edit the question", label: "Edit the question" }, () => {});
    edit.dataset.edit = "";
    this.exchange = element("article", { className: "exchange" },
      element("div", { className: "line is-asked" }, edit, element("div", { className: "question", text: question, attributes: { dir: "auto" } })), this.line);
    this.growing = new GrowingAnswer(this.shown, { render: rendered, change });
    this.ticking = setInterval(() => this.#tick(), TICK_MS);
    document.getElementById("nothing-said")?.remove();
    talk.append(this.exchange);
    following = true;
    toEnd();
  }

  get text() {
    return this.growing.text;
  }

  #tick() {
    const now = Date.now();
    this.clock.textContent = duration(now - this.since);
    for (const step of this.steps.values()) if (step.dataset.step === "running") step.lastChild.textContent = duration(now - Number(step.dataset.since));
  }

  began({ session_id: id, turn_id: turn }) {
    this.ofTurn(id, turn);
    if (session === id) return;
    session = id;
    history.replaceState(null, "", `/chat/${id}/`);
    showConversation(id, this.question);
  }

  ofTurn(id, turn) {
    this.turn = turn;
    this.exchange.dataset.turnId = turn;
    this.how.href = `/flows/${id}/#${turn}`;
    this.how.hidden = false;
  }

  token({ text }) {
    this.growing.add(text);
  }

  toolCall({ tool, call_id: id }) {
    const step = element("li", { className: "pill tool-step", data: { step: "running", since: Date.now() } },
      icon("build"), element("bdi", { text: short(tool, 80) }), element("span", { className: "tool-said", text: "running" }));
    this.steps.set(id, step);
    change(() => this.tools.append(step));
    if (!this.exchange.querySelector(".approval:not(.is-over)")) announce(`Using ${short(tool, 80)}`);
  }

  approval(asked) {
    const card = approvalCard({ ...asked, turn_id: asked.turn_id ?? this.turn });
    this.cards.set(asked.call_id, card);
    change(() => this.shown.before(card));
  }

  toolResult({ call_id: id, status, duration_ms: took }) {
    this.cards.get(id)?.settle();
    const step = this.steps.get(id);
    if (!step) return;
    step.dataset.step = status;
    step.lastChild.textContent = status === "ok" ? duration(took) : `${status === "error" ? "failed" : status} after ${duration(took)}`;
  }

  // What came is rendered and stays, whatever became of it.
  async finish() {
    clearInterval(this.ticking);
    for (const card of this.cards.values()) card.settle();
    for (const step of this.steps.values()) {
      if (step.dataset.step !== "running") continue;
      step.dataset.step = "cancelled";
      step.lastChild.textContent = "not finished";
    }
    await this.growing.finish();
    this.shown.classList.remove("is-running");
    this.shown.setAttribute("aria-busy", "false");
    if (!this.text) change(() => this.shown.remove());
  }

  // The last line: what there is to know of it, and the way to how it came about.
  facts(outcome, ...facts) {
    if (outcome) this.exchange.dataset.outcome = outcome;
    change(() => {
      this.clock.replaceWith(...facts.filter(Boolean).map((fact) => element("span", { text: fact })));
      this.how.textContent = { completed: "How it was answered", refused: "How it was refused" }[outcome] ?? "What happened";
    });
  }

  note(symbol, words) {
    change(() => this.line.append(element("p", { className: "line-note" }, icon(symbol), element("span", { text: words }))));
  }

  askAgain() {
    const again = element("button", { className: "link-button", text: "Ask again", attributes: { type: "button", "data-ask-again": "" } });
    this.how.before(again);
  }

  // Why there is no answer, or no whole one. `until`: when asking again may help (milliseconds since 1970).
  problem({ title, detail, refusal = false, retry = true, signIn = false, anew = false, until = null }) {
    const words = element("div", {}, element("b", { text: title }), detail ? element("p", { text: detail }) : null);
    const card = element("div", { className: `line-problem${refusal ? " is-refusal" : ""}`, attributes: { role: "alert" } }, icon(refusal ? "block" : "error"), words);
    if (signIn) words.append(element("a", { text: "Sign in", className: "button", attributes: { href: `/login/?next=${encodeURIComponent(location.pathname)}` } }));
    if (anew) words.append(element("a", { text: "New conversation", className: "button", attributes: { href: "/chat/" } }));
    if (retry) {
      const again = button("Ask again", { symbol: "refresh" }, () => {});
      again.dataset.askAgain = "";
      words.append(again);
      if (until) waitUntil(until, again);
    }
    change(() => this.foot.before(card));
  }
}

// The button comes alive when asking again may help; until then the card says how long that is.
function waitUntil(until, again) {
  const left = element("p", { className: "count" });
  again.before(left);
  again.disabled = true;
  const tick = () => {
    const ms = until - Date.now();
    left.textContent = ms > 0 ? `You can ask again in ${remaining(ms)}.` : "You can ask again now.";
    if (ms > 0) return;
    clearInterval(ticking);
    again.disabled = false;
    announce("You can ask again now");
  };
  const ticking = setInterval(tick, 1000);
  tick();
}

// --- asking --------------------------------------------------------------------------------------

// Safe HTML of a piece of Markdown; null when the server is away: then the text stays text.
async function rendered(body) {
  try {
    const reply = await post("/chat/render", body);
    return reply.ok ? await reply.json() : null;
  } catch {
    return null;
  }
}

async function ask(question) {
  const leaving = new AbortController();
  const answer = new Answer(question);
  asking = { answer, leaving };
  setBusy(true);
  try {
    const body = { message: question, ...(session ? { session_id: session } : {}), ...(models.name ? { model: models.name } : {}) };
    const reply = await post("/api/v1/ask/stream", body, leaving.signal);
    if (reply.ok) await hear(reply, answer);
    else await refused(reply, answer);
  } catch (problem) {
    await broken(problem, answer);
  }
  asking = null;
  setBusy(false);
}

async function hear(reply, answer) {
  let ended = false;
  for await (const [name, data] of events(reply.body)) {
    if (name === "session") answer.began(data);
    else if (name === "token") answer.token(data);
    else if (name === "tool_call") answer.toolCall(data);
    else if (name === "tool_result") answer.toolResult(data);
    else if (name === "approval") answer.approval(data);
    else if (name === "done" || name === "error") {
      ended = true;
      await (name === "done" ? done(data, answer) : failed(data, answer));
    }
  }
  if (!ended) throw new TypeError("the stream broke off");
}

async function done({ model, usage, duration_ms: took, limits: near }, answer) {
  await answer.finish();
  const tokens = (usage?.input_tokens ?? 0) + (usage?.output_tokens ?? 0);
  answer.facts("completed", answer.text ? "" : "The answer is empty", model, duration(took), tokens ? `${count(tokens)} tok` : "", usage?.cost_usd ? money(usage.cost_usd) : "");
  for (const one of near ?? []) answer.note("speed", nearLimit(one));
  announce(told(answer.text ? answer.shown : null));
}

const STOPPED = "This answer was stopped."; // what the server says where nobody left other words

// What can be done about a failure, where asking the same again is not it.
const FAILURES = {
  content_refused: { detail: "Asked in other words it may.", retry: false },
  context_too_long: { retry: false, anew: true },
  model_not_found: { retry: false },
};

async function failed({ code, message: words, retry_after_s: wait }, answer) {
  await answer.finish();
  if (code === "stopped" && answer.stopped) return stoppedHere(answer, "stopped");
  const incomplete = answer.text ? "The answer is not complete." : "";
  if (code === "stopped") {
    answer.problem({ title: STOPPED, detail: [words === STOPPED ? "" : words, incomplete].filter(Boolean).join(" "), refusal: true });
    return answer.facts("stopped");
  }
  const until = wait > 0 ? Date.now() + wait * 1000 : null;
  answer.problem({ title: words || "Something went wrong.", detail: incomplete, until, ...FAILURES[code] });
  answer.facts("failed");
}

function stoppedHere(answer, outcome) {
  answer.facts(outcome, "You stopped it");
  answer.askAgain();
  announce("You stopped it");
}

async function broken(problem, answer) {
  await answer.finish();
  if (problem.name === "AbortError") {
    stoppedHere(answer, "disconnected");
  } else {
    answer.problem({ title: "The connection broke off.", detail: answer.text ? "The answer is not complete." : "The question may not have arrived." });
    answer.facts(null);
  }
}

// Refused before any answer: plain HTTP with a status, a code and words.
async function refused(reply, answer) {
  const told = await reply.json().catch(() => ({}));
  await answer.finish();
  const { code, detail } = told;
  const wait = Number(reply.headers.get("Retry-After"));
  const until = wait > 0 ? Date.now() + wait * 1000 : null;
  const known = {
    csrf_failed: { title: "This page is too old.", detail: "Reload it and ask again.", retry: false },
    inactive: { title: detail, refusal: true, retry: false },
    user_blocked: { title: "You may not chat at the moment.", detail, refusal: true, retry: false },
    usage_limit: { title: detail, detail: limits(told), refusal: true },
    too_many_turns: { title: detail, detail: "Wait until one of them is answered.", refusal: true },
    too_many_refusals: { title: detail, refusal: true },
    model_not_found: { title: detail, detail: "Choose another one below.", retry: false },
    not_found: { title: "This conversation is not yours or does not exist.", retry: false },
    body_too_large: { title: "The question is too long.", retry: false },
  }[code];
  const fields = Object.values(told).filter(Array.isArray).map((value) => value.join(" ")).join(" ");
  if (reply.status === 401) answer.problem({ title: "You are signed out.", detail: "Sign in again: your question is kept.", retry: false, signIn: true });
  else answer.problem({ until, ...(known ?? { title: detail ?? (fields || "That did not work."), retry: reply.status >= 500 || reply.status === 429 }) });
  if (reply.status === 401 || code === "csrf_failed") sessionStorage.setItem(DRAFT, answer.question);
  if (code === "model_not_found") models.load();
  if (told.turn_id && told.session_id) answer.ofTurn(told.session_id, told.turn_id);
  answer.facts("refused");
}

const LIMITED = { requests: "requests", tokens: "tokens", cost: "", turns: "answers at once" };
const WINDOWS = { minute: "of this minute", day: "of today", month: "of this month" };

// "requests_per_day" -> "You have used 45 of 50 requests of today. Free again 02:00."
function nearLimit({ limit_name: name = "", used, limit, resets_at: resets }) {
  const amount = name.startsWith("cost") ? money : count;
  const words = [amount(used), "of", amount(limit), LIMITED[name.split("_")[0]] ?? name, WINDOWS[name.split("_").at(-1)]].filter(Boolean);
  return `Near your limit: ${words.join(" ")} used.${resets ? ` Free again ${moment(instant(resets))}.` : ""}`;
}

function limits({ used, limit, limit_name: name = "", resets_at: resets }) {
  const amount = name.startsWith("cost") ? money : count;
  const numbers = Number.isFinite(used) && Number.isFinite(limit) ? `${amount(used)} of ${amount(limit)} used.` : "";
  return [numbers, resets ? `Free again ${moment(instant(resets))}.` : ""].filter(Boolean).join(" ");
}

// --- the form ---------------------------------------------------------------------------------------

// The keyboard stays where its user is: it is moved only from a button that goes away.
function setBusy(busy) {
  const [going, coming] = busy ? [send, stop] : [stop, send];
  const had = document.activeElement === going;
  going.hidden = true;
  coming.hidden = false;
  stop.disabled = false;
  if (had && busy) coming.focus({ preventScroll: true });
  // where the keyboard is on the screen it would come up over the answer
  else if (!busy && (had || document.activeElement === document.body) && matchMedia("(hover: hover)").matches) message.focus({ preventScroll: true });
}

function fitHeight() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight + 2}px`;
}

function compose(text) {
  message.value = text;
  fitHeight();
  message.focus();
}

function submit() {
  const question = message.value.trim();
  if (!question || asking) return;
  message.value = "";
  fitHeight();
  ask(question);
}

// static/js/chat_enter.js has it that Enter sends
form.addEventListener("submit", submit);
message.addEventListener("input", fitHeight);

// The server ends the turn and says so; should it not, leaving ends it too.
stop.addEventListener("click", async () => {
  const { answer, leaving } = asking ?? {};
  if (!answer || answer.stopped) return;
  answer.stopped = true;
  if (!answer.turn) return leaving.abort();
  stop.disabled = true;
  const reply = await post(`/api/v1/turns/${answer.turn}/stop`, {}).catch(() => null);
  // 409: it has ended by itself meanwhile, and the rest of it is on its way
  if (!reply?.ok && reply?.status !== 409) return leaving.abort();
  setTimeout(() => leaving.abort(), STOP_MS);
});

const conversations = document.getElementById("conversations");
const opener = document.getElementById("show-conversations");
function openConversations(open) {
  conversations.classList.toggle("is-open", open);
  opener.setAttribute("aria-expanded", String(open));
}
opener.addEventListener("click", () => openConversations(!conversations.classList.contains("is-open")));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !conversations.classList.contains("is-open")) return;
  if (document.querySelector("dialog[open], :popover-open")) return; // theirs
  openConversations(false);
  opener.focus();
});

// A keyboard on the screen covers the page without telling it: the page is as high as what is left.
const seen = window.visualViewport;
seen?.addEventListener("resize", () => {
  if (seen.scale !== 1) return; // enlarged with two fingers
  chat.style.setProperty("--seen", `${Math.round(seen.height)}px`);
});

// --- begin -------------------------------------------------------------------------------------------

dress(document);
toEnd();
// with its fonts, if they come at once: text that changes its width moves what one reads
Promise.race([document.fonts.ready, new Promise((go) => setTimeout(go, FONTS_MS))]).then(() => lines.classList.add("is-placed"));
// where the keyboard is on the screen it would come up over the conversation
if (matchMedia("(hover: hover)").matches && document.activeElement === document.body) message.focus({ preventScroll: true });
for (const exchange of lines.querySelectorAll(".exchange[data-running]")) awaitAnswer(exchange);
models.load();
showElsewhere();
const draft = sessionStorage.getItem(DRAFT);
if (draft) {
  sessionStorage.removeItem(DRAFT);
  compose(draft);
}
form.dataset.ready = "";
if ("waiting" in form.dataset) submit();
