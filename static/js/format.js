// How numbers, times and money read on every page. Pure functions; the zone is the viewer's.

// "2026-11-22T06:00:00.123456Z" -> milliseconds since 1970 with the microseconds kept as a fraction.
export function instant(iso) {
  const whole = Date.parse(iso.slice(0, 19) + "Z");
  const fraction = /\.(\d+)/.exec(iso);
  return whole + (fraction ? Number("0." + fraction[1]) * 1000 : 0);
}

// <1 ms, 3 ms, 1.4 s, 2 min 05 s, 1 h 12 min
export function duration(ms) {
  if (!(ms >= 0.5)) return "<1 ms";
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${two(Math.floor((seconds % 3600) / 60))} min`;
}

// The time a watch still has: 23:41 below half an hour, then 58 min, 3 h 12, 2 d 4 h.
export function remaining(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  if (seconds < 1800) return `${Math.floor(seconds / 60)}:${two(seconds % 60)}`;
  const minutes = Math.ceil(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)}`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

// As many digits as it needs: $0.004, $0.000021, $12.40, $0
export function money(usd) {
  const value = Number(usd);
  if (!Number.isFinite(value)) return "";
  if (value === 0) return "$0";
  if (value >= 1) return "$" + value.toFixed(2);
  const digits = Math.min(8, Math.max(2, 1 - Math.floor(Math.log10(value))));
  return "$" + value.toFixed(digits).replace(/(\.\d\d\d*?)0+$/, "$1");
}

const WHOLE = new Intl.NumberFormat("en");
export const count = (number) => WHOLE.format(number);
export const plural = (number, one, many = one + "s") => `${count(number)} ${number === 1 ? one : many}`;

const SHORT = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const YEAR = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const EXACT = new Intl.DateTimeFormat("en-GB", {
  weekday: "short", day: "numeric", month: "short", year: "numeric",
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, timeZoneName: "short",
});

export const clock = (ms) => CLOCK.format(ms);
export const hour = (ms) => SHORT.format(ms);
export const exact = (ms) => EXACT.format(ms);

// Today 14:02, otherwise 21 Nov 14:02 (with the year when it is another one)
export function moment(ms, now = Date.now()) {
  const then = new Date(ms), today = new Date(now);
  if (then.toDateString() === today.toDateString()) return SHORT.format(ms);
  const day = then.getFullYear() === today.getFullYear() ? DAY : YEAR;
  return `${day.format(ms)} ${SHORT.format(ms)}`;
}

// "just now", "4 min ago" while fresh; a moment otherwise
export function ago(ms, now = Date.now()) {
  const seconds = (now - ms) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3570) return `${Math.round(seconds / 60)} min ago`;
  return moment(ms, now);
}

export function initials(name) {
  const words = name.split("@")[0].split(/[\s._-]+/).filter((word) => /^[\p{L}\p{N}]/u.test(word));
  const letters = words.length > 1 ? [words[0], words[words.length - 1]] : words;
  return letters.map((word) => [...word][0]).join("").toUpperCase() || "?";
}

// Texts of metadata may be long or hold line breaks; a row has one line.
export function short(text, most = 160) {
  const line = String(text).replace(/\s+/g, " ").trim();
  const letters = [...line.slice(0, most * 2)];
  return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : line;
}

const two = (number) => String(number).padStart(2, "0");
