// Small pieces of page. Text goes in by textContent alone: nothing that comes from data is ever markup.

export function element(tag, { className, text, title, data, attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  if (title) made.title = title;
  if (data) Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

export const icon = (name) =>
  element("span", { className: "material-symbols-outlined", text: name, attributes: { "aria-hidden": "true" } });

export function button(text, { symbol, className = "button", title, label } = {}, onclick) {
  const made = element("button", { className, title, attributes: { type: "button" } });
  if (symbol) made.append(icon(symbol));
  if (text) made.append(element("span", { text }));
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", onclick);
  return made;
}

// A JSON block the server put in the page.
export function pageData(id) {
  const block = document.getElementById(id);
  return block ? JSON.parse(block.textContent) : null;
}

export const csrfToken = () => document.querySelector("#logout-form [name=csrfmiddlewaretoken]")?.value ?? "";

// One sentence to screen readers, at most one a second: only the newest waits.
let said = 0, next = null, timer = null;
export function announce(sentence) {
  next = sentence;
  if (timer) return;
  timer = setTimeout(() => {
    const place = document.getElementById("announcements") ?? document.body.appendChild(
      element("div", { className: "sr-only", attributes: { id: "announcements", "aria-live": "polite" } }));
    place.textContent = next;
    said = Date.now();
    timer = null;
  }, Math.max(0, said + 1000 - Date.now()));
}

export async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https a page may not use the clipboard: select the text, so that one key copies it.
    getSelection().selectAllChildren(from);
    return announce("Selected: copy it with the keyboard");
  }
  announce("Copied");
}

// A dialog just closed keeps the focus until the page is drawn again: what is typed then is for the page.
export const typing = (event) =>
  event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, textarea, select, dialog[open], [contenteditable]");
