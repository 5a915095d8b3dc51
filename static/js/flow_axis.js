// The time axis above the rows of an open turn: a few ticks on the very scale of the bars, and where
// the first token came. For the eye; the rows say their times in words.

import { element } from "./dom.js";
import { duration } from "./format.js";

const MOST_TICKS = 4;
const STEPS_MS = [1, 2, 5].flatMap((one) => [1, 10, 100, 1000].map((power) => one * power))
  .concat([10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400].map((seconds) => seconds * 1000))
  .sort((a, b) => a - b);

// The times at which an axis of so many milliseconds has its ticks, without 0.
export function ticks(span) {
  const step = STEPS_MS.find((one) => span / one <= MOST_TICKS) ?? Math.ceil(span / MOST_TICKS / 86_400_000) * 86_400_000;
  return Array.from({ length: Math.floor(span / step) }, (_, at) => (at + 1) * step);
}

// 200 ms, 1.5 s, 2:30, 1:00:00: short, since many stand beside each other.
export function tickText(ms) {
  if (ms < 1000) return `${ms} ms`;
  const seconds = ms / 1000, two = (number) => String(number).padStart(2, "0");
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}:${two(seconds % 60)}`;
  return `${Math.floor(seconds / 3600)}:${two(Math.floor((seconds % 3600) / 60))} h`;
}

export class Axis {
  constructor() {
    this.words = element("span", { className: "axis-words" });
    this.scale = element("span", { className: "axis-scale" });
    this.element = element("div", { className: "axis", attributes: { "aria-hidden": "true" } }, this.words, this.scale);
    this.times = "";
  }

  // `first`: milliseconds from the turn's start to its first token, or null.
  draw(span, first) {
    const times = ticks(span), key = times.join();
    if (key !== this.times) {
      this.times = key;
      this.scale.replaceChildren(...[0, ...times].map((ms) => {
        const tick = element("span", { text: ms === 0 ? "0" : tickText(ms), className: ms === 0 ? "is-zero" : "" });
        tick.style.setProperty("--s", ms);
        return tick;
      }));
    }
    // a label at the very end would stand over the durations
    [...this.scale.children].forEach((tick, at) => tick.classList.toggle("is-late", at > 0 && times[at - 1] > span * 0.93));
    const words = first === null ? "" : `first token ${duration(first)}`;
    if (this.words.textContent !== words) this.words.textContent = words;
  }
}
