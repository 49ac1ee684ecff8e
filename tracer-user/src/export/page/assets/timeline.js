// Epochs and incidents as they happen: a lane for each of the processes that matter most, and the newest incidents in words.

import { fetchEpochs, incidentKey, store } from "./api.js";
import { causeLink } from "./causes.js";
import { badge, bounded, clock, count, evidenceVerdict, h, plural, s, standing } from "./words.js";

const SPANS = [
  [60, "1 min"],
  [300, "5 min"],
  [1800, "30 min"],
  [21600, "6 h"],
];
const LANES = 8;
const LANE = 30;
const TOP = 22;
const LISTED = 40;
const RANK = { broken: 0, suspect: 1, open: 2, trusted: 3 };

let span = 300;
let lanes = [];
const asked = new Map();
let drawn = 0;
let wide = 0;

const place = (id) => document.getElementById(id);

/** Of the processes that had an epoch in the time shown, those that matter most. */
function pick(now) {
  const since = now - span;
  const best = [];
  for (const process of store.processes.values()) {
    const at = process.last_clear_unix ?? 0;
    if (process.state !== "live" && at < since) continue;
    const key = RANK[standing(process)] * 1e12 + (process.state === "live" ? 0 : 1e11) - at;
    if (best.length === LANES && best.at(-1)[0] <= key) continue;
    best.push([key, process]);
    best.sort(([a], [b]) => a - b);
    best.length = Math.min(best.length, LANES);
  }
  const picked = best.map(([, process]) => process);
  // Lanes keep their place as long as the same processes are shown.
  const known = new Map(lanes.map((id, at) => [id, at]));
  picked.sort((a, b) => (known.get(a.id) ?? Infinity) - (known.get(b.id) ?? Infinity) || RANK[standing(a)] - RANK[standing(b)] || a.id - b.id);
  lanes = picked.map(({ id }) => id);
  for (const id of lanes) {
    if (store.epochs.has(id) || asked.has(id)) continue;
    asked.set(id, fetchEpochs(id).catch(() => {}).finally(() => asked.delete(id)));
  }
  return picked;
}

/** Marks of the time axis: round times, few of them. */
function ticks(from, to, most) {
  const step = [10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600].find((step) => (to - from) / step <= most) ?? 7200;
  const marks = [];
  for (let at = Math.ceil(from / step) * step; at < to; at += step) marks.push(at);
  return marks;
}

function lane(process, at, width, label, from, now) {
  const y = TOP + at * LANE;
  const x = (unix) => label + ((Math.min(Math.max(unix, from), now) - from) / (now - from)) * (width - label);
  const group = s("g", {});
  // For the mouse only: the list below has the same links.
  const name = s("g", { class: "go" });
  name.addEventListener("click", () => {
    location.hash = `#/process/${process.id}`;
  });
  const words = `${process.comm ?? "?"}${process.pid ? ` ${process.pid}` : ""}`;
  const most = Math.floor(label / 7.2) - 1;
  const pid = process.pid ? ` ${process.pid}` : "";
  const room = Math.max(most - pid.length, 3);
  const comm = process.comm ?? "?";
  name.append(s("text", { x: 0, y: y + 17, class: "lane" }, (comm.length > room ? `${comm.slice(0, room - 1)}…` : comm) + pid));
  group.append(name, s("line", { x1: label, x2: width, y1: y + LANE - 2, y2: y + LANE - 2, class: "rule" }));
  const known = [...(store.epochs.get(process.id)?.values() ?? [])].sort((a, b) => a.number - b.number);
  known.forEach((epoch, place) => {
    if (!epoch.opened_unix) return;
    // When it ended is told on the other clock; the one after it says the same.
    const end = epoch.ended_ns === null ? now : epoch.opened_ns !== null ? epoch.opened_unix + (epoch.ended_ns - epoch.opened_ns) / 1e9 : (known[place + 1]?.opened_unix ?? now);
    if (end < from) return;
    const verdict = epoch.verdict ?? "open";
    const [left, right] = [x(epoch.opened_unix), x(end)];
    const open = epoch.ended_ns === null;
    const long = Math.max(right - left - 1.5, 2);
    const bar = s("rect", { x: left, y: y + 5, width: long, height: LANE - 13, rx: 2, class: `epoch ${verdict}${open ? " open" : ""}` });
    bar.append(s("title", {}, `${words}, epoch ${epoch.number}: ${verdict}${open ? " so far" : ""}, ${plural(epoch.missed_pages, "page")} missed`));
    group.append(bar);
    if (verdict !== "trusted" && verdict !== "open" && long > 16) {
      group.append(s("use", { href: `#g-${verdict}`, x: left + 4, y: y + 8, width: 11, height: 11, class: `mark ${verdict}` }));
    }
    if (long > 40) group.append(s("text", { x: right - 6, y: y + 17.5, class: `number ${verdict}` }, String(epoch.number)));
  });
  for (const incident of store.incidents.values()) {
    if (incident.address_space !== process.id || incident.pages === 0 || incident.last_unix < from) continue;
    const verdict = evidenceVerdict(incident.evidence);
    const mark = s("path", { d: `M${x(incident.first_unix)} ${y + 1} l4 -5 h-8 z`, class: `pin ${verdict}` });
    mark.append(s("title", {}, `${incident.cause}: ${bounded(incident.pages, incident.bound)} (${incident.evidence})`));
    group.append(mark);
  }
  return group;
}

function drawTimeline() {
  drawn = performance.now();
  const box = place("timeline");
  const now = Date.now() / 1000;
  const picked = pick(now);
  if (picked.length === 0) {
    box.replaceChildren(h("p", { class: "empty muted" }, store.loaded ? `No epoch in the last ${SPANS.find(([seconds]) => seconds === span)[1]}.` : "…"));
    return;
  }
  wide = box.clientWidth;
  const width = Math.max(280, wide);
  const label = width < 480 ? 84 : 150;
  const from = now - span;
  const height = TOP + picked.length * LANE + 4;
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Epochs of ${plural(picked.length, "process", "processes")}: ${picked.map((process) => `${process.comm ?? "?"} ${standing(process)}`).join(", ")}` });
  for (const at of ticks(from, now, Math.max(3, Math.floor((width - label) / 90)))) {
    const x = label + ((at - from) / span) * (width - label);
    // Half of the words, and on the right those of `now`.
    if (x - label < 24 || width - x < 60) continue;
    svg.append(s("line", { x1: x, x2: x, y1: TOP - 4, y2: height, class: "tick" }), s("text", { x, y: 11, class: "time", "text-anchor": "middle" }, clock(at).slice(0, span > 300 ? 5 : 8)));
  }
  svg.append(s("text", { x: width, y: 11, class: "time", "text-anchor": "end" }, "now"));
  picked.forEach((process, at) => svg.append(lane(process, at, width, label, from, now)));
  const more = [...store.processes.values()].filter((process) => process.state === "live").length - picked.length;
  box.replaceChildren(svg, more > 0 ? h("p", { class: "note" }, `The ${LANES} most urgent; ${count(more)} more are in the list.`) : "");
}

/** Keeps the elements of incidents that did not change: a click must not fall between two drawings. */
function drawIncidents() {
  const box = place("incidents");
  const all = [...store.incidents.values()].filter((incident) => incident.pages > 0).sort((a, b) => b.first_unix - a.first_unix);
  place("incidents-count").textContent = all.length > LISTED ? `the newest ${LISTED} of ${count(all.length)}` : "";
  if (all.length === 0) {
    box.replaceChildren(h("p", { class: "empty muted" }, store.loaded ? "None so far. They appear here the moment that they are found." : "…"));
    return;
  }
  const old = new Map([...box.querySelectorAll("li")].map((item) => [item.dataset.key, item]));
  const items = all.slice(0, LISTED).map((incident) => {
    const key = incidentKey(incident);
    const print = `${incident.pages}/${incident.state}`;
    const known = old.get(key);
    if (known?.dataset.print === print) return known;
    const process = incident.process;
    const name = `${process?.comm ?? "?"}${process?.pid ? ` ${process.pid}` : ""}`;
    return h(
      "li",
      { "data-key": key, "data-print": print, class: incident.fresh && !known ? "fresh" : null },
      badge(evidenceVerdict(incident.evidence), incident.evidence),
      h("span", { class: "what" }, causeLink(incident.cause), h("span", { class: "pages" }, bounded(incident.pages, incident.bound))),
      h("span", { class: "where" }, incident.address_space === null ? name : h("a", { href: `#/process/${incident.address_space}` }, name), ` epoch ${incident.epoch}`),
      h("time", { datetime: new Date(incident.first_unix * 1000).toISOString() }, clock(incident.first_unix)),
    );
  });
  const list = box.querySelector("ol") ?? h("ol", { class: "incidents", tabindex: "0", "aria-label": "Newest incidents" });
  list.replaceChildren(...items);
  if (list.parentElement !== box) box.replaceChildren(list);
}

function spans() {
  place("span").replaceChildren(
    ...SPANS.map(([seconds, words]) =>
      h("button", { type: "button", "aria-pressed": String(span === seconds), onclick: (event) => {
        span = seconds;
        for (const button of place("span").children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
        drawTimeline();
      } }, words),
    ),
  );
}

export function changed(what) {
  if (what.has("incidents") || what.has("link")) drawIncidents();
  // The clock moves it on by itself; a storm of changes does not draw it more often than that is seen.
  const due = what.has("theme") || what.has("processes") || what.has("epochs") || what.has("incidents");
  const since = performance.now() - drawn;
  if ((due && since > 250) || (what.has("clock") && since > (span > 300 ? 5000 : 950))) drawTimeline();
}

export function start() {
  spans();
  drawIncidents();
  drawTimeline();
  // Whatever makes it wider or narrower: the window, a scroll bar, a printer.
  new ResizeObserver(() => {
    if (place("timeline").clientWidth !== wide) drawTimeline();
  }).observe(place("timeline"));
}
