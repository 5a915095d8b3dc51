// What the chat page asks of its own server.

import { csrfToken } from "./dom.js";

export const send = (method, address, body, signal) =>
  fetch(address, {
    method,
    headers: { "Content-Type": "application/json", "X-CSRFToken": csrfToken() },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
  });

export const post = (address, body, signal) => send("POST", address, body, signal);

// The JSON of an address; null when there is none of it, or the server is away.
export async function get(address, signal) {
  try {
    const reply = await fetch(address, { signal });
    return reply.ok ? await reply.json() : null;
  } catch {
    return null;
  }
}
