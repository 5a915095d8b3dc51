// Asks the public API for something, as the signed-in user. Gives what it said; throws an Error with the
// words for the user, the `code`, and `fields` ({name: problems}) where something is wrong with one.

import { csrfToken } from "./dom.js";

export async function send(address, body, method = "POST") {
  const answer = await fetch(address, {
    method,
    headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": csrfToken() },
    body: JSON.stringify(body),
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.detail ?? "That did not work. Try again."), { fields: said, code: said.code });
  return said;
}
