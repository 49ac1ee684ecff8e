// What the page knows: fetched once, then kept up to date by server-sent events. Nothing is asked for in a loop but the
// one map that is on the screen.

const LIMIT = 1000;
/** Incidents that the page keeps. */
const INCIDENTS = 400;

export const store = {
  processes: new Map(),
  epochs: new Map(),
  incidents: new Map(),
  causes: new Map(),
  kernel: null,
  health: null,
  link: "connecting",
  heard: Date.now(),
  loaded: false,
  failure: null,
};

const listeners = new Set();
const changed = new Set();
let scheduled = false;

/** Calls `listener` with the set of what has changed, at most once for each frame. */
export const listen = (listener) => listeners.add(listener);

export function touch(...what) {
  for (const one of what) changed.add(one);
  if (scheduled) return;
  scheduled = true;
  const tell = () => {
    scheduled = false;
    const now = new Set(changed);
    changed.clear();
    for (const listener of listeners) listener(now);
  };
  // A page in the background gets no frames.
  if (document.hidden) setTimeout(tell, 500);
  else requestAnimationFrame(tell);
}

export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export async function get(path) {
  const answer = await fetch(`/api/v1/${path}`, { headers: { accept: "application/json" } });
  const body = await answer.json().catch(() => null);
  if (!answer.ok) {
    const error = body?.error;
    throw new Refused(answer.status, error?.code ?? "error", error?.message ?? `${answer.status} ${answer.statusText}`);
  }
  return body;
}

/** Takes in processes; what an event told since `before` is newer than the answer of a request. */
function takeProcesses(items, before = null) {
  for (const item of items) {
    const known = store.processes.get(item.id);
    if (before !== null && known && known.told > before) continue;
    store.processes.set(item.id, { ...item, told: before === null ? performance.now() : 0 });
  }
}

export const incidentKey = (incident) =>
  `${incident.birth}/${incident.epoch}/${incident.cause}/${incident.evidence}`;

function takeIncidents(items) {
  for (const item of items) {
    const key = incidentKey(item);
    const known = store.incidents.get(key);
    if (known?.state === "closed") continue;
    store.incidents.set(key, { ...item, fresh: known ? known.fresh : item.fresh, told: performance.now() });
  }
  if (store.incidents.size > INCIDENTS) {
    const newest = [...store.incidents].sort(([, a], [, b]) => b.last_unix - a.last_unix).slice(0, INCIDENTS);
    store.incidents = new Map(newest);
  }
}

/** The epochs of one process, newest first. */
export async function fetchEpochs(id) {
  const before = performance.now();
  const { items } = await get(`processes/${id}/epochs?limit=32`);
  const known = new Map(items.map((item) => [item.number, { ...item, told: 0 }]));
  for (const epoch of store.epochs.get(id)?.values() ?? []) {
    if (epoch.told > before) known.set(epoch.number, epoch);
  }
  store.epochs.set(id, known);
  touch("epochs");
}

/** Everything anew: after the start, and whenever the connection was lost. */
async function snapshot() {
  const before = performance.now();
  const seen = new Set();
  let cursor = null;
  do {
    const page = await get(`processes?state=all&limit=${LIMIT}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    takeProcesses(page.items, before);
    for (const item of page.items) seen.add(item.id);
    cursor = page.next_cursor;
    store.loaded = true;
    touch("processes");
  } while (cursor);
  for (const [id, process] of store.processes) {
    if (!seen.has(id) && process.told <= before) store.processes.delete(id);
  }
  const [incidents, kernel] = await Promise.all([get("incidents?limit=200"), get("kernel")]);
  // After a restart the numbers of address spaces are others: what was known before means nothing any more.
  const since = [...store.incidents.values()].filter(({ told }) => told > before);
  store.incidents = new Map();
  takeIncidents(incidents.items.reverse());
  takeIncidents(since);
  store.kernel = kernel;
  store.failure = null;
  for (const id of store.epochs.keys()) fetchEpochs(id).catch(() => store.epochs.delete(id));
  touch("processes", "incidents", "kernel", "map", "health");
}

let retry = null;

async function load() {
  clearTimeout(retry);
  try {
    if (store.causes.size === 0) {
      const { items } = await get("causes");
      store.causes = new Map(items.map((cause) => [cause.name, cause]));
      touch("causes");
    }
    await snapshot();
  } catch (error) {
    store.failure = error;
    touch("health");
    retry = setTimeout(load, 2000);
  }
}

/** How long may be between two signs of life; the server beats every five seconds. */
const SILENCE = 12_000;

/** Listens until the page is closed. */
export function connect() {
  let source = null;
  let opened = 0;
  const hear = (link = "live") => {
    store.heard = Date.now();
    if (store.link !== link) {
      store.link = link;
      touch("link");
    }
  };
  const on = (kind, take) =>
    source.addEventListener(kind, (event) => {
      hear();
      take(JSON.parse(event.data));
    });
  const open = () => {
    source?.close();
    opened = Date.now();
    source = new EventSource("/api/v1/events");
    let first = true;
    on("health", (health) => {
      const was = store.health;
      store.health = health;
      if (first || (was?.starting && !health.starting)) {
        first = false;
        if (!health.starting) load();
      }
      touch("health");
    });
    on("process", ({ items }) => {
      takeProcesses(items);
      touch("processes");
      for (const { id } of items) touch(`process ${id}`);
    });
    on("epoch", ({ items }) => {
      for (const { id, epoch } of items) {
        store.epochs.get(id)?.set(epoch.number, { ...epoch, told: performance.now() });
        touch(`process ${id}`);
      }
      touch("epochs");
    });
    on("incident", (incident) => {
      takeIncidents([{ ...incident, fresh: true }]);
      touch("incidents", `incident ${incidentKey(incident)}`);
    });
    source.addEventListener("error", () => {
      first = true;
      store.link = "lost";
      touch("link");
      // A refusal closes it for good, so it is opened anew.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 3000);
    });
  };
  open();
  setInterval(() => {
    // A connection that hangs, before or after it was made, is given up.
    if (Date.now() - Math.max(store.heard, opened) > SILENCE) {
      store.link = "lost";
      touch("link");
      open();
    }
    touch("clock");
  }, 1000);
}
