// One process: its verdict and why, its epochs, and the map of its address space.

import { get, store } from "./api.js";
import { causeLink } from "./causes.js";
import * as map from "./map.js";
import { MEANING, badge, blindWords, bounded, bytes, clock, count, evidenceVerdict, glyph, h, plural, reasonWords, since } from "./words.js";

/** Between two looks at the process on the screen: its written pages grow without an event. */
const PERIOD = 5_000;
/** Not more often than this, however fast it is cleared. */
const SHORTEST = 1_000;
const RANGES = 200;
const ORIGINS = {
  clear: "tracked since its first clear",
  adopted: "armed before sdtrace started",
  fork: "forked from a tracked process",
};

let shown = null;
let detection = null;
let epoch = null;
let chart = null;
let failure = null;
let asked = 0;
let asking = false;
let timer = null;
const open = new Set();

const place = () => document.getElementById("detail");

/** Asks for the process on the screen, its newest epoch and its map. */
async function ask() {
  clearTimeout(timer);
  timer = null;
  if (shown === null || asking || document.hidden) return;
  asking = true;
  asked = performance.now();
  const id = shown;
  try {
    const [process, drawn] = await Promise.all([get(`processes/${id}`), get(`processes/${id}/map`)]);
    let [found, number] = [process.detection, process.epoch];
    if (number === null) {
      const last = await get(`processes/${id}/epochs/last`).catch((error) => (error.status === 404 ? null : Promise.reject(error)));
      [found, number] = [last?.detection ?? null, last?.number ?? null];
    }
    if (id === shown) [detection, epoch, chart, failure] = [found, number, drawn, null];
  } catch (error) {
    if (id === shown) failure = error;
  }
  asking = false;
  if (id === shown) {
    draw();
    // Nothing more happens to a process that has ended.
    const live = store.processes.get(id)?.state === "live";
    timer = setTimeout(ask, failure || live ? PERIOD : 60_000);
  } else soon();
}

function soon() {
  const wait = Math.max(0, SHORTEST - (performance.now() - asked));
  clearTimeout(timer);
  timer = setTimeout(ask, wait);
}

const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value));

function facts(process) {
  const { tracker } = process;
  const cleared = process.last_clear_unix;
  return h(
    "dl",
    { class: "facts" },
    fact("missed", h("b", { class: process.missed_pages ? "broken" : "" }, plural(process.missed_pages, "page"))),
    fact("exposed", h("b", { class: process.exposed_pages ? "suspect" : "" }, plural(process.exposed_pages, "page"))),
    fact("blind", bytes(process.blind_bytes)),
    fact("dropped by itself", plural(process.dropped_pages, "page")),
    fact("write-notify faults", count(process.write_notify_faults)),
    fact("last clear", ...(cleared ? [since(cleared), ` (${clock(cleared)})`] : ["none seen"])),
    fact("tracker", tracker ? `${tracker.comm}${tracker.pid ? ` (${tracker.pid})` : ""}` : "not known"),
    fact("finished epochs", `${count(process.epochs.trusted)} trusted, ${count(process.epochs.suspect)} suspect, ${count(process.epochs.broken)} broken`),
    process.container ? fact("container", `${process.container.runtime} ${process.container.id.slice(0, 12)}`) : fact("cgroup", process.cgroup ?? "not known"),
  );
}

/** The newest epochs, oldest first, as one row of marks. */
function epochs() {
  const known = [...(store.epochs.get(shown)?.values() ?? [])].sort((a, b) => a.number - b.number).slice(-24);
  if (known.length === 0) return null;
  const mark = (one) => {
    const verdict = one.verdict ?? "open";
    const state = one.ended_by === null ? "open, so far" : one.ended_by.replaceAll("_", " ");
    const words = `epoch ${one.number}: ${verdict} (${state}), ${plural(one.missed_pages, "page")} missed, ${count(one.write_notify_faults)} faults`;
    return h("li", { class: one.ended_by === null ? "open" : "", title: words }, glyph(verdict), h("span", { class: "unseen" }, words), h("span", { "aria-hidden": "true" }, one.number));
  };
  return h("div", {}, h("h3", {}, "Epochs"), h("ol", { class: "epochs" }, known.map(mark)));
}

function ranges(found) {
  const list = found.ranges.slice(0, RANGES).map((range) => h("li", {}, `${range.start}–${range.end}`));
  const rest = found.ranges.length - list.length;
  const key = `${found.cause}/${found.evidence}`;
  const details = h("details", { open: open.has(key) }, h("summary", {}, plural(found.ranges.length, "range")), h("ul", { class: "ranges" }, list), rest > 0 ? h("p", { class: "muted" }, `and ${count(rest)} more: /api/v1/processes/${shown}/epochs/${epoch}/ranges`) : null);
  details.addEventListener("toggle", () => (details.open ? open.add(key) : open.delete(key)));
  return details;
}

function found() {
  if (!detection || detection.causes.length === 0) return null;
  const row = (one) =>
    h(
      "tr",
      {},
      h("td", {}, badge(evidenceVerdict(one.evidence), one.evidence)),
      h("th", { scope: "row" }, causeLink(one.cause)),
      h("td", { class: "number" }, bounded(one.pages, one.bound)),
      h("td", {}, one.ranges.length ? ranges(one) : "–"),
    );
  const head = ["evidence", "cause", "pages", "dump again"].map((title) => h("th", { scope: "col", class: title === "pages" ? "number" : null }, title));
  return h("div", {}, h("h3", {}, "Found"), h("table", { class: "found" }, h("caption", { class: "unseen" }, "What was found in this epoch"), h("thead", {}, h("tr", {}, head)), h("tbody", {}, detection.causes.map(row))));
}

/** Why it is not trusted, but for what the table of causes tells. */
function reasons() {
  const rest = (detection?.reasons ?? []).filter(({ kind }) => kind === "blind" || kind === "unknown");
  if (rest.length === 0) return null;
  return h("ul", { class: "reasons" }, rest.map((reason) => h("li", { title: reason.kind === "blind" ? blindWords(reason.name) : reason.name }, reasonWords(reason))));
}

function verdictLine(process) {
  if (process.state !== "live") {
    const verdict = process.last_verdict ?? "open";
    return h("p", { class: `verdictline ${verdict}` }, badge(verdict), ` ended; its last epoch${epoch ? ` (${epoch})` : ""}: ${process.last_verdict ? MEANING[verdict] : "not finished"}.`);
  }
  const verdict = process.verdict ?? "open";
  const before = process.last_verdict ? h("span", { class: "before" }, "epoch before: ", badge(process.last_verdict)) : h("span", { class: "before muted" }, "no epoch is finished yet");
  const words = verdict === "trusted" ? "nothing found so far; final when the epoch ends" : MEANING[verdict];
  return h("p", { class: `verdictline ${verdict}` }, badge(verdict, verdict === "trusted" ? "clean so far" : verdict), h("span", {}, ` epoch ${process.epoch ?? "–"} is open: ${words}.`), before);
}

function draw() {
  const process = store.processes.get(shown);
  const old = place();
  const focus = old.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  if (shown === null || !process) {
    const gone = shown !== null && store.loaded;
    old.replaceChildren(
      h("header", { class: "head" }, h("h2", { id: "detail-title" }, "Address space")),
      h("p", { class: "empty muted" }, gone ? `No process has the id ${shown} (any more).` : "Pick a process: here is its verdict, and a map of its memory."),
    );
    return;
  }
  old.replaceChildren(
    h(
      "header",
      { class: "head" },
      h("h2", { id: "detail-title" }, process.comm ?? "(not known)", h("span", { class: "pid" }, process.pid ? ` pid ${process.pid}` : "")),
      h("p", { class: "muted" }, ORIGINS[process.origin] ?? ""),
    ),
    verdictLine(process),
    ...[reasons(), facts(process), found()].filter(Boolean),
    map.draw(shown, chart, failure),
    ...[epochs()].filter(Boolean),
  );
  map.paint();
  if (focus) old.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

/** Shows another process; `null`: none. */
export function show(id) {
  shown = id;
  [detection, epoch, chart, failure] = [null, null, null, null];
  open.clear();
  asked = 0;
  draw();
  if (id !== null) soon();
}

/** Follows what has changed. */
export function changed(what) {
  if (shown === null) return;
  if (what.has("theme")) map.paint();
  if (what.has(`process ${shown}`) || what.has("map")) soon();
  if (what.has(`process ${shown}`) || (what.has("processes") && !chart)) draw();
  else if (what.has("epochs") && !place().querySelector(".epochs")) draw();
}

