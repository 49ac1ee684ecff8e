// The list of processes: search, sort, filter by verdict, a page at a time.

import { store } from "./api.js";
import { VERDICTS, badge, count, h, plural, since, standing } from "./words.js";

const ROWS = 12;
const RANK = { broken: 0, suspect: 1, open: 2, trusted: 3 };

const COLUMNS = [
  { key: "verdict", title: "verdict", of: (process) => RANK[standing(process)] },
  { key: "comm", title: "process", of: (process) => (process.comm ?? "").toLowerCase() },
  { key: "pid", title: "pid", number: true, of: (process) => process.pid ?? Infinity },
  { key: "missed", title: "missed", number: true, of: (process) => -process.missed_pages },
  { key: "exposed", title: "exposed", number: true, of: (process) => -process.exposed_pages },
  { key: "epoch", title: "epoch", number: true, of: (process) => -(process.epoch ?? 0) },
  { key: "cleared", title: "last clear", number: true, of: (process) => -(process.last_clear_unix ?? 0) },
];

const view = { sort: "verdict", down: false, page: 0, search: "", ended: false, only: null };
let rows = [];
let selected = null;
let choose = () => {};

const place = (id) => document.getElementById(id);

/** Whether the words that are searched for are all in what names this process. */
function matches(process, words) {
  const text = `${process.comm ?? ""} ${process.pid ?? ""} ${process.initial_pid ?? ""} ${process.cgroup ?? ""} ${
    process.container?.id ?? ""
  }`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function compute() {
  const words = view.search.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS.find(({ key }) => key === view.sort);
  const kept = [];
  for (const process of store.processes.values()) {
    if (!view.ended && process.state !== "live" && process.id !== selected) continue;
    if (view.only && standing(process) !== view.only) continue;
    if (words.length > 0 && !matches(process, words)) continue;
    kept.push([column.of(process), process]);
  }
  const way = view.down ? -1 : 1;
  kept.sort(([a, x], [b, y]) => {
    if (a !== b) return a < b ? -way : way;
    // Among equals: what lost most; then nothing that changes, or rows would jump under the pointer.
    return y.missed_pages - x.missed_pages || x.id - y.id;
  });
  rows = kept.map(([, process]) => process);
}

/** The first of the list as it is sorted by itself: what should be looked at first. */
export function worst() {
  const key = (process) => RANK[standing(process)] * 2 + (process.state === "live" ? 0 : 1);
  let first = null;
  for (const process of store.processes.values()) {
    if (first === null || key(process) < key(first)) first = process;
    else if (key(process) === key(first) && process.missed_pages > first.missed_pages) first = process;
  }
  return first?.id ?? null;
}

/** Processes by verdict, those that ended included if they are asked for. */
export function counted() {
  const sums = { broken: 0, suspect: 0, trusted: 0, open: 0, live: 0 };
  for (const process of store.processes.values()) {
    if (process.state !== "live") continue;
    sums[standing(process)] += 1;
    sums.live += 1;
  }
  return sums;
}

const numeric = (value) => h("td", { class: value ? "number" : "number none" }, value ? count(value) : "–");

function row(process) {
  const name = process.comm ?? "(not known)";
  const verdict = standing(process);
  const told = process.state === "live" ? "" : "ended";
  const link = h("a", { href: `#/process/${process.id}` }, name);
  return h(
    "tr",
    {
      "aria-current": process.id === selected ? "true" : null,
      "data-id": process.id,
      "data-verdict": verdict,
      onclick: () => choose(process.id),
    },
    h("td", { class: "verdict" }, badge(verdict)),
    h("th", { scope: "row" }, link, told ? h("span", { class: "tag" }, told) : null),
    h("td", { class: "number", "data-label": "pid" }, process.pid ?? "–"),
    numeric(process.missed_pages),
    numeric(process.exposed_pages),
    h("td", { class: "number" }, process.epoch ?? "–"),
    h("td", { class: "number" }, process.last_clear_unix ? since(process.last_clear_unix) : "–"),
  );
}

function heading(column) {
  const sorted = view.sort === column.key;
  const turn = () => {
    view.down = sorted ? !view.down : false;
    view.sort = column.key;
    view.page = 0;
    draw();
    place("list").querySelector(`[data-sort="${column.key}"]`)?.focus();
  };
  const arrow = sorted ? (view.down ? "↑" : "↓") : "";
  return h(
    "th",
    { scope: "col", class: column.number ? "number" : null, "aria-sort": sorted ? (view.down ? "descending" : "ascending") : null },
    h("button", { type: "button", class: "sort", "data-sort": column.key, onclick: turn }, column.title, h("span", { "aria-hidden": "true" }, arrow)),
  );
}

function pager() {
  const pages = Math.max(1, Math.ceil(rows.length / ROWS));
  view.page = Math.min(view.page, pages - 1);
  const nav = place("pager");
  nav.hidden = pages === 1;
  const go = (page, way) => () => {
    view.page = page;
    draw();
    const again = nav.querySelector(`[data-way="${way}"]:not(:disabled)`) ?? nav.querySelector("button:not(:disabled)");
    again?.focus();
  };
  const button = (words, page, way, off) =>
    h("button", { type: "button", class: "quiet", "data-way": way, disabled: off, onclick: go(page, way) }, words);
  nav.replaceChildren(
    button("first", 0, "first", view.page === 0),
    button("previous", view.page - 1, "previous", view.page === 0),
    h("span", { class: "muted" }, `page ${view.page + 1} of ${count(pages)}`),
    button("next", view.page + 1, "next", view.page >= pages - 1),
    button("last", pages - 1, "last", view.page >= pages - 1),
  );
}

function empty() {
  if (store.processes.size === 0) {
    return h(
      "div",
      { class: "empty" },
      h("p", { class: "lead" }, "Nothing is tracked yet."),
      h("p", {}, "sdtrace follows a process from its first clear on. Let a tracker (CRIU, an incremental checkpoint) run, or try it by hand:"),
      h("pre", { tabindex: "0" }, "echo 4 | sudo tee /proc/PID/clear_refs"),
      h("p", { class: "muted" }, "If it stays empty: is it filtered (--pid, --comm, --cgroup)? /readyz says whether every probe is attached."),
    );
  }
  const clear = () => {
    Object.assign(view, { search: "", only: null, page: 0 });
    place("search").value = "";
    draw();
    place("search").focus();
  };
  const ended = store.processes.size - counted().live;
  return h(
    "div",
    { class: "empty" },
    h("p", { class: "lead" }, view.search || view.only ? "No process matches." : "No tracked process is alive."),
    view.search || view.only ? h("button", { type: "button", onclick: clear }, "Show all") : null,
    ended && !view.ended ? h("p", { class: "muted" }, `${plural(ended, "process", "processes")} that ended can be shown above.`) : null,
  );
}

/** The buttons that count, and filter by, verdicts. */
function drawCounts() {
  const sums = counted();
  const old = place("counts").contains(document.activeElement) ? document.activeElement.dataset.verdict : null;
  const button = (verdict) =>
    h(
      "button",
      {
        type: "button",
        class: `count ${verdict}`,
        "data-verdict": verdict,
        "aria-pressed": String(view.only === verdict),
        onclick: () => {
          view.only = view.only === verdict ? null : verdict;
          view.page = 0;
          draw();
        },
      },
      h("span", { class: "figure" }, count(sums[verdict])),
      badge(verdict),
    );
  place("counts").replaceChildren(...VERDICTS.map(button));
  if (old) place("counts").querySelector(`[data-verdict="${old}"]`)?.focus();
}

/** Draws the list anew; whoever has the focus keeps it. */
export function draw() {
  compute();
  drawCounts();
  const list = place("list");
  const focused = list.contains(document.activeElement) ? document.activeElement.closest("tr")?.dataset.id : null;
  const sort = list.contains(document.activeElement) ? document.activeElement.dataset.sort : null;
  if (rows.length === 0) {
    place("shown").textContent = "";
    place("pager").hidden = true;
    list.replaceChildren(store.loaded ? empty() : h("p", { class: "muted empty" }, "loading…"));
    return;
  }
  pager();
  const from = view.page * ROWS;
  const shown = rows.slice(from, from + ROWS);
  place("shown").textContent =
    rows.length > ROWS ? `${count(from + 1)}–${count(from + shown.length)} of ${count(rows.length)}` : plural(rows.length, "process", "processes");
  list.replaceChildren(
    h(
      "table",
      { class: "processes" },
      h("caption", { class: "unseen" }, "Tracked processes; the buttons of the headings sort"),
      h("thead", {}, h("tr", {}, COLUMNS.map(heading))),
      h("tbody", {}, shown.map(row)),
    ),
  );
  if (focused) list.querySelector(`tr[data-id="${focused}"] a`)?.focus({ preventScroll: true });
  if (sort) list.querySelector(`[data-sort="${sort}"]`)?.focus({ preventScroll: true });
}

/** Marks another process as the one that is shown. */
export function select(id) {
  selected = id;
  draw();
}

/** Wires the controls; `onChoose` is called with the id of the process that was picked. */
export function start(onChoose) {
  choose = onChoose;
  place("search").addEventListener("input", (event) => {
    view.search = event.target.value;
    view.page = 0;
    draw();
  });
  place("ended").addEventListener("change", (event) => {
    view.ended = event.target.checked;
    view.page = 0;
    draw();
  });
  // Up and down walk through the rows, whatever the list is sorted by.
  place("list").addEventListener("keydown", (event) => {
    const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const current = event.target.closest?.("tr[data-id]");
    if (!way || !current) return;
    const next = way > 0 ? current.nextElementSibling : current.previousElementSibling;
    next?.querySelector("a")?.focus();
    event.preventDefault();
  });
}

