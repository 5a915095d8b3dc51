// The token page: the copy button, and times in the viewer's zone.

import { copy } from "../js/dom.js";
import { exact, instant, moment } from "../js/format.js";

for (const time of document.querySelectorAll("#content time")) {
  const then = instant(time.dateTime);
  time.textContent = moment(then);
  time.title = exact(then);
}

for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  button.addEventListener("click", () => copy(source.textContent, source));
}
