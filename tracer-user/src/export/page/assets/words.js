// How things are said and drawn: numbers, times, verdicts, and elements of the document.

/** Makes an element. Text is always text: names of processes and files are whatever their owners like. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Makes an SVG element. */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = (number) => whole.format(number);

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
export function bytes(number) {
  let unit = 0;
  while (number >= 1024 && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number >= 100 || Number.isInteger(number) ? Math.round(number) : number.toFixed(1)} ${UNITS[unit]}`;
}

export function ago(seconds) {
  if (seconds < 1.5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

/** How long ago something was; `passTime` keeps it right. */
export const since = (unix) => h("span", { "data-since": unix }, ago(Date.now() / 1000 - unix));

/** Brings every `since` in line with the clock. */
export function passTime() {
  const now = Date.now() / 1000;
  for (const element of document.querySelectorAll("[data-since]")) {
    const words = ago(now - Number(element.dataset.since));
    if (element.textContent !== words) element.textContent = words;
  }
}

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB", { hour12: false });

export const VERDICTS = ["broken", "suspect", "trusted", "open"];
export const MEANING = {
  broken: "a write was missed: dump again",
  suspect: "a write could be missed, or a check is incomplete",
  trusted: "every check complete, nothing found",
  open: "the first epoch runs; nothing found so far",
};

/** The verdict that a process is listed under: the worse of its open epoch, so far, and of the one before. */
export function standing(process) {
  const both = [process.verdict, process.last_verdict];
  if (both.includes("broken")) return "broken";
  if (both.includes("suspect")) return "suspect";
  return process.last_verdict === "trusted" ? "trusted" : "open";
}

export function glyph(verdict) {
  const svg = s("svg", { class: `glyph ${verdict}`, "aria-hidden": "true", viewBox: "0 0 16 16" });
  svg.append(s("use", { href: `#g-${verdict}` }));
  return svg;
}

export const badge = (verdict, words = verdict) =>
  h("span", { class: `badge ${verdict}` }, glyph(verdict), h("span", {}, words));

export const evidenceVerdict = (evidence) => (evidence === "proved" || evidence === "observed" ? "broken" : "suspect");

/** What a number of pages is, as `bound` says. */
export function bounded(pages, bound) {
  const what = bound === "times" ? plural(pages, "time") : plural(pages, "page");
  return { at_least: `at least ${what}`, at_most: `at most ${what}` }[bound] ?? what;
}

const UNKNOWN = {
  adopted: "armed before sdtrace started",
  forked: "forked from a tracked process",
  raced_with_clear: "writes that raced with the clear",
  opening_unseen: "the clear was not seen",
  end_unseen: "the end was not seen",
};
const BLIND = {
  hugetlb: "hugetlb memory",
  pfnmap: "memory mapped by page frame",
  pinned: "pinned memory",
  writable_alias: "shared memory, writable elsewhere too",
  aio_ring: "a ring of the kernel's AIO",
  page_protection: "entries born writable",
};
export const blindWords = (reason) => BLIND[reason] ?? reason;

/** A reason against trust, in words. */
export function reasonWords({ kind, name, count: number }) {
  if (kind === "blind") return `${bytes(number)} blind: ${blindWords(name)}`;
  if (kind === "unknown") return `unknown: ${UNKNOWN[name] ?? name.replaceAll("_", " ")}`;
  if (kind === "missed") return `${plural(number, "page")} missed: ${name}`;
  if (kind === "exposed") return `${plural(number, "page")} exposed: ${name}`;
  return `hazard: ${name}`;
}

export const KINDS = {
  private_anon: "private anonymous",
  shared_anon: "shared anonymous",
  private_file: "private file",
  shared_file: "shared file",
  special: "the kernel's own",
};

/** The inline Markdown of docs/causes.md: code, strong, emphasis, links as their words. */
export function markdown(text) {
  const parts = text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|\[[^\]]+\]\([^)]+\))/);
  return parts.map((part) => {
    if (part.startsWith("`")) return h("code", {}, part.slice(1, -1));
    if (part.startsWith("**")) return h("strong", {}, part.slice(2, -2));
    if (part.startsWith("[")) return part.slice(1, part.indexOf("]"));
    if (part.length > 2 && part.startsWith("*")) return h("em", {}, part.slice(1, -1));
    return part;
  });
}
