// Times the server wrote in UTC, in the viewer's zone: short in the text, exact on hover.

import { exact, instant, moment } from "./format.js";

export function showLocalTimes(within = document) {
  for (const time of within.querySelectorAll("time[datetime]")) {
    const at = instant(time.dateTime);
    if (!Number.isFinite(at)) continue;
    time.textContent = moment(at);
    time.title = exact(at);
  }
}
