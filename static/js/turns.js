// The table of turns: times in the viewer's zone, running turns with a ticking clock.

import { typing } from "./dom.js";
import { duration, instant } from "./format.js";
import { showLocalTimes } from "./times.js";

showLocalTimes();

// The fields for times speak the viewer's zone; the URL always says UTC.
const form = document.getElementById("filters");
const local = (iso) => {
  const at = new Date(iso);
  return new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};
for (const input of form.querySelectorAll("[data-iso]")) {
  const given = input.dataset.iso;
  const at = given && new Date(/[zZ]|[+-]\d\d:?\d\d$/.test(given) ? given : given + "Z");
  if (at && !Number.isNaN(at.getTime())) input.value = local(at);
}
for (const zone of form.querySelectorAll(".zone")) zone.remove();

// Only what is filled in goes into the URL, and times go as UTC.
form.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) {
    if (value.trim() === "") formData.delete(name);
    else if (name === "since" || name === "until") formData.set(name, new Date(value).toISOString());
  }
});

const running = [...document.querySelectorAll("[data-running-since]")];
const tick = () => running.forEach((one) => (one.textContent = duration(Date.now() - instant(one.dataset.runningSince))));
if (running.length) {
  tick();
  setInterval(tick, 1000);
}

// j and k walk through the rows, / goes to the search.
const links = [...document.querySelectorAll("#turns .what a")];
document.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  const at = links.indexOf(document.activeElement);
  if (event.key === "/") document.getElementById("filter-q").focus();
  else if (event.key === "j") links[Math.min(at + 1, links.length - 1)]?.focus();
  else if (event.key === "k") links[Math.max(at - 1, 0)]?.focus();
  else return;
  event.preventDefault();
});
