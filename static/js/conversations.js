// The list of one's conversations: find, more of them, and the menu of each (rename, take along, delete).

import { get } from "./chat_api.js";
import { request } from "./send.js";
import { announce, button, element } from "./dom.js";
import { exact, instant, moment, plural } from "./format.js";

const API = "/api/v1/conversations";
const PAGE = 50;
const TYPED_MS = 250;

const place = document.getElementById("conversations");
const list = place.querySelector("ul");
const search = document.getElementById("find-conversation");
const found = document.getElementById("conversations-found");
const menu = document.getElementById("conversation-menu");
const renaming = document.getElementById("rename-sheet");
const deleting = document.getElementById("delete-sheet");

let of = null; // the entry whose menu or sheet is open
let wasOpen = false; // the menu, when its button was pressed: that alone closes it
let current = () => null; // the session_id of the conversation on the page

// --- entries ---------------------------------------------------------------------------------------

const titleOf = (entry) => entry.querySelector("b").textContent;

function entryOf({ session_id: id, title, updated_at: at }) {
  const when = instant(at);
  const link = element("a", { attributes: { href: `/chat/${id}/`, dir: "auto" } },
    element("b", { text: title || "Conversation" }),
    element("small", {}, element("time", { text: moment(when), title: exact(when), attributes: { datetime: at } })));
  if (id === current()) link.setAttribute("aria-current", "page");
  const opens = button("", { symbol: "more_vert", className: "icon-button", title: "Rename, take along, delete" }, () => {});
  opens.dataset.menu = "";
  opens.setAttribute("aria-haspopup", "dialog");
  const entry = element("li", { data: { session: id } }, link, opens);
  named(entry);
  return entry;
}

function named(entry) {
  entry.querySelector("[data-menu]").setAttribute("aria-label", `Rename, take along or delete: ${titleOf(entry)}`);
}

// A conversation that has just begun.
export function showConversation(id, question) {
  list.querySelector("[aria-current]")?.removeAttribute("aria-current");
  document.getElementById("no-conversations")?.remove();
  const title = question.replace(/\s+/g, " ").trim().slice(0, 120);
  list.prepend(entryOf({ session_id: id, title, updated_at: new Date().toISOString() }));
}

// --- more of them, and those with a word ---------------------------------------------------------------

let asked = null; // the AbortController of the newest search

async function show(query, cursor) {
  asked?.abort();
  const mine = (asked = new AbortController());
  const parameters = new URLSearchParams({ limit: PAGE, ...(query ? { q: query } : {}), ...(cursor ? { cursor } : {}) });
  const page = await get(`${API}?${parameters}`, mine.signal);
  if (asked !== mine) return null;
  if (!page) return void announce("The conversations could not be read");
  const entries = page.conversations.map(entryOf);
  const more = place.querySelector(".more-conversations");
  if (cursor) list.append(...entries);
  else list.replaceChildren(...entries);
  more.hidden = !page.next;
  more.dataset.cursor = page.next ?? "";
  return entries;
}

place.querySelector(".more-conversations").addEventListener("click", async (event) => {
  event.preventDefault();
  const more = event.currentTarget;
  const entries = await show(search.value.trim(), more.dataset.cursor);
  entries?.[0]?.querySelector("a").focus();
});

let typed = null;
search.addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(async () => {
    const query = search.value.trim();
    const entries = await show(query);
    if (!entries) return;
    const nothing = query && !entries.length;
    found.textContent = nothing ? "No title has that in it." : "";
    found.hidden = !nothing;
    if (query) announce(nothing ? found.textContent : `${plural(entries.length, "conversation")} found`);
  }, TYPED_MS);
});

// --- the menu ------------------------------------------------------------------------------------------

list.addEventListener("pointerdown", () => (wasOpen = menu.matches(":popover-open")), { capture: true });
list.addEventListener("click", (event) => {
  const opens = event.target.closest("[data-menu]");
  if (!opens) return;
  const closes = wasOpen && of === opens.closest("li");
  wasOpen = false;
  if (closes) return menu.hidePopover();
  of = opens.closest("li");
  for (const link of menu.querySelectorAll("a")) link.href = `${API}/${of.dataset.session}/export?format=${link.dataset.format}`;
  menu.showPopover();
  const { bottom, top, right } = opens.getBoundingClientRect();
  const { offsetHeight: high, offsetWidth: wide } = menu;
  menu.style.left = `${Math.max(8, Math.min(right - wide, innerWidth - wide - 8))}px`;
  menu.style.top = `${bottom + 4 + high > innerHeight ? Math.max(8, top - high - 4) : bottom + 4}px`;
  menu.querySelector("button").focus();
});
place.addEventListener("scroll", () => menu.matches(":popover-open") && menu.hidePopover(), { passive: true });
menu.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = [...menu.querySelectorAll("button, a")];
  all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
});
menu.addEventListener("toggle", (event) => {
  if (event.newState === "closed" && (menu.contains(document.activeElement) || document.activeElement === document.body)) of?.querySelector("[data-menu]").focus();
});
menu.addEventListener("click", (event) => {
  const chosen = event.target.closest("[data-do], a");
  if (!chosen) return;
  menu.hidePopover();
  if (chosen.dataset.do === "rename") openRename();
  else if (chosen.dataset.do === "delete") openDelete();
});

// --- sheets ----------------------------------------------------------------------------------------------

const title = document.getElementById("new-title");

function openRename() {
  title.value = titleOf(of);
  said(renaming, "");
  renaming.showModal();
  title.select();
}

function openDelete() {
  deleting.querySelector("[data-title]").textContent = titleOf(of);
  said(deleting, "");
  deleting.showModal();
}

const said = (sheet, words) => (sheet.querySelector(".field-error").textContent = words);

async function failing(sheet, reply) {
  const told = await reply?.json().catch(() => null);
  const fields = told && Object.values(told).filter(Array.isArray).flat().join(" ");
  said(sheet, fields || told?.detail || "That did not work. Please try again.");
}

renaming.querySelector("form").addEventListener("submit", async (event) => {
  if (event.submitter?.value === "cancel") return;
  event.preventDefault();
  const entry = of;
  const reply = await request("PATCH", `${API}/${entry.dataset.session}`, { title: title.value }).catch(() => null);
  if (!reply?.ok) return failing(renaming, reply);
  entry.querySelector("b").textContent = (await reply.json()).title;
  named(entry);
  renaming.close();
  announce("Renamed");
});

deleting.querySelector("form").addEventListener("submit", async (event) => {
  if (event.submitter?.value === "cancel") return;
  event.preventDefault();
  const entry = of;
  const reply = await request("DELETE", `${API}/${entry.dataset.session}`).catch(() => null);
  if (!reply?.ok && reply?.status !== 404) return failing(deleting, reply);
  if (entry.dataset.session === current()) return location.assign("/chat/");
  const near = entry.nextElementSibling ?? entry.previousElementSibling;
  deleting.close();
  entry.remove();
  (near?.querySelector("a") ?? search).focus();
  announce("Deleted");
});

for (const sheet of [renaming, deleting]) sheet.addEventListener("close", () => of?.isConnected && document.activeElement === document.body && of.querySelector("[data-menu]").focus());

// `session`: which conversation the page shows, asked each time.
export function listConversations(session) {
  current = session;
}
