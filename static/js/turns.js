// The table of turns: times in the viewer's zone, running turns that tick and end, what is new, and the keys.

import { announce, element, typing } from "./dom.js";
import { ago, duration, exact, instant, plural } from "./format.js";

const NEWS_MS = 15_000;
const TYPED_MS = 150;
const place = (id) => document.getElementById(id);
const form = place("filters");
const table = place("turns");

// --- times: relative while fresh, exact on hover ---------------------------------------------------

const times = [...document.querySelectorAll("time[datetime]")].filter((one) => Number.isFinite(instant(one.dateTime)));
function showTimes() {
  for (const time of times) {
    const said = ago(instant(time.dateTime));
    if (time.textContent !== said) time.textContent = said;
  }
}
for (const time of times) time.title = exact(instant(time.dateTime));
showTimes();
setInterval(showTimes, 30_000);

// --- the form ----------------------------------------------------------------------------------------

// The fields for times speak the viewer's zone; the URL always says UTC.
const local = (at) => new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
for (const input of form.querySelectorAll("[data-iso]")) {
  const given = input.dataset.iso;
  const at = given && new Date(/[zZ]|[+-]\d\d:?\d\d$/.test(given) ? given : given + "Z");
  if (at && !Number.isNaN(at.getTime())) input.value = local(at);
}
for (const zone of form.querySelectorAll(".zone")) zone.remove();

// Only what is filled in goes into the URL: times as UTC, a duration in milliseconds.
form.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) {
    if (value.trim() === "") formData.delete(name);
    else if (name === "since" || name === "until") formData.set(name, asUtc(name, value));
    else if (name === "slower_ms") formData.set(name, milliseconds(value) ?? value);
  }
});

// A time that was not touched goes back as it came: the field has whole seconds only.
function asUtc(name, value) {
  const input = form.elements[name];
  return value === input.defaultValue ? input.dataset.iso : new Date(value).toISOString();
}

const UNITS_MS = { "": 1, ms: 1, s: 1000, sec: 1000, m: 60_000, min: 60_000, h: 3_600_000 };
function milliseconds(text) {
  const said = /^\s*(\d{1,9}(?:[.,]\d{1,6})?)\s*([a-z]*)\s*$/i.exec(text);
  const unit = said && UNITS_MS[said[2].toLowerCase()];
  return unit ? String(Number((Number(said[1].replace(",", ".")) * unit).toFixed(6))) : null;
}

for (const input of form.querySelectorAll("[data-iso]")) input.defaultValue = input.value;
// "the last hour" and a time from which on exclude each other: what was chosen last holds
form.elements.range.addEventListener("change", () => form.elements.range.value && (form.elements.since.value = ""));
form.elements.since.addEventListener("change", () => form.elements.since.value && (form.elements.range.value = ""));
for (const select of form.querySelectorAll(".filters-row select")) {
  select.addEventListener("change", () => form.requestSubmit());
}

// People as one types.
const who = form.elements.user_id;
const offered = place("offered-people");
let asked = null;
who?.addEventListener("input", () => {
  clearTimeout(asked);
  const words = who.value.trim();
  if (!words || [...offered.options].some((one) => one.value === words)) return;
  asked = setTimeout(async () => {
    const answer = await fetch(`/flows/people?${new URLSearchParams({ q: words })}`).catch(() => null);
    if (!answer?.ok || who.value.trim() !== words) return;
    const { people } = await answer.json();
    offered.replaceChildren(...people.map((one) => element("option", { text: one.name, attributes: { value: one.user_id } })));
  }, TYPED_MS);
});

// --- what runs, what has ended meanwhile, what is new ------------------------------------------------

const tick = () => {
  for (const one of document.querySelectorAll("[data-running-since]")) {
    one.textContent = duration(Date.now() - instant(one.dataset.runningSince));
  }
};
tick();
setInterval(tick, 1000);

function show({ new: count, ended }) {
  for (const turn of ended) end(turn);
  if (!count) return;
  const link = place("news");
  const said = `${count >= 100 ? "100 or more new turns" : plural(count, "new turn")}`;
  if (link.lastElementChild.textContent !== said) announce(said);
  link.lastElementChild.textContent = said;
  link.hidden = false;
}

// A turn that ran when the page was loaded: its row stays where it is and says how it ended.
function end(turn) {
  const row = table.querySelector(`tr[data-running][data-turn-id="${CSS.escape(turn.turn_id)}"]`);
  if (!row) return;
  delete row.dataset.running;
  row.dataset.outcome = turn.code;
  const outcome = row.querySelector(".outcome");
  outcome.dataset.state = turn.outcome.state;
  outcome.firstElementChild.textContent = turn.outcome.icon;
  outcome.lastElementChild.textContent = turn.outcome.label;
  row.querySelector(".watch-link")?.remove();
  row.querySelector(".why").textContent = turn.why;
  const cells = { ...turn, tools: turn.tools || "" };
  for (const cell of row.querySelectorAll("[data-cell]")) cell.textContent = cells[cell.dataset.cell];
}

async function askForNews() {
  if (document.hidden || !table?.dataset.news) return;
  const answer = await fetch(table.dataset.news).catch(() => null);
  if (answer?.ok) show(await answer.json());
  // not signed in any more, or the page is too old: it stays as it is, and asks no further
  else if (answer && answer.status < 500) delete table.dataset.news;
}
setInterval(askForNews, NEWS_MS);
document.addEventListener("visibilitychange", askForNews);
// What is new stands on the first page, whatever page this is.
place("news")?.addEventListener("click", (event) => {
  if (place("news").getAttribute("href")) return;
  event.preventDefault();
  location.reload();
});

// --- keys and menus -----------------------------------------------------------------------------------

const links = [...document.querySelectorAll("#turns .what a")];
const step = (by) => {
  const at = links.indexOf(document.activeElement);
  links[Math.max(0, Math.min(at + by, links.length - 1))]?.focus();
};
const keys = {
  "/": () => place("filter-q").focus(),
  j: () => step(1),
  k: () => step(-1),
  n: () => document.querySelector('.pages [rel="next"]')?.click(),
  p: () => document.querySelector('.pages [rel="prev"]')?.click(),
  r: () => place("news")?.hidden === false && place("news").click(),
  "?": () => place("keys-sheet").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return closeMenus(null);
  if (typing(event) || !Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});
place("help").addEventListener("click", keys["?"]);

function closeMenus(target) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (menu.contains(target)) continue;
    const held = menu.contains(document.activeElement);
    menu.open = false;
    if (held) menu.querySelector("summary").focus();
  }
}
document.addEventListener("click", ({ target }) => closeMenus(target));
