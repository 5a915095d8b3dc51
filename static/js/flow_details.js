// What a row says when it is opened: each of its checkpoints with its metadata, and the raw JSON on demand.

import { announce, button, copy, element } from "./dom.js";
import { clock, count, duration, exact, instant, money, plural } from "./format.js";
import { PACES, usually } from "./pace.js";

export function details(step) {
  return element("div", { className: "details" }, summary(step),
    ...[step.start, step.end].filter(Boolean).map((one) => checkpointDetails(one, step.turn)));
}

// What stands below the step, and what is usual for it, in one line each.
function summary(step) {
  const facts = [];
  if (step.children.length) facts.push(`With all below it: ${rollUpFacts(step, true)}.`);
  const { usual, pace } = step;
  if (usual) facts.push(`${PACES[pace].words ? `${PACES[pace].words}: `.replace(/^./, (first) => first.toUpperCase()) : "For this one "}${usually(usual)}.`);
  return facts.length ? element("p", { className: "details-sum", text: facts.join(" ") }) : null;
}

// "7 steps, 1 failed · 3.1 s · 1,204 tok · $0.004"
export function rollUpFacts(step, withTime = false) {
  const { steps, failed, from, to, tokens, cost } = step.rollUp;
  return [plural(steps, "step") + (failed ? `, ${count(failed)} failed` : ""),
    withTime ? duration((to ?? step.turn.tree.now()) - from) : "",
    tokens ? `${count(tokens)} tok` : "", cost ? money(cost) : ""].filter(Boolean).join(" · ");
}

function checkpointDetails(checkpoint, turn) {
  const at = instant(checkpoint.created_at);
  const id = element("code", { text: checkpoint.flow_id });
  const raw = element("pre", { attributes: { tabindex: "0", "aria-label": "Raw JSON" } });
  raw.hidden = true;
  const show = button("Raw JSON", { className: "link-button" }, () => {
    raw.hidden = !raw.hidden;
    raw.textContent = raw.hidden ? "" : JSON.stringify(checkpoint, null, 2);
    show.setAttribute("aria-expanded", String(!raw.hidden));
  });
  show.setAttribute("aria-expanded", "false");
  return element("section", { attributes: { "aria-label": checkpoint.checkpoint } },
    element("h4", {}, element("span", { text: checkpoint.checkpoint }),
      element("time", { text: clock(at) + ` · ${duration(at - turn.at)} in`, title: `${exact(at)} · ${checkpoint.created_at}`, attributes: { datetime: checkpoint.created_at } })),
    element("dl", {}, ...Object.entries(checkpoint.metadata ?? {}).flatMap(([key, value]) => [element("dt", { text: key }), shown(value)])),
    element("p", { className: "details-foot" }, id,
      button("", { symbol: "content_copy", className: "icon-button", label: "Copy the id", title: "Copy the id" }, () => copy(checkpoint.flow_id, id)),
      ...links(checkpoint, turn), show),
    raw);
}

// Where this very checkpoint stands in history: to go there, and to send to somebody.
function links(checkpoint, turn) {
  const address = turn.tree.historyOf?.(checkpoint.session_id, checkpoint.flow_id);
  if (!address) return [];
  const link = element("a", { text: "In history", attributes: { href: address } });
  return [link, button("Copy link", { className: "link-button", title: "Copy a link to this checkpoint" }, async () => {
    const whole = new URL(address, location.href).href;
    try {
      await navigator.clipboard.writeText(whole);
      announce("Link copied");
    } catch {
      // without https a page may not use the clipboard: the link itself can be copied from its menu
      link.textContent = whole;
      copy(whole, link);
    }
  })];
}

function shown(value) {
  if (value !== null && typeof value === "object") return element("dd", {}, element("pre", { text: JSON.stringify(value, null, 2) }));
  return element("dd", { text: value === null ? "none" : String(value), className: typeof value === "number" ? "is-number" : "" });
}
