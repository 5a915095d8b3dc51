// One watcher's socket: connects, resumes where it was, acknowledges what was drawn, says its state.
//
//   new FlowSocket(userId, {
//     state({ name, attempt, since, why, signIn }),  name: connecting, connected, reconnecting, disconnected
//     hello(message), monitoring(message), live("on" | "degraded" | "off"),
//     snapshot(checkpoints, { fresh }),   fresh: show exactly these; else they follow what is shown
//     checkpoint(checkpoint),
//     draw(),                              draw now whatever was handed over
//   })
//
// Drawing is left to the page's next frame, but never longer than an acknowledgement may take: a
// hidden page gets no frames and must still acknowledge.

const FRAMES_PER_ACK = 100; // the server's credit is 500 frames
const MS_PER_ACK = 1000;
const FIRST_DELAY_MS = 500, LONGEST_DELAY_MS = 30_000;
const SILENCE_MS = 40_000; // pings come every 15 s

const FINAL = {
  4401: ["You are not signed in any more.", true],
  4403: ["You may not watch this user. An administrator can give you the right to watch flows.", false],
  4404: ["There is no such user.", false],
};
const FORGET_CURSOR = 4400; // the server does not understand it: begin anew
const TOO_SLOW = 4408; // this page fell behind: come back at once and read on

export class FlowSocket {
  #socket = null;
  #cursor = null;
  #offset = null;
  #pinged = false;
  #attempt = 0;
  #frames = 0; // received and not acknowledged
  #ackedAt = 0;
  #timer = null;
  #frame = null;
  #watchdog = null;
  #snapshot = null; // parts of one that is not whole yet
  #closed = false;
  #held = false;
  #active = true; // is the user monitored?
  #anew = true; // the next snapshot is the whole picture
  #since = null;
  #next = null; // the cursor of what was handed over and is not drawn
  #fallback = null;
  #late = null;

  constructor(userId, page) {
    this.userId = userId;
    this.page = page;
    this.#open();
    addEventListener("online", this.#hurry);
    document.addEventListener("visibilitychange", this.#hurry);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#watchdog);
    cancelAnimationFrame(this.#frame);
    removeEventListener("online", this.#hurry);
    document.removeEventListener("visibilitychange", this.#hurry);
    this.#socket?.close(1000);
  }

  // How far this machine's clock is ahead of the server's, in milliseconds. The smallest difference
  // seen: it still holds the quickest way from there to here, so delays are a little too small.
  get offset() {
    return this.#offset ?? 0;
  }

  // The first greeting waits while the page is being built; from the first ping on the clock is right.
  get knowsClock() {
    return this.#pinged;
  }

  // Lets go of the server while nothing is drawn for long; release() reads on from there.
  hold() {
    if (this.#held || this.#closed) return;
    this.#flush();
    this.#held = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#watchdog);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
  }

  release() {
    if (!this.#held) return;
    this.#held = false;
    this.#open();
  }

  #open() {
    clearTimeout(this.#timer);
    const after = this.#cursor ? `?after=${encodeURIComponent(this.#cursor)}` : "";
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    this.#socket?.close(1000);
    const socket = new WebSocket(`${scheme}//${location.host}/ws/flows/${encodeURIComponent(this.userId)}${after}`);
    this.#socket = socket;
    this.#snapshot = null;
    this.#frames = 0;
    this.#say(this.#attempt ? "reconnecting" : "connecting");
    socket.onmessage = ({ data }) => this.#socket === socket && this.#receive(JSON.parse(data));
    socket.onclose = ({ code }) => this.#socket === socket && this.#lost(code);
    this.#watch();
  }

  #say(name, more = {}) {
    this.page.state({ name, attempt: this.#attempt, since: this.#since, ...more });
  }

  // A dead way looks like silence: whoever hears no ping for so long connects anew.
  #watch() {
    clearTimeout(this.#watchdog);
    const socket = this.#socket;
    this.#watchdog = setTimeout(() => {
      if (this.#socket !== socket) return;
      socket.onclose = socket.onmessage = null;
      socket.close();
      this.#lost(0);
    }, SILENCE_MS);
  }

  #lost(code) {
    clearTimeout(this.#watchdog);
    if (this.#closed) return;
    this.#flush();
    this.#socket = null;
    this.#since ??= Date.now();
    if (FINAL[code]) {
      const [why, signIn] = FINAL[code];
      return this.#say("disconnected", { why, signIn });
    }
    if (code === FORGET_CURSOR) this.#cursor = null;
    this.#attempt += 1;
    this.#say("reconnecting");
    this.#timer = setTimeout(() => this.#open(), code === TOO_SLOW ? 0 : this.#delay());
  }

  // Doubles up to half a minute; the jitter keeps a restarted server from being asked by all at once.
  #delay() {
    const most = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (this.#attempt - 1));
    return most / 2 + (Math.random() * most) / 2;
  }

  #hurry = () => {
    if (!this.#closed && !this.#held && this.#timer && this.#socket === null && !document.hidden && this.#attempt > 0) this.#open();
  };

  #receive(message) {
    this.#watch();
    if (message.server_time) this.#setClock(message.server_time);
    if (message.type === "ping") this.#pinged = true;
    if (message.live) this.page.live(message.live);
    this[`_${message.type}`]?.(message);
  }

  #setClock(serverTime) {
    const ahead = Date.now() - Date.parse(serverTime);
    this.#offset = this.#offset === null ? ahead : Math.min(this.#offset, ahead);
  }

  _hello(message) {
    this.#attempt = 0;
    this.#since = null;
    this.#active = message.monitoring.active;
    this.#say("connected");
    this.page.hello(message);
  }

  _monitoring(message) {
    // the rest of a snapshot that is half sent never comes: a new period begins with a new picture
    if (!message.active) this.#snapshot = null;
    if (message.active && !this.#active) this.#anew = true;
    this.#active = message.active;
    this.page.monitoring(message);
  }

  // Parts are handed over whole: a fresh snapshot replaces what is shown in one step.
  _snapshot({ complete, cursor, more, checkpoints }) {
    // the log may be restarted while a snapshot is being sent: then a fresh one begins in its middle
    if (this.#snapshot && this.#snapshot.complete !== complete) this.#snapshot = null;
    const whole = (this.#snapshot ??= { complete, fresh: !complete || this.#anew || this.#cursor === null, checkpoints: [] });
    whole.checkpoints.push(...checkpoints);
    this.#frames += 1;
    if (more) return this.#ackPart(cursor);
    this.#snapshot = null;
    this.#anew = !this.#active;
    this.page.snapshot(whole.checkpoints, { fresh: whole.fresh });
    this.#drawn(cursor);
    this.#flush();
  }

  _checkpoint({ cursor, checkpoint }) {
    this.page.checkpoint(checkpoint);
    this.#drawn(cursor);
  }

  // A part uses credit like any frame. The cursor to come back with stays the one before the snapshot.
  #ackPart(cursor) {
    if (cursor) this.#send(cursor);
  }

  #drawn(cursor) {
    if (cursor) this.#next = cursor;
    this.#frames += 1;
    if (this.#frames >= FRAMES_PER_ACK || (document.hidden && Date.now() - this.#ackedAt > MS_PER_ACK)) return this.#flush();
    this.#frame ??= requestAnimationFrame(() => this.#flush());
    this.#fallback ??= setTimeout(() => this.#flush(), MS_PER_ACK);
  }

  #flush() {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#fallback);
    this.#frame = this.#fallback = null;
    this.page.draw();
    if (this.#next === null) return;
    this.#cursor = this.#next;
    this.#next = null;
    if (this.#frames >= FRAMES_PER_ACK || Date.now() - this.#ackedAt >= MS_PER_ACK) return this.#send(this.#cursor);
    this.#late ??= setTimeout(() => {
      this.#late = null;
      if (this.#frames > 0) this.#send(this.#cursor);
    }, MS_PER_ACK);
  }

  #send(cursor) {
    this.#frames = 0;
    this.#ackedAt = Date.now();
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type: "ack", cursor }));
  }
}
