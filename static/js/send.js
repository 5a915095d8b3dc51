// Asks the server for something, as the signed-in user.

import { csrfToken } from "./dom.js";

// The answer as it is. `body`: sent as JSON; undefined sends none.
export const request = (method, address, body, signal) =>
  fetch(address, {
    method,
    headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": csrfToken() },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
  });

// What the public API said; throws an Error with the words for the user, the `code`, and `fields` ({name: problems})
// where something is wrong with one.
export async function send(address, body, method = "POST") {
  const answer = await request(method, address, body);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.detail ?? "That did not work. Try again."), { fields: said, code: said.code });
  return said;
}
