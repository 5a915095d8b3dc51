// A stored turn, played again: its checkpoints are fed to a tree of its own by a clock of its own, as
// they came then. At the end stands the same tree as the stored one.
//
//   const player = new Player({ checkpoints, title, usual, speed: 4, onspeed, onclose })
//   place.append(player.element); player.begin(); … player.destroy()

import { announce, button, element, icon } from "./dom.js";
import { FlowTree } from "./flow_tree.js";
import { duration, instant } from "./format.js";
import { Transcript } from "./transcript.js";

export const SPEEDS = [1, 4, 16];
const SILENCE_MS = 2000; // a wait that takes longer to watch may be skipped …
const SEEN_MS = 600; // … after so much of it
const FRAME_MS = 250; // a page that was hidden goes on where it was
const STEPS = 50; // arrow keys go through a turn in so many

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Player {
  constructor({ checkpoints, title, usual, speed, onspeed, onclose }) {
    this.rows = [...checkpoints].sort((a, b) => instant(a.created_at) - instant(b.created_at) || (a.flow_id < b.flow_id ? -1 : 1));
    this.began = instant(this.rows[0].created_at);
    this.times = this.rows.map((one) => instant(one.created_at) - this.began);
    this.total = this.times.at(-1);
    this.at = 0; // milliseconds since the turn began, by the clock of the playing
    this.fed = 0; // so many checkpoints are in the tree
    this.playing = false;
    this.speed = SPEEDS.includes(speed) ? speed : SPEEDS[0];
    this.onspeed = onspeed;
    this.#build(title, onclose);
    this.tree = new FlowTree(this.place, { order: "oldest", usual, now: () => this.began + this.at, onselect: (id) => this.#mark(id) });
    this.transcript = new Transcript({ name: title, onchoose: (id) => (this.tree.select(id), this.#mark(id)) });
    this.element.addEventListener("keydown", (event) => this.#key(event));
    // it stands among the rows of another tree, which must not take them for its own
    for (const name of ["click", "focusin"]) this.element.addEventListener(name, (event) => event.stopPropagation());
    this.seek(0);
  }

  begin(playing = true) {
    this.toggle.focus({ preventScroll: true });
    // who wants little motion starts it himself
    if (playing && !calm.matches) this.play();
  }

  play() {
    if (this.at >= this.total) this.seek(0);
    this.playing = true;
    this.before = null;
    this.#show();
    announce(`Playing at ${this.speed} times the speed`);
    requestAnimationFrame((time) => this.#frame(time));
  }

  pause() {
    this.playing = false;
    this.#show();
  }

  // Shows the turn as it stood so many milliseconds after it began.
  seek(at) {
    const wanted = Math.max(0, Math.min(this.total, at));
    if (wanted < this.at) this.#rewind();
    this.at = wanted;
    const before = this.fed;
    while (this.fed < this.rows.length && this.times[this.fed] <= wanted) this.tree.add(this.rows[this.fed++]);
    if (this.fed > before) this.#draw();
    // with little motion the picture changes when something came, not with the clock
    if (this.fed > before || !calm.matches || !this.playing) this.#show();
    if (this.playing && wanted >= this.total) this.#finish();
  }

  destroy() {
    this.playing = false;
    this.tree.destroy();
    this.element.remove();
  }

  // --- the clock ---

  #frame(time) {
    if (!this.playing) return;
    const passed = this.before === null ? 0 : Math.min(FRAME_MS, time - this.before);
    this.before = time;
    this.seek(this.#after(passed));
    if (this.playing) requestAnimationFrame((next) => this.#frame(next));
  }

  #after(passed) {
    const at = this.at + passed * this.speed;
    const last = this.times[this.fed - 1] ?? 0, next = this.times[this.fed] ?? this.total;
    const isLong = (next - last) / this.speed > SILENCE_MS;
    return this.skip.checked && isLong && at < next && (at - last) / this.speed > SEEN_MS ? next : at;
  }

  #rewind() {
    for (const id of [...this.tree.turns.keys()]) this.tree.remove(id);
    this.fed = 0;
  }

  #finish() {
    this.pause();
    announce("The turn was played to its end");
  }

  // --- what is seen ---

  #build(title, onclose) {
    this.toggle = button("", { className: "icon-button player-toggle" }, () => (this.playing ? this.pause() : this.play()));
    this.speeds = SPEEDS.map((speed) => button(`${speed}x`, { className: "player-speed", label: `${speed} times the speed` }, () => this.#setSpeed(speed)));
    this.range = element("input", { className: "player-range", attributes: { type: "range", min: "0", max: String(this.total), step: "any", "aria-label": "Time in the turn" } });
    this.range.addEventListener("input", () => this.#scrub());
    this.clock = element("span", { className: "player-clock" });
    this.skip = element("input", { attributes: { type: "checkbox" } });
    const close = button("", { symbol: "close", className: "icon-button", label: "End playing", title: "End playing" }, onclose);
    const bar = element("div", { className: "player-bar" }, this.toggle,
      element("span", { className: "player-speeds", attributes: { role: "group", "aria-label": "Speed" } }, ...this.speeds),
      this.range, this.clock,
      element("label", { className: "player-skip", title: "Waits of more than 2 seconds are cut short" }, this.skip, element("span", { text: "Skip silences" })), close);
    this.place = element("div", { className: "player-turn" });
    this.element = element("section", { className: "player", attributes: { "aria-label": `Playing again: ${title}` } }, bar, this.place);
  }

  #draw() {
    this.tree.flush();
    const turn = this.#turn;
    this.transcript.draw(this.rows.slice(0, this.fed));
    // a turn that was taken back to an earlier moment has a new article
    if (turn?.article && !turn.article.contains(this.transcript.element)) turn.head.after(this.transcript.element);
  }

  get #turn() {
    return this.tree.turns.values().next().value;
  }

  #show() {
    const ended = this.at >= this.total;
    this.tree.still = !this.playing;
    this.#turn?.tick?.();
    this.range.value = this.at;
    const here = this.at === 0 ? "0 s" : duration(this.at);
    this.range.setAttribute("aria-valuetext", `${here} of ${duration(this.total)}`);
    this.clock.textContent = `${here} / ${duration(this.total)}`;
    this.element.dataset.state = this.playing ? "playing" : ended ? "ended" : "paused";
    const [symbol, label] = this.playing ? ["pause", "Pause"] : ended ? ["replay", "Play again"] : ["play_arrow", "Play"];
    if (this.toggle.title !== label) {
      this.toggle.replaceChildren(icon(symbol));
      this.toggle.title = label;
      this.toggle.setAttribute("aria-label", label);
    }
    this.speeds.forEach((one, at) => one.setAttribute("aria-pressed", String(SPEEDS[at] === this.speed)));
  }

  #setSpeed(speed) {
    this.speed = speed;
    this.#show();
    this.onspeed?.(speed);
  }

  // Dragging asks for more places than can be drawn: the newest one counts.
  #scrub() {
    const wanted = Number(this.range.value); // first: to hold it puts the slider where the clock is
    this.pause();
    if (this.scrubbing === undefined) requestAnimationFrame(() => {
      this.seek(this.scrubbing);
      this.scrubbing = undefined;
    });
    this.scrubbing = wanted;
  }

  #mark(flowId) {
    const step = this.tree.turnOf.get(flowId)?.steps.get(flowId);
    if (!this.transcript.mark(step?.start.flow_id)) this.transcript.mark(step?.end?.flow_id);
  }

  #key(event) {
    if (event.target === this.range) event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const act = event.target === this.range ? this.#rangeKey(event.key)
      : { j: () => this.tree.moveFocus(1), k: () => this.tree.moveFocus(-1) }[event.key]
      ?? (event.key === " " && !event.target.closest("button, label, .row") ? () => (this.playing ? this.pause() : this.play()) : null);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  #rangeKey(key) {
    const step = this.total / STEPS;
    const by = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -5 * step, PageUp: 5 * step, Home: -this.total, End: this.total }[key];
    return by === undefined ? null : () => {
      this.pause();
      this.seek(this.at + by);
    };
  }
}
