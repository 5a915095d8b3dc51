// A tool that waits for its user's yes: what it is, with what it would be called, and how long it waits.

import { get, post } from "./chat_api.js";
import { announce, button, element, icon } from "./dom.js";
import { remaining, short } from "./format.js";

const MOST_CHARACTERS = 4000;

export const waiting = async () => (await get("/api/v1/approvals"))?.approvals ?? [];

// The card of one approval, as `approval` and `GET /api/v1/approvals` tell of it.
export function approvalCard({ turn_id: turn, call_id: call, server, tool, arguments: given, expires_in_s: seconds }) {
  const until = Date.now() + seconds * 1000;
  const name = short(server ? `${tool} of ${server}` : tool, 120);
  const title = element("b", {}, "May ", element("bdi", { text: name }), " be used?");
  title.id = `approval-${crypto.randomUUID?.() ?? Math.random()}`;
  const left = element("p", { className: "count" });
  const problem = element("p", { className: "field-error", attributes: { role: "alert" } });
  const approve = button("Approve", { symbol: "check", className: "button is-main" }, () => decide(true));
  const decline = button("Decline", { symbol: "close" }, () => decide(false));
  const buttons = element("div", { className: "approval-buttons" }, approve, decline, left);
  const details = readable(given);
  const card = element("div", { className: "approval", data: { call }, attributes: { role: "group", "aria-labelledby": title.id } },
    icon("front_hand"), element("div", {}, title, details, buttons, problem));
  let pressed = false; // one of its buttons, by whom the keyboard is in the card
  const ticking = setInterval(tick, 1000);
  tick();
  announce(`${title.textContent} Approve or decline it.`);

  function tick() {
    const ms = until - Date.now();
    left.textContent = ms > 0 ? `${remaining(ms)} left` : "";
    if (ms <= 0) over("Nobody decided in time");
    else if (!card.isConnected && ms < seconds * 1000 - 5000) clearInterval(ticking); // taken off the page
  }

  // What became of it stays, in one line.
  function over(words) {
    clearInterval(ticking);
    if (card.classList.contains("is-over")) return;
    const had = pressed || card.contains(document.activeElement);
    card.classList.add("is-over");
    for (const one of [details, problem]) one.remove();
    buttons.replaceWith(element("span", { text: words }));
    if (had) document.getElementById("message").focus({ preventScroll: true });
    announce(words);
  }

  async function decide(yes) {
    // a button that is disabled loses the keyboard
    pressed = card.contains(document.activeElement);
    approve.disabled = decline.disabled = true;
    problem.textContent = "";
    const reply = await post(`/api/v1/turns/${turn}/approvals/${encodeURIComponent(call)}`, { approve: yes }).catch(() => null);
    if (reply?.ok) return over(yes ? "You approved it" : "You declined it");
    if (reply?.status === 409) return over("It is decided already");
    if (reply?.status === 404) return over("It does not wait any more");
    approve.disabled = decline.disabled = false;
    if (pressed) (yes ? approve : decline).focus();
    pressed = false;
    problem.textContent = reply?.status === 401 ? "You are signed out." : "That did not work. Please try again.";
  }

  // The tool ran or was called off: what was decided here is told by the server's answer, which may come later.
  card.settle = () => approve.disabled || over("It does not wait any more");
  return card;
}

// Arguments as one reads them: name and value; what is no object, as it is.
function readable(given) {
  let values = given;
  if (typeof given === "string") {
    try {
      values = JSON.parse(given);
    } catch {
      values = given;
    }
  }
  const text = (value) => cut(typeof value === "string" ? value : JSON.stringify(value, null, 1) ?? "");
  if (values === null || typeof values !== "object" || Array.isArray(values)) return scrolls(element("pre", { text: text(values ?? "") }));
  const rows = Object.entries(values).map(([name, value]) => element("div", {}, element("dt", { text: short(name, 60) }), element("dd", { text: text(value) })));
  return rows.length ? scrolls(element("dl", {}, ...rows)) : element("p", { text: "Without arguments." });
}

// by the keyboard too
const scrolls = (one) => (one.setAttribute("tabindex", "0"), one);

const cut = (text) => (text.length > MOST_CHARACTERS ? `${text.slice(0, MOST_CHARACTERS)}… (${text.length - MOST_CHARACTERS} characters more)` : text);
