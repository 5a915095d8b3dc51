// What the chat page asks of its own server.

import { request } from "./send.js";

export const post = (address, body, signal) => request("POST", address, body, signal);

// The JSON of an address; null when there is none of it, or the server is away.
export async function get(address, signal) {
  try {
    const reply = await fetch(address, { signal });
    return reply.ok ? await reply.json() : null;
  } catch {
    return null;
  }
}
