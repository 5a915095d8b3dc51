// Analytics is whole without this. It shows a changed filter at once, keeps the place one reads at, and knows keys.

import { typing } from "./dom.js";

const form = document.getElementById("filters");
const PLACE = "analytics:place";

// What is chosen is shown at once; own times wait for the button, since there are two of them.
for (const name of ["user_id", "model", "tool"]) {
  form.elements[name].addEventListener("change", () => form.requestSubmit());
}

// Only what is filled in goes into the address.
form.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (value.trim() === "") formData.delete(name);
});

// With other filters the page stays where it was read.
const keepPlace = () => sessionStorage.setItem(PLACE, JSON.stringify([scrollY, Date.now()]));
form.addEventListener("submit", keepPlace);
for (const range of document.querySelectorAll(".segment")) range.addEventListener("click", keepPlace);
const [place, since] = JSON.parse(sessionStorage.getItem(PLACE) ?? "[0,0]");
sessionStorage.removeItem(PLACE);
if (place && Date.now() - since < 30_000) scrollTo({ top: place, behavior: "instant" });

// Days and hours are those of the zone in the cookie; where the browser's differs, it can be had.
const said = document.getElementById("zone");
const own = new Intl.DateTimeFormat().resolvedOptions().timeZone;
if (said && own && said.dataset.zone !== own && document.cookie.split("; ").includes(`zone=${own}`)) {
  const link = document.createElement("a");
  link.href = location.href;
  link.textContent = `show in ${own}`;
  said.after(" · ", link);
}

const keys = document.getElementById("keys-sheet");
document.getElementById("help").addEventListener("click", () => keys.showModal());
document.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  const table = document.querySelector(".as-table");
  if (event.key === "/") document.getElementById("filter-user").focus();
  else if (event.key === "?") keys.showModal();
  else if (event.key === "t" && table) {
    table.open = !table.open;
    if (table.open) table.querySelector(".table-frame").focus();
  } else return;
  event.preventDefault();
});
