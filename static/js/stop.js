// Stopping a running turn and blocking a user: a button each, and the sheet that asks why and what the user
// is told. What comes of it is seen in the tree, like everything else.

import { announce, button, element } from "./dom.js";
import { send } from "./send.js";
import { instant, moment, short } from "./format.js";

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
// `Blocked 14:02 by Ada Lovelace: “ticket 7”.`
function standing({ blocked_at: at, blocked_by: by, blocked_by_name: name, reason }) {
  const who = name || by;
  return `Blocked ${moment(instant(at))}${who ? ` by ${who}` : ""}${reason ? `: “${short(reason, 160)}”` : ""}.`;
}

// A button that blocks a user and, for whoever `mayEnd` it, lets him in again. It looks once how he stands.
export function blockButton(userId, nameOf, { mayEnd }) {
  const address = `/api/v1/users/${encodeURIComponent(userId)}/block`;
  const made = button("", { symbol: "block", className: "icon-button user-block" }, () => {
    if (made.getAttribute("aria-disabled") !== "true") ask(made.dataset.blocked ? letIn() : keepOut(), work);
  });

  const keepOut = () => ({
    title: `Block ${short(nameOf(), 60)}`,
    about: "His running turns are stopped at once, and he may not ask until somebody ends the block.",
    fields: [{ ...MESSAGE, most: 2000 }, { ...REASON, most: 2000 }],
    verb: "Block",
    back: () => made,
  });
  const letIn = () => ({
    title: `Let ${short(nameOf(), 60)} in again`,
    about: `${made.title} He may ask again at once.`,
    fields: [],
    verb: "End the block",
    back: () => made,
  });

  async function work(said) {
    const ends = Boolean(made.dataset.blocked);
    try {
      const block = await (ends ? send(address, undefined, "DELETE") : send(address, said));
      draw(ends ? null : block);
    } catch (failure) {
      if (failure.code === "already_blocked") look();
      throw failure;
    }
    announce(ends ? `${nameOf()} may ask again` : `${nameOf()} is blocked`);
  }

  function draw(block) {
    if (block) made.dataset.blocked = "yes";
    else delete made.dataset.blocked;
    made.title = block ? standing(block) : "Block this user";
    made.setAttribute("aria-label", block ? (mayEnd ? "Blocked: let in again" : "Blocked") : "Block");
    made.setAttribute("aria-disabled", String(Boolean(block) && !mayEnd));
  }

  // Whoever may not know, or cannot ask now, has the button all the same: blocking says what is wrong.
  const look = () => send(address, undefined, "GET").then((said) => draw(said.blocked ? said : null), () => {});

  draw(null);
  look();
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
