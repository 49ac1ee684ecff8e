// Puts the parts together: what is shown follows the address behind the #, what is known follows the events.

import { connect, fetchEpochs, listen, store, touch } from "./api.js";
import * as causes from "./causes.js";
import * as detail from "./detail.js";
import * as list from "./list.js";
import * as timeline from "./timeline.js";
import { ago, count, h, passTime, plural } from "./words.js";

const place = (id) => document.getElementById(id);
let shown = null;
/** Whether the user picked what is shown; else it is what is worst. */
let picked = false;

function show(id) {
  if (id === shown) return;
  shown = id;
  list.select(id);
  detail.show(id);
  if (id !== null && !store.epochs.has(id)) fetchEpochs(id).catch(() => {});
}

function route() {
  const [, kind, name] = location.hash.match(/^#\/(process|cause)\/([\w-]+)$/) ?? [];
  if (kind === "process") {
    picked = true;
    show(Number(name));
    if (matchMedia("(max-width: 60rem)").matches) {
      place("detail").scrollIntoView({ block: "start" });
      place("detail").focus({ preventScroll: true });
    }
  } else if (kind === "cause") {
    causes.show(name);
  } else if (location.hash === "#/") {
    picked = false;
    show(list.worst());
  }
}

function headline() {
  const sums = list.counted();
  const ended = [...store.processes.values()].filter((process) => process.state !== "live");
  const lost = ended.filter((process) => process.missed_pages > 0).length;
  const title = place("headline");
  const say = (words, verdict) => {
    title.textContent = words;
    title.dataset.verdict = verdict;
  };
  if (!store.loaded) say(store.health?.starting ? "sdtrace is starting." : "Looking at what is tracked…", "open");
  else if (store.processes.size === 0) say("Nothing is tracked yet.", "open");
  else if (sums.broken === 0 && lost > 0) say(`${plural(lost, "process", "processes")} that ended had missed writes.`, "broken");
  else if (sums.live === 0) say("No tracked process is alive.", "open");
  else if (sums.broken > 0) say(`Writes were missed in ${count(sums.broken)} of ${plural(sums.live, "process", "processes")}.`, "broken");
  else if (sums.suspect > 0) say(`${count(sums.suspect)} of ${plural(sums.live, "process", "processes")} cannot be trusted as they are.`, "suspect");
  else say(`Nothing was found in ${plural(sums.live, "process", "processes")}.`, "trusted");
  const words = {
    broken: sums.broken === 0 ? `Nothing was missed in the ${count(sums.live)} that live, as far as is known now.` : "Dump their ranges in full; the newest epoch of each says which.",
    suspect: "No write is known to be missed. Each says what could not be checked, or would be missed.",
    trusted: "Every check is complete as far as it has come.",
    open: "",
  }[title.dataset.verdict];
  const before = lost > 0 && sums.broken > 0 ? ` Of those that ended, ${count(lost)} had missed writes.` : "";
  place("subline").textContent = store.loaded ? words + before : "";
  document.title = sums.broken > 0 ? `✕ ${sums.broken} · sdtrace` : "sdtrace";
}

function link() {
  const silent = (Date.now() - store.heard) / 1000;
  const starting = store.health?.starting;
  const state = store.link === "lost" ? "lost" : starting ? "starting" : store.link;
  const words = {
    live: "live",
    connecting: "connecting",
    starting: "starting",
    lost: `disconnected · as of ${ago(silent)}`,
  }[state];
  const element = place("link");
  if (element.dataset.state !== state) element.dataset.state = state;
  const text = place("link-text");
  if (text.textContent !== words) text.textContent = words;
  document.body.classList.toggle("stale", state === "lost");
}

function notice() {
  const lines = [];
  if (store.link === "lost") lines.push("The connection to sdtrace is lost. What you see is old; it is tried again every few seconds.");
  else if (store.health?.starting) lines.push("sdtrace is starting: the probes are being attached. This takes seconds, in an emulated machine up to a minute.");
  else if (store.health && !store.health.ready) lines.push("sdtrace is not ready:", ...store.health.reasons);
  else if (store.failure) lines.push(`What is tracked cannot be fetched: ${store.failure.message}`);
  if (store.kernel && !store.kernel.complete) lines.push("Records were lost since the start; the epochs that it concerns are not trusted.");
  const element = place("notice");
  const text = lines.join("\n");
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.hidden = lines.length === 0;
  element.replaceChildren(...lines.map((line) => h("p", {}, line)));
}

function kernel() {
  const { kernel: known } = store;
  place("kernel").textContent = known ? `Linux ${known.release}` : "";
  const attached = known?.probes.filter((probe) => probe.verdict === "attached").length;
  place("version").textContent = known ? `sdtrace ${known.sdtrace_version} · ${attached} of ${plural(known.probes.length, "probe")} attached` : "";
}

let spoken = 0;
function speak() {
  // Not every incident of a storm: one sentence every five seconds.
  const fresh = [...store.incidents.values()].filter((incident) => incident.fresh && !incident.spoken && incident.pages > 0);
  if (fresh.length === 0 || Date.now() - spoken < 5000) return;
  spoken = Date.now();
  for (const incident of fresh) incident.spoken = true;
  const last = fresh.at(-1);
  const who = last.process?.comm ?? `process ${last.address_space}`;
  place("spoken").textContent =
    fresh.length === 1 ? `New incident: ${last.cause} in ${who}, ${plural(last.pages, "page")}.` : `${fresh.length} new incidents, the last: ${last.cause} in ${who}.`;
}

let drawn = 0;
let waiting = null;
/** A click must not fall between two drawings. */
let held = false;
addEventListener("pointerdown", () => {
  held = true;
});
for (const end of ["pointerup", "pointercancel"]) {
  addEventListener(end, () => {
    setTimeout(() => {
      held = false;
    }, 60);
  });
}
/** The list of thousands is drawn at most five times a second. */
function drawList() {
  const wait = held ? 100 : 200 - (performance.now() - drawn);
  if (wait > 0) {
    waiting ??= setTimeout(() => {
      waiting = null;
      drawList();
    }, wait);
    return;
  }
  drawn = performance.now();
  if (!picked) {
    const first = list.worst();
    if (first !== shown) {
      show(first);
      headline();
      return;
    }
  }
  list.draw();
  headline();
}

listen((what) => {
  if (what.has("link") || what.has("health") || what.has("clock")) {
    link();
    notice();
  }
  if (what.has("clock")) passTime();
  if (what.has("kernel")) kernel();
  if (what.has("processes")) drawList();
  else if (what.has("health")) headline();
  if (what.has("incidents") || what.has("causes")) {
    causes.draw();
    speak();
  }
  if (what.has("causes") && location.hash.startsWith("#/cause/")) route();
  timeline.changed(what);
  detail.changed(what);
});

list.start((id) => {
  location.hash = `#/process/${id}`;
});
timeline.start();
addEventListener("hashchange", route);
document.addEventListener("theme", () => touch("theme"));
addEventListener("resize", () => touch("theme"));
document.addEventListener("visibilitychange", () => touch("processes", "epochs", "incidents", "map", "clock"));
list.draw();
detail.show(null);
route();
connect();
