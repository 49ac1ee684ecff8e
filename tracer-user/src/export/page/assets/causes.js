// What makes soft-dirty miss a write: those that were met here first, then all that are known.

import { store } from "./api.js";
import { badge, evidenceVerdict, h, markdown, plural } from "./words.js";

const open = new Set();

/** A link to the explanation of a cause on this page. */
export const causeLink = (name) => h("a", { href: `#/cause/${name}`, class: "cause" }, name);

/** Pages by cause, over the incidents that are known, the strongest evidence first. */
function met() {
  const sums = new Map();
  for (const incident of store.incidents.values()) {
    if (incident.pages === 0) continue;
    const sum = sums.get(incident.cause) ?? { incidents: 0, pages: 0, verdict: "suspect" };
    sum.incidents += 1;
    if (incident.bound !== "times") sum.pages += incident.pages;
    if (evidenceVerdict(incident.evidence) === "broken") sum.verdict = "broken";
    sums.set(incident.cause, sum);
  }
  return sums;
}

/** Keeps in mind what the user opened and closed: everything is drawn anew when another incident comes. */
function remember(details, name) {
  details.querySelector("summary").addEventListener("click", () => (details.open ? open.delete(name) : open.add(name)));
}

function entry(cause, sum) {
  const details = h(
    "details",
    { id: `cause-${cause.name}`, open: open.has(cause.name) },
    h(
      "summary",
      {},
      h("span", { class: "name" }, cause.name),
      h("span", { class: "class", title: "class, as docs/causes.md divides them" }, cause.class === "unknown" ? "?" : cause.class),
      sum ? badge(sum.verdict, `${plural(sum.incidents, "incident")}`) : h("span", { class: "muted" }, "not met here"),
    ),
    h("p", { class: "title" }, cause.title),
    h("p", {}, markdown(cause.summary)),
    cause.kernels ? h("p", {}, h("strong", {}, "Kernels. "), markdown(cause.kernels)) : null,
    cause.remedy ? h("p", {}, h("strong", {}, "What to do. "), markdown(cause.remedy)) : null,
    h("p", { class: "muted" }, "More: ", /^https?:/.test(cause.link) ? h("a", { href: cause.link, rel: "noreferrer" }, cause.link) : h("code", {}, cause.link)),
  );
  remember(details, cause.name);
  return details;
}

export function draw() {
  const place = document.getElementById("causes");
  const focused = place.contains(document.activeElement) ? document.activeElement.closest("details")?.id : null;
  const sums = met();
  const all = [...store.causes.values()];
  const here = all.filter(({ name }) => sums.has(name));
  const rest = all.filter(({ name }) => !sums.has(name));
  here.sort((a, b) => sums.get(b.name).pages - sums.get(a.name).pages);
  const others = h("details", { id: "causes-others", class: "others", open: open.has(" others") || here.length === 0 }, h("summary", {}, `${plural(rest.length, "cause")} that ${here.length ? "were not met here" : "are known"}`), rest.map((cause) => entry(cause, null)));
  remember(others, " others");
  place.replaceChildren(h("div", { class: "met" }, here.map((cause) => entry(cause, sums.get(cause.name)))), others);
  if (focused) document.getElementById(focused)?.querySelector("summary")?.focus({ preventScroll: true });
}

/** Opens the explanation of a cause and goes there. */
export function show(name) {
  open.add(name);
  if (!store.incidents.size || ![...store.incidents.values()].some((incident) => incident.cause === name)) open.add(" others");
  draw();
  const details = document.getElementById(`cause-${name}`);
  details?.scrollIntoView({ block: "start" });
  details?.querySelector("summary").focus({ preventScroll: true });
}
