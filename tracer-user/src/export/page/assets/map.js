// The map of an address space: all VMAs to one scale, and the pages of one of them.

import { KINDS, blindWords, bytes, count, h, plural } from "./words.js";

const PAGE = 4096n;
/** Height of a line of the tape, and of the space below it. */
const LINE = 46;
const BELOW = 20;
/** Width of a gap that is not drawn to scale, and the least of a VMA. */
const BREAK = 12;
const LEAST = 3;
const CELLS = 2048;
const ROWS = 10;

let current = null;
let chosen = new Map();
let all = false;
let tapeBoxes = [];

const range = ({ start, end }) => [BigInt(start), BigInt(end)];
const length = (vma) => Number(vma.to - vma.from);

/** The answer of the server with numbers that can be calculated with. */
function prepare(map) {
  // The page of the old vsyscall interface lies outside of every process's own half of the addresses.
  const own = map.vmas.filter(({ name }) => name !== "[vsyscall]");
  const vmas = own.map((vma) => ({ ...vma, from: BigInt(vma.start), to: BigInt(vma.end) }));
  const of = (wanted) =>
    map.found
      .filter(({ evidence }) => wanted.includes(evidence))
      .flatMap((found) => found.ranges.map((one) => [...range(one), found.cause]))
      .sort(([a], [b]) => (a < b ? -1 : 1));
  return { ...map, vmas, layers: { written: map.written.ranges.map(range), exposed: of(["exposed"]), missed: of(["observed", "proved"]) } };
}

/** The ranges of a layer that lie in a VMA, cut at its ends. */
function inside(ranges, vma) {
  let [low, high] = [0, ranges.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ranges[middle][1] <= vma.from) low = middle + 1;
    else high = middle;
  }
  const found = [];
  for (let at = low; at < ranges.length && ranges[at][0] < vma.to; at += 1) {
    const [from, to, cause] = ranges[at];
    found.push([from < vma.from ? vma.from : from, to > vma.to ? vma.to : to, cause]);
  }
  return found;
}

/** What should be looked at first: missed, exposed, written, large. */
function first(vmas) {
  const key = (vma) => [vma.missed_pages, vma.exposed_pages, vma.written_pages, vma.state === "armed" ? length(vma) : 0];
  let best = 0;
  for (let at = 1; at < vmas.length; at += 1) {
    const [a, b] = [key(vmas[at]), key(vmas[best])];
    const differs = a.findIndex((value, place) => value !== b[place]);
    if (differs >= 0 && a[differs] > b[differs]) best = at;
  }
  return best;
}

const at = () => {
  const wanted = chosen.get(current.id);
  const place = current.vmas.findIndex(({ start }) => start === wanted);
  return place >= 0 ? place : first(current.vmas);
};

const STATES = {
  armed: "armed",
  blind: "blind",
  fresh: "fresh",
  read_only: "read-only",
  special: "special",
  unknown: "not known",
};
const EXPLAINED = {
  armed: "armed: writes are being tracked",
  blind: "blind: soft-dirty cannot track it",
  fresh: "fresh: mapped after the clear, all of it reads as dirty",
  read_only: "read-only: cannot be written",
  special: "the kernel's own mapping",
  unknown: "the ledger does not tell",
};

const nameOf = (vma) => vma.name ?? (vma.kind.endsWith("anon") ? "anonymous" : "file");

function describe(vma) {
  const pages = [
    vma.missed_pages ? `${plural(vma.missed_pages, "page")} missed` : null,
    vma.exposed_pages ? `${plural(vma.exposed_pages, "page")} exposed` : null,
    `${plural(vma.written_pages, "page")} written`,
  ];
  return `${nameOf(vma)}, ${bytes(length(vma))}, ${KINDS[vma.kind] ?? vma.kind}, ${STATES[vma.state]}${vma.blind ? ` (${blindWords(vma.blind)})` : ""}, ${pages.filter(Boolean).join(", ")}`;
}

/** Where everything is on the tape: boxes for VMAs and breaks, over several lines. */
function lay(vmas, width) {
  let mapped = 0;
  for (const vma of vmas) mapped += length(vma);
  const lines = width < 480 ? 6 : 3;
  let breaks = 0;
  let closed = 0n;
  const gaps = vmas.map((vma, place) => {
    const gap = place === 0 ? 0n : vma.from - vmas[place - 1].to;
    // A small hole is drawn as large as it is.
    if (gap === 0n || Number(gap) <= mapped / 100) return Number(gap);
    breaks += 1;
    closed += gap;
    return -1;
  });
  const room = width * lines - breaks * BREAK - vmas.length * 2;
  const scale = Math.max(mapped / Math.max(room, width), 1);
  const boxes = [];
  let [x, line, small] = [0, 0, 0];
  const put = (kind, size, vma, from = 0) => {
    let left = size;
    while (left > 0.01) {
      const part = Math.min(left, width - x);
      // Rather a new line than a sliver.
      if (part < LEAST && left > part) {
        [x, line] = [0, line + 1];
        continue;
      }
      boxes.push({ kind, x, line, width: part, vma, from: from + (size - left) });
      x += part;
      left -= part;
      if (x >= width - 0.5) [x, line] = [0, line + 1];
    }
  };
  vmas.forEach((vma, place) => {
    if (gaps[place] < 0) {
      if (x > 0 && x + BREAK > width) [x, line] = [0, line + 1];
      if (x > 0) put("break", BREAK, place);
    } else if (gaps[place] > 0) put("hole", Math.max(gaps[place] / scale, 1), place);
    const size = length(vma) / scale;
    if (size < LEAST) small += 1;
    put("vma", Math.max(size, LEAST) + 1, place);
  });
  return { boxes, scale, lines: line + (x > 0 ? 1 : 0), breaks, closed, small };
}

function context(canvas, width, height) {
  const ratio = Math.min(devicePixelRatio || 1, 3);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const drawing = canvas.getContext("2d");
  drawing.scale(ratio, ratio);
  return drawing;
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["broken", "suspect", "written", "clean", "line", "text", "muted", "panel", "raised", "private_anon", "shared_anon", "private_file", "shared_file", "special"];
  return Object.fromEntries(names.map((name) => [name, colour(name)]));
}

function hatch(drawing, x, y, width, height, colour, step = 6) {
  drawing.save();
  drawing.beginPath();
  drawing.rect(x, y, width, height);
  drawing.clip();
  drawing.strokeStyle = colour;
  drawing.lineWidth = 1.2;
  drawing.beginPath();
  for (let at = x - height; at < x + width; at += step) {
    drawing.moveTo(at, y + height);
    drawing.lineTo(at + height, y);
  }
  drawing.stroke();
  drawing.restore();
}

function paintTape() {
  const canvas = document.getElementById("tape");
  if (!canvas || !current) return;
  const width = Math.max(240, canvas.parentElement.clientWidth);
  const laid = lay(current.vmas, width);
  const drawing = context(canvas, width, laid.lines * (LINE + BELOW));
  const colours = palette();
  const selected = at();
  tapeBoxes = laid.boxes;
  const taken = new Map();
  const free = (line) => taken.get(line) ?? 0;
  for (const box of laid.boxes) {
    const y = box.line * (LINE + BELOW) + 2;
    const height = LINE - 4;
    if (box.kind === "break") {
      drawing.strokeStyle = colours.muted;
      drawing.lineWidth = 1;
      for (const shift of [-2, 2]) {
        drawing.beginPath();
        drawing.moveTo(box.x + box.width / 2 + shift + 2, y + 10);
        drawing.lineTo(box.x + box.width / 2 + shift - 2, y + height - 4);
        drawing.stroke();
      }
      continue;
    }
    if (box.kind === "hole") continue;
    const vma = current.vmas[box.vma];
    const inner = Math.max(box.width - 1, 1.5);
    // Above: what kind of memory. Below: its pages.
    drawing.fillStyle = colours[vma.kind] ?? colours.special;
    drawing.fillRect(box.x, y, inner, 8);
    drawing.fillStyle = colours.clean;
    if (vma.state !== "special" && vma.state !== "read_only") drawing.fillRect(box.x, y + 9, inner, height - 9);
    else drawing.fillRect(box.x, y + 9, inner, 3);
    if (vma.state === "blind") hatch(drawing, box.x, y + 9, inner, height - 9, colours.text);
    if (vma.state === "fresh") hatch(drawing, box.x, y + 9, inner, height - 9, colours.written, 9);
    const pixel = (address) => {
      const whole = Math.max(length(vma) / laid.scale, LEAST);
      const x = (Number(address - vma.from) / length(vma)) * whole - box.from;
      return Math.min(Math.max(x, 0), inner);
    };
    const layer = (ranges, colour, top) => {
      drawing.fillStyle = colour;
      for (const [from, to] of inside(ranges, vma)) {
        const [left, right] = [pixel(from), pixel(to)];
        if (right <= 0 || left >= inner) continue;
        drawing.fillRect(box.x + left, y + 9 + top, Math.max(right - left, 1.5), height - 9 - top);
      }
    };
    layer(current.layers.written, colours.written, 14);
    layer(current.layers.exposed, colours.suspect, 7);
    layer(current.layers.missed, colours.broken, 0);
    // The address of what begins a stretch, where there is room for it.
    const before = current.vmas[box.vma - 1];
    if (box.from === 0 && (box.x === 0 || !before || before.to !== vma.from) && box.x >= free(box.line)) {
      const words = vma.start.slice(2);
      drawing.font = `11px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`;
      const room = drawing.measureText(words).width;
      if (box.x + room <= width) {
        drawing.fillStyle = colours.muted;
        drawing.fillText(words, box.x, y + height + 15);
        taken.set(box.line, box.x + room + 10);
      }
    }
    if (box.vma === selected) {
      drawing.fillStyle = colours.text;
      drawing.fillRect(box.x, y + height + 2, inner, 3);
    }
  }
  const note = document.getElementById("scale");
  const words = [`To scale, 1 px is ${bytes(laid.scale)}`];
  if (laid.breaks) words.push(`${plural(laid.breaks, "gap")} (${bytes(Number(laid.closed))} of unmapped addresses) ${laid.breaks === 1 ? "is" : "are"} closed up at //`);
  if (laid.small) words.push(`${plural(laid.small, "VMA")} would be narrower than ${LEAST} px and ${laid.small === 1 ? "is" : "are"} drawn so wide`);
  note.textContent = `${words.join(" · ")}.`;
}

function paintCells() {
  const canvas = document.getElementById("cells");
  if (!canvas || !current) return;
  const vma = current.vmas[at()];
  const pages = Number((vma.to - vma.from) / PAGE);
  let each = 1;
  while (pages / each > CELLS) each *= 2;
  const cells = Math.ceil(pages / each);
  const width = Math.max(240, canvas.parentElement.clientWidth);
  const columns = [128, 64, 32, 16].find((columns) => width / columns >= (cells > 256 ? 7 : 11)) ?? 16;
  const size = Math.min(Math.floor(width / columns), 14);
  const rows = Math.ceil(cells / columns);
  const drawing = context(canvas, columns * size, rows * size);
  const colours = palette();
  const rank = new Uint8Array(cells);
  const mark = (ranges, value) => {
    for (const [from, to] of inside(ranges, vma)) {
      const start = Math.floor(Number((from - vma.from) / PAGE) / each);
      const end = Math.ceil(Number((to - vma.from + PAGE - 1n) / PAGE) / each);
      for (let cell = start; cell < end && cell < cells; cell += 1) rank[cell] = Math.max(rank[cell], value);
    }
  };
  mark(current.layers.written, 1);
  mark(current.layers.exposed, 2);
  mark(current.layers.missed, 3);
  const inner = size - (size > 8 ? 2 : 1);
  for (let cell = 0; cell < cells; cell += 1) {
    const [x, y] = [(cell % columns) * size, Math.floor(cell / columns) * size];
    drawing.fillStyle = [colours.clean, colours.written, colours.suspect, colours.broken][rank[cell]];
    drawing.fillRect(x, y, inner, inner);
    // Not by colour alone: a stroke for missed, a hole for exposed.
    if (rank[cell] === 3) {
      drawing.strokeStyle = colours.panel;
      drawing.lineWidth = size > 8 ? 1.4 : 1;
      drawing.beginPath();
      drawing.moveTo(x + 1.5, y + inner - 1.5);
      drawing.lineTo(x + inner - 1.5, y + 1.5);
      drawing.stroke();
    } else if (rank[cell] === 2) {
      drawing.fillStyle = colours.panel;
      drawing.fillRect(x + inner * 0.3, y + inner * 0.3, inner * 0.4, inner * 0.4);
    }
  }
  if (vma.state === "blind") hatch(drawing, 0, 0, columns * size, rows * size, colours.text, 10);
  const causes = [...new Set([...inside(current.layers.missed, vma), ...inside(current.layers.exposed, vma)].map(([, , cause]) => cause))];
  document.getElementById("cells-title").textContent = `${vma.start}–${vma.end}  ${nameOf(vma)}`;
  document.getElementById("cells-words").textContent =
    `${EXPLAINED[vma.state]}${vma.blind ? `: ${blindWords(vma.blind)}` : ""}. ${plural(pages, "page")}, one square is ${each === 1 ? "one" : `${each} (the worst decides)`}.${causes.length ? ` ${causes.join(", ")}.` : ""}`;
  canvas.setAttribute("aria-label", describe(vma));
}

export function paint() {
  if (!current || current.vmas.length === 0) return;
  paintTape();
  paintCells();
}

function choose(place) {
  const vma = current.vmas[Math.min(Math.max(place, 0), current.vmas.length - 1)];
  chosen = new Map([[current.id, vma.start]]);
  const tape = document.getElementById("tape-control");
  tape.setAttribute("aria-valuenow", String(at() + 1));
  tape.setAttribute("aria-valuetext", describe(vma));
  for (const row of document.querySelectorAll(".vmas tr[data-start]")) {
    if (row.dataset.start === vma.start) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  paint();
}

function keyed(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (step === undefined) return;
  event.preventDefault();
  choose(Number.isFinite(step) ? at() + step : step < 0 ? 0 : current.vmas.length - 1);
}

function clicked(event) {
  const line = Math.floor(event.offsetY / (LINE + BELOW));
  const box = tapeBoxes.find((box) => box.kind === "vma" && box.line === line && event.offsetX >= box.x - 1 && event.offsetX <= box.x + box.width + 1);
  if (box) choose(box.vma);
}

function legend() {
  const item = (kind, words) => h("li", {}, h("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), words);
  const kinds = [...new Set(current.vmas.map(({ kind }) => kind))];
  const states = new Set(current.vmas.map(({ state }) => state));
  return h(
    "ul",
    { class: "legend" },
    item("missed", "missed"),
    item("exposed", "exposed"),
    item("written", "written, tracked"),
    item("clean", "armed, not written"),
    states.has("blind") ? item("blind", "blind") : null,
    states.has("fresh") ? item("fresh", "fresh") : null,
    kinds.map((kind) => item(kind, KINDS[kind] ?? kind)),
  );
}

function table() {
  const telling = (vma) => vma.missed_pages || vma.exposed_pages || vma.written_pages || vma.state === "blind" || vma.state === "fresh";
  const selected = at();
  const told = current.vmas.map((vma, place) => [vma, place]).filter(([vma, place]) => telling(vma) || place === selected);
  told.sort(([a], [b]) => b.missed_pages - a.missed_pages || b.exposed_pages - a.exposed_pages || b.written_pages - a.written_pages);
  const listed = all ? current.vmas.slice(0, 500).map((vma, place) => [vma, place]) : told.slice(0, ROWS);
  const figure = (value, verdict) => h("td", { class: `number ${value ? verdict : "none"}` }, value ? count(value) : "–");
  const row = ([vma, place]) =>
    h(
      "tr",
      { "data-start": vma.start, "aria-current": place === selected ? "true" : null, onclick: () => choose(place) },
      h("th", { scope: "row" }, h("button", { type: "button", class: "address", "data-focus": vma.start, onclick: () => choose(place) }, vma.start.slice(2)), h("span", { class: "name" }, nameOf(vma))),
      h("td", { class: "number" }, bytes(length(vma))),
      h("td", {}, h("span", { class: `swatch ${vma.kind}`, "aria-hidden": "true" }), h("span", { class: "permissions" }, vma.permissions)),
      h("td", { title: EXPLAINED[vma.state] }, vma.blind ? `blind: ${vma.blind.replaceAll("_", " ")}` : STATES[vma.state]),
      figure(vma.written_pages, ""),
      figure(vma.exposed_pages, "suspect"),
      figure(vma.missed_pages, "broken"),
    );
  const heads = [["VMA"], ["size", 1], ["kind"], ["state"], ["written", 1], ["exposed", 1], ["missed", 1]];
  const toggle = h("button", { type: "button", class: "quiet", "data-focus": "all-vmas", "aria-expanded": String(all), onclick: turn }, all ? "Only those with something to tell" : `All ${plural(current.vmas.length, "VMA")}`);
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "VMAs", "data-focus": "vmas" },
    h("table", { class: "vmas" }, h("caption", { class: "unseen" }, "VMAs, what was written in this epoch and what was found"), h("thead", {}, h("tr", {}, heads.map(([title, number]) => h("th", { scope: "col", class: number ? "number" : null }, title)))), h("tbody", {}, listed.map(row))),
    listed.length < current.vmas.length || all ? toggle : null,
    all && current.vmas.length > 500 ? h("p", { class: "muted" }, "The first 500 are listed.") : null,
  );
}

function turn() {
  all = !all;
  const old = document.querySelector("#map .scroll");
  old.replaceWith(table());
  document.querySelector('[data-focus="all-vmas"]')?.focus();
}

/** The elements of the map; [`paint`] fills them once they are in the document. */
export function draw(id, map, failure) {
  if (!map) {
    current = null;
    const words = failure ? `The map cannot be had: ${failure.message}` : "The map is being drawn…";
    return h("div", { id: "map" }, h("h3", {}, "Address space"), h("p", { class: failure ? "failure" : "muted" }, words));
  }
  current = prepare(map);
  if (current.vmas.length === 0) {
    return h("div", { id: "map" }, h("h3", {}, "Address space"), h("p", { class: "muted" }, "Nothing is known of its VMAs: it has ended, or no clear was seen."));
  }
  const vma = current.vmas[at()];
  const notes = [];
  if (map.layout === "ledger") notes.push("As its newest epoch met it: the process has ended or cannot be seen from here.");
  if (map.truncated) notes.push("It has more than is drawn here.");
  if (map.written.joined_pages) notes.push(`Written pages were joined over gaps of up to ${plural(map.written.joined_pages, "page")}: more is drawn than was written, never less.`);
  if (map.written.doubtful) notes.push("Some written pages may be of an epoch long ago.");
  if (failure) notes.push(`This is old: ${failure.message}`);
  return h(
    "div",
    { id: "map" },
    h("div", { class: "maphead" }, h("h3", {}, "Address space"), h("p", { class: "muted" }, `${plural(current.vmas.length, "VMA")}, ${bytes(map.mapped_bytes)} mapped, ${plural(map.written.pages, "page")} written in epoch ${map.epoch}`)),
    legend(),
    h(
      "div",
      { id: "tape-control", class: "tape", role: "slider", tabindex: "0", "data-focus": "tape", "aria-label": "VMA; arrow keys go to the next", "aria-valuemin": "1", "aria-valuemax": String(current.vmas.length), "aria-valuenow": String(at() + 1), "aria-valuetext": describe(vma), onkeydown: keyed },
      h("canvas", { id: "tape", "aria-hidden": "true", onclick: clicked }),
    ),
    h("p", { class: "note", id: "scale" }),
    ...notes.map((note) => h("p", { class: "note" }, note)),
    h("div", { class: "cellbox" }, h("h4", { id: "cells-title" }), h("p", { class: "note", id: "cells-words" }), h("canvas", { id: "cells", role: "img" })),
    table(),
  );
}
