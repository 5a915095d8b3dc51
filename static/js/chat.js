// Talking: one question at a time through POST /api/v1/ask/stream, the answer as it comes.

import { announce, button, csrfToken, element, icon } from "./dom.js";
import { count, duration, instant, moment, money } from "./format.js";
import { showLocalTimes } from "./times.js";

const chat = document.getElementById("chat");
const lines = document.getElementById("lines");
const form = document.getElementById("ask");
const message = document.getElementById("message");
const send = document.getElementById("send");
const stop = document.getElementById("stop");

let session = chat.dataset.session || null;
let asking = null; // the AbortController of the question that is being answered

showLocalTimes();
lines.scrollTop = lines.scrollHeight;

// --- the page ----------------------------------------------------------------------------------

// Follows the answer only while one is at its end.
const atEnd = () => lines.scrollHeight - lines.scrollTop - lines.clientHeight < 60;
function keepingEnd(change) {
  const follow = atEnd();
  change();
  if (follow) lines.scrollTop = lines.scrollHeight;
}

function showAsked(question) {
  document.getElementById("nothing-said")?.remove();
  lines.append(element("div", { className: "line is-asked" }, element("div", { text: question, attributes: { dir: "auto" } })));
}

class Answer {
  constructor(question) {
    this.question = question;
    this.text = "";
    this.turn = null;
    this.steps = new Map();
    this.tools = element("div", { className: "tool-steps" });
    this.shown = element("div", { className: "answer is-raw is-running", attributes: { dir: "auto", "aria-busy": "true" } });
    this.node = this.shown.appendChild(document.createTextNode(""));
    this.foot = element("div", { className: "line-foot" });
    this.line = element("div", { className: "line" }, this.tools, this.shown, this.foot);
    lines.append(this.line);
    lines.scrollTop = lines.scrollHeight;
  }

  began({ session_id: id, turn_id: turn }) {
    this.turn = turn;
    this.line.dataset.turnId = turn;
    if (session === id) return;
    session = id;
    history.replaceState(null, "", `/chat/${id}/`);
    showConversation(id, this.question);
  }

  token({ text }) {
    this.text += text;
    keepingEnd(() => this.node.appendData(text));
  }

  toolCall({ tool, call_id: id }) {
    const step = element("span", { className: "pill tool-step" }, icon("build"), element("span", { text: tool }));
    step.dataset.step = "running";
    this.steps.set(id, step);
    keepingEnd(() => this.tools.append(step));
    announce(`Using ${tool}`);
  }

  toolResult({ tool, call_id: id, status, duration_ms: took }) {
    const step = this.steps.get(id);
    if (!step) return;
    step.dataset.step = status;
    step.lastChild.textContent = `${tool} · ${status === "ok" ? duration(took) : status === "error" ? "failed" : status}`;
  }

  // The text stays as it came when it cannot be rendered; rendered it is safe HTML from our server.
  async finish() {
    this.shown.classList.remove("is-running");
    this.shown.setAttribute("aria-busy", "false");
    for (const step of this.steps.values()) if (step.dataset.step === "running") step.lastChild.textContent += " · not finished";
    if (!this.text) return this.shown.remove();
    try {
      const answer = await post("/chat/render", { text: this.text });
      if (!answer.ok) return;
      const { html } = await answer.json();
      keepingEnd(() => {
        this.shown.classList.remove("is-raw");
        this.shown.innerHTML = html;
      });
    } catch {
      // the server is away: the plain text is there
    }
  }

  facts(...facts) {
    for (const fact of facts.filter(Boolean)) this.foot.append(element("span", { text: fact }));
    if (this.turn) this.foot.append(element("a", { text: this.shown.isConnected ? "How it was answered" : "What happened", attributes: { href: `/flows/${session}/#${this.turn}` } }));
  }

  problem({ title, detail, refusal = false, retry = true, signIn = false }) {
    const told = element("div", {}, element("b", { text: title }), detail ? element("p", { text: detail }) : null);
    const card = element("div", { className: `line-problem${refusal ? " is-refusal" : ""}`, attributes: { role: "alert" } }, icon(refusal ? "block" : "error"), told);
    if (signIn) told.append(element("p", {}, element("a", { text: "Sign in", className: "button", attributes: { href: `/login/?next=${encodeURIComponent(location.pathname)}` } })));
    if (retry) told.append(element("p", {}, button("Ask again", { symbol: "refresh" }, () => asking || ask(this.question))));
    keepingEnd(() => this.foot.before(card));
  }
}

function showConversation(id, question) {
  const list = document.querySelector("#conversations ul");
  list.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const title = question.replace(/\s+/g, " ").slice(0, 120);
  list.prepend(element("li", {}, element("a", { attributes: { href: `/chat/${id}/`, "aria-current": "page", dir: "auto" } },
    element("b", { text: title }), element("small", { text: moment(Date.now()) }))));
}

// --- asking --------------------------------------------------------------------------------------

const post = (address, body, signal) =>
  fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRFToken": csrfToken() },
    body: JSON.stringify(body),
    signal,
  });

async function ask(question) {
  asking = new AbortController();
  setBusy(true);
  showAsked(question);
  const answer = new Answer(question);
  try {
    const reply = await post("/api/v1/ask/stream", { message: question, ...(session ? { session_id: session } : {}) }, asking.signal);
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
    else if (name === "done" || name === "error") {
      ended = true;
      await (name === "done" ? done(data, answer) : failed(data, answer));
    }
  }
  if (!ended) throw new TypeError("the stream broke off");
}

async function done({ model, usage, duration_ms: took }, answer) {
  await answer.finish();
  const tokens = (usage?.input_tokens ?? 0) + (usage?.output_tokens ?? 0);
  answer.facts(model, duration(took), tokens ? `${count(tokens)} tok` : "", usage?.cost_usd ? money(usage.cost_usd) : "");
  announce("Answered");
}

async function failed({ message: told }, answer) {
  await answer.finish();
  answer.problem({ title: told || "Something went wrong." });
  answer.facts();
}

async function broken(problem, answer) {
  await answer.finish();
  if (problem.name === "AbortError") answer.facts("You stopped it");
  else {
    answer.problem({ title: "The connection broke off.", detail: answer.text ? "The answer is not complete." : "The question may not have arrived." });
    answer.facts();
  }
}

// Refused before any answer: plain HTTP with a status, a code and words.
async function refused(reply, answer) {
  const said = await reply.json().catch(() => ({}));
  if (said.turn_id) answer.turn = said.turn_id;
  await answer.finish();
  const { code, detail } = said;
  const known = {
    not_authenticated: { title: "You are signed out.", retry: false, signIn: true },
    csrf_failed: { title: "This page is too old.", detail: "Reload it and ask again.", retry: false },
    inactive: { title: detail, refusal: true, retry: false },
    user_blocked: { title: "You may not chat at the moment.", detail, refusal: true, retry: false },
    usage_limit: { title: detail, detail: limits(said), refusal: true, retry: false },
    too_many_turns: { title: detail, detail: "Wait until one of them is answered.", refusal: true },
    not_found: { title: "This conversation is not yours or does not exist.", retry: false },
  }[code];
  const fields = Object.entries(said).filter(([, value]) => Array.isArray(value)).map(([, value]) => value.join(" "));
  if (reply.status === 401) answer.problem({ title: "You are signed out.", retry: false, signIn: true });
  else answer.problem(known ?? { title: detail ?? fields.join(" ") ?? "That did not work.", retry: reply.status >= 500 || reply.status === 429 });
  if (said.turn_id && said.session_id) answer.foot.append(element("a", { text: "How it was refused", attributes: { href: `/flows/${said.session_id}/#${said.turn_id}` } }));
}

function limits({ used, limit, limit_name: name = "", resets_at: resets }) {
  const amount = name.startsWith("cost") ? money : count;
  const numbers = Number.isFinite(used) && Number.isFinite(limit) ? `${amount(used)} of ${amount(limit)} used.` : "";
  return [numbers, resets ? `Free again ${moment(instant(resets))}.` : ""].filter(Boolean).join(" ");
}

// text/event-stream as [name, data]; a comment is the server's heartbeat.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done: over } = await reader.read();
      if (over) return;
      const blocks = (waiting + value).split("\n\n");
      waiting = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").filter((line) => !line.startsWith(":")).map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trimStart()]));
        if (fields.event) yield [fields.event, JSON.parse(fields.data)];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// --- the form ---------------------------------------------------------------------------------------

function setBusy(busy) {
  send.hidden = busy;
  stop.hidden = !busy;
  // where the keyboard is on the screen it would come up over the answer
  if (!busy && matchMedia("(hover: hover)").matches) message.focus();
}

function fitHeight() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight + 2}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = message.value.trim();
  if (!question || asking) return;
  message.value = "";
  fitHeight();
  ask(question);
});
message.addEventListener("input", fitHeight);
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
stop.addEventListener("click", () => asking?.abort());

const conversations = document.getElementById("conversations");
const opener = document.getElementById("show-conversations");
opener.addEventListener("click", () => opener.setAttribute("aria-expanded", String(conversations.classList.toggle("is-open"))));
