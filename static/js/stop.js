// Stopping a running turn and blocking a user: a button each, and the sheet that asks why and what the user
// is told. What comes of it is seen in the tree, like everything else.

import { announce, button, element } from "./dom.js";
import { send } from "./send.js";
import { short } from "./format.js";

const REASON = { name: "reason", label: "Reason", hint: "for admins", most: 500 };
const MESSAGE = { name: "message", label: "Message", hint: "shown to the user", most: 500 };

// A button for a turn while it runs. `mayTell`: he may stop others' turns, and say something to their users.
export class StopButton {
  constructor(turn, { mayTell, className = "button is-small is-danger turn-stop" }) {
    this.turn = turn;
    this.asked = false;
    this.element = button("Stop", { symbol: "stop_circle", className }, () => this.#ask(mayTell));
    this.draw();
  }

  draw() {
    const { turn, element: made } = this, { ended, title } = turn;
    const label = this.asked ? "Stopping…" : "Stop";
    if (made.lastChild.textContent !== label) made.lastChild.textContent = label;
    made.setAttribute("aria-label", `${label} “${short(title, 80)}”`);
    made.setAttribute("aria-disabled", String(this.asked));
    if (made.hidden === ended) return;
    // the focus stays with the turn
    if (ended && document.activeElement === made) turn.head.focus();
    made.hidden = ended;
  }

  #ask(mayTell) {
    if (this.asked) return;
    ask({
      title: "Stop this turn",
      about: `“${short(this.turn.title, 160)}”. The model and its tools are stopped at once; what was said so far is kept.`,
      fields: mayTell ? [REASON, MESSAGE] : [],
      verb: "Stop it",
      back: () => (this.element.hidden ? this.turn.head : this.element),
    }, async (said) => {
      await send(`/api/v1/turns/${encodeURIComponent(this.turn.id)}/stop`, said);
      this.asked = true;
      this.draw();
      announce("Stopping");
    });
  }
}

// A button that blocks a user. `nameOf()` is what he is called now.
export function blockButton(userId, nameOf) {
  const made = button("", { symbol: "block", className: "icon-button user-block", label: "Block", title: "Block this user" }, () => {
    if (made.getAttribute("aria-disabled") === "true") return;
    ask({
      title: `Block ${short(nameOf(), 60)}`,
      about: "His running turns are stopped at once, and he may not ask until somebody ends the block.",
      fields: [{ ...MESSAGE, most: 2000 }, { ...REASON, most: 2000 }],
      verb: "Block",
      back: () => made,
    }, async (said) => {
      await send(`/api/v1/users/${encodeURIComponent(userId)}/block`, said);
      made.setAttribute("aria-disabled", "true");
      made.title = "Blocked";
      made.setAttribute("aria-label", "Blocked");
      announce(`${nameOf()} is blocked`);
    });
  });
  return made;
}

// One sheet for all questions. `work(values)` may throw: its words stand in the sheet, which stays open.
let number = 0;
function ask({ title, about, fields, verb, back }, work) {
  const id = `ask-${++number}`;
  const inputs = fields.map(({ name, label, hint, most }) => ({
    name,
    input: element("input", { attributes: { id: `${id}-${name}`, name, maxlength: most, autocomplete: "off", "aria-describedby": `${id}-${name}-error` } }),
    problem: element("span", { className: "field-error", attributes: { id: `${id}-${name}-error`, role: "alert" } }),
    label: element("label", { attributes: { for: `${id}-${name}` } }, `${label} `, element("span", { className: "soft", text: `(${hint})` })),
  }));
  const problem = element("p", { className: "field-error", attributes: { role: "alert" } });
  const go = element("button", { className: "button is-main", text: verb, attributes: { type: "submit" } });
  const form = element("form", { attributes: { method: "dialog", novalidate: "" } }, element("p", { text: about, attributes: { dir: "auto" } }),
    ...inputs.map((one) => element("div", { className: "field" }, one.label, one.input, one.problem)), problem,
    element("div", { className: "sheet-foot" }, button("Cancel", {}, () => sheet.close()), go));
  const sheet = element("dialog", { className: "sheet", attributes: { "aria-labelledby": `${id}-title` } }, element("h2", { text: title, attributes: { id: `${id}-title` } }), form);
  sheet.addEventListener("close", () => {
    sheet.remove();
    back().focus();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (go.disabled) return;
    go.disabled = true;
    for (const one of [problem, ...inputs.map((each) => each.problem)]) one.textContent = "";
    try {
      await work(Object.fromEntries(inputs.map(({ name, input }) => [name, input.value.trim()]).filter(([, value]) => value)));
      sheet.close();
    } catch (failure) {
      for (const one of inputs) one.problem.textContent = [failure.fields?.[one.name]].flat().filter(Boolean).join(" ");
      if (!inputs.some((one) => one.problem.textContent)) problem.textContent = failure.message;
      go.disabled = false;
    }
  });
  document.body.append(sheet);
  sheet.showModal();
  (inputs[0]?.input ?? go).focus();
}
