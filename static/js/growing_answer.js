// An answer's Markdown while it comes. Whole lines go to our server, which alone makes markup of what
// a model wrote (chat/markdown.py): blocks that are finished are drawn once and stay, the last one is
// drawn again as it grows, and what stands after the last line break is shown as it is, as text.

import { button, copy, element } from "./dom.js";

const AT_MOST_EVERY_MS = 400; // from one question to the server to the next
const TOO_LONG = 30_000; // characters of one block that grows: it stays text until the end

export class GrowingAnswer {
  // `render(body, signal)` asks /chat/render and gives its JSON, or null; `change(draw)` draws and keeps the page's place.
  constructor(place, { render, change }) {
    this.place = place;
    this.render = render;
    this.change = change;
    this.text = "";
    this.halfBreak = false;
    this.finished = 0; // characters that are drawn for good
    this.covered = 0; // characters that are drawn, the growing block included
    this.growing = []; // its elements
    this.tail = place.appendChild(element("div", { className: "tail" }));
    this.rest = this.tail.appendChild(document.createTextNode(""));
    this.asking = null;
    this.wanted = 0;
    this.timer = null;
    this.ended = false;
  }

  add(text) {
    // line breaks as the server counts them, also where a piece ends between two characters of one
    const more = this.halfBreak && text.startsWith("\n") ? text.slice(1) : text;
    this.halfBreak = text.endsWith("\r");
    this.text += more.replace(/\r\n?/g, "\n");
    this.#drawSoon();
    this.#askSoon();
  }

  // All of it, rendered; the text stays as it came when the server is away.
  async finish() {
    this.ended = true;
    clearTimeout(this.timer);
    this.#drawRest();
    await this.asking;
    if (!this.text) return;
    // a link whose address is given further below: only the whole text knows it
    if (/^ {0,3}\[[^\]]+\]:/m.test(this.text)) await this.#whole();
    else if (this.covered < this.text.length) await this.#ask(this.text.length, Infinity);
    if (this.covered === this.text.length) this.tail.remove();
  }

  // Once a picture of the screen, however many pieces came meanwhile.
  #drawSoon() {
    this.wanted ||= requestAnimationFrame(() => this.#drawRest());
  }

  #drawRest() {
    cancelAnimationFrame(this.wanted);
    this.wanted = 0;
    this.change(() => this.#showRest());
  }

  #showRest() {
    const rest = this.text.slice(this.covered);
    if (this.rest.data !== rest) this.rest.data = rest;
  }

  #askSoon() {
    if (this.timer || this.asking || this.ended) return;
    if (this.text.lastIndexOf("\n") + 1 <= this.covered) return;
    this.timer = setTimeout(async () => {
      this.timer = null;
      this.asking = this.#ask(this.text.lastIndexOf("\n") + 1, TOO_LONG);
      await this.asking;
      this.asking = null;
      this.#askSoon();
    }, AT_MOST_EVERY_MS);
  }

  async #ask(end, most) {
    const piece = this.text.slice(this.finished, end);
    if (piece.length > most) return;
    const part = await this.render({ text: piece, growing: true });
    if (part) this.change(() => this.#show(part, piece, end));
  }

  #show({ html, growing, lines }, piece, end) {
    const finished = parsed(html);
    for (const old of this.growing) old.remove();
    this.growing = parsed(growing);
    this.place.insertBefore(fragment(finished, this.growing), this.tail);
    frameWide(this.place);
    this.growing = this.growing.map((one) => one.closest(".framed, .wide") ?? one);
    this.finished += afterLines(piece, lines);
    this.covered = end;
    this.#showRest();
  }

  async #whole() {
    const part = await this.render({ text: this.text });
    if (!part) return;
    this.change(() => {
      this.covered = this.text.length;
      this.place.replaceChildren(fragment(parsed(part.html)), this.tail);
      this.#showRest();
      frameWide(this.place);
    });
  }
}

function afterLines(text, lines) {
  let at = 0;
  for (; lines > 0; lines -= 1) at = text.indexOf("\n", at) + 1;
  return at;
}

// What our own server rendered and sanitized. Text between blocks is only line breaks.
function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return [...template.content.children];
}

function fragment(...lists) {
  const made = document.createDocumentFragment();
  made.append(...lists.flat());
  return made;
}

// In an answer: code gets a button that copies it; code and tables scroll inside themselves, by keyboard too.
export function frameWide(within) {
  for (const pre of within.querySelectorAll("pre")) {
    if (pre.parentElement.classList.contains("framed")) continue;
    const frame = element("div", { className: "framed" });
    pre.replaceWith(frame);
    pre.tabIndex = 0;
    frame.append(pre, button("", { symbol: "content_copy", className: "icon-button", title: "Copy", label: "Copy the code" }, () => copy(pre.textContent, pre)));
  }
  for (const table of within.querySelectorAll("table")) {
    if (table.parentElement.classList.contains("wide")) continue;
    const frame = element("div", { className: "wide", attributes: { tabindex: "0", role: "group", "aria-label": "Table" } });
    table.replaceWith(frame);
    frame.append(table);
  }
}
