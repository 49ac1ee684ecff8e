// The live page in a real browser, against the daemon in a guest. See page.rs, which starts this.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import path from "node:path";

const { PAGE_URL: URL_, PAGE_CONTROL, PAGE_FOLDER, PAGE_KERNEL, PAGE_CHROMIUM, PAGE_PACKAGES } = process.env;
const require = createRequire(path.join(PAGE_PACKAGES, "/"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** How long anything may take: guests are slow on a busy host. */
const PATIENCE = 240_000;
const started = Date.now();
const seen = [];
const say = (line) => {
  seen.push(line);
  console.log(`page: ${((Date.now() - started) / 1000).toFixed(1)} s ${line}`);
};
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Tries until it does not throw. */
async function eventually(what, attempt, patience = PATIENCE) {
  const end = Date.now() + patience;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (Date.now() > end) throw new Error(`${what}: ${error.message}`, { cause: error });
      await sleep(100);
    }
  }
}

/** Has the stage in the guest play an act; resolves with what it tells. */
function act(line, patience = PATIENCE * 2) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(Number(PAGE_CONTROL), "127.0.0.1");
    let text = "";
    socket.setTimeout(patience, () => socket.destroy(new Error(`the stage does not answer "${line}"`)));
    socket.on("connect", () => socket.write(`${line}\n`));
    socket.on("data", (data) => {
      text += data;
      if (!text.includes("\n")) return;
      socket.end();
      const told = JSON.parse(text);
      if (told.error) reject(new Error(`${line}: ${told.error}`));
      else resolve(told);
    });
    socket.on("error", reject);
    socket.on("close", () => reject(new Error(`the stage hung up on "${line}"`)));
  });
}

const api = async (what) => {
  const answer = await fetch(`${URL_}/api/v1/${what}`);
  assert.equal(answer.status, 200, what);
  return answer.json();
};

const browser = await chromium.launch({ executablePath: PAGE_CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
const context = await browser.newContext({ viewport: { width: 1440, height: 1000 }, colorScheme: "dark", reducedMotion: "reduce" });
const page = await context.newPage();
page.setDefaultTimeout(PATIENCE);

/** What the browser complains about. While sdtrace is away it complains rightly. */
const complaints = [];
let away = true;
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type()) && !away) complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(error.stack));
const strangers = [];
page.on("request", (request) => {
  if (!request.url().startsWith(`${URL_}/`)) strangers.push(request.url());
});

const picture = (name, fullPage = true) => page.screenshot({ path: path.join(PAGE_FOLDER, `${name}.png`), fullPage });
const text = (selector) => page.locator(selector).innerText();

/** No serious violation of what axe knows. */
async function accessible(when) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const words = serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`);
  assert.deepEqual(words, [], `axe, ${when}`);
}

/** Nothing is wider than the window. */
async function fits(when) {
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(inner <= outer, `${when}: ${inner} px of content in ${outer} px`);
}

/** The timeline has the width of its panel, and says nothing twice in one place. */
async function timelineFits(when) {
  await eventually(`the timeline, ${when}`, async () => {
    const [drawn, room] = await page.evaluate(() => {
      const box = document.getElementById("timeline");
      return [box.querySelector("svg").clientWidth, box.clientWidth];
    });
    assert.ok(Math.abs(drawn - room) <= 1, `${drawn} px in ${room} px`);
    const over = await page.evaluate(() => {
      const words = [...document.querySelectorAll("#timeline .time")].map((word) => word.getBoundingClientRect()).sort((a, b) => a.left - b.left);
      return words.filter((word, at) => at > 0 && word.left < words[at - 1].right).length;
    });
    assert.equal(over, 0, "times lie over each other");
  });
}

/** The list and the details tell the same of the last clear, also while nothing happens. */
async function timePasses() {
  const ages = () =>
    page.evaluate(() => {
      const age = (element) => Number(element.textContent.match(/(\d+) s ago/)?.[1] ?? 0);
      return [age(document.querySelector("#list tr[aria-current='true'] [data-since]")), age(document.querySelector("#detail [data-since]"))];
    });
  const before = await ages();
  await eventually("time passes", async () => {
    const [list, detail] = await ages();
    assert.ok(list > before[0] && detail > before[1] && Math.abs(list - detail) <= 1, `the list ${before[0]} to ${list} s, the details ${before[1]} to ${detail} s`);
  }, 20_000);
}

/** The colours that a canvas holds. */
const colours = (id) =>
  page.evaluate((id) => {
    const canvas = document.getElementById(id);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const counts = {};
    for (let at = 0; at < data.length; at += 4) {
      if (data[at + 3] < 255) continue;
      const key = `${data[at]},${data[at + 1]},${data[at + 2]}`;
      counts[key] = (counts[key] ?? 0) + 1;
    }
    return counts;
  }, id);

const colour = (name) =>
  page.evaluate((name) => {
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color.match(/\d+/g).slice(0, 3).join(",");
  }, name);

async function starting() {
  // Before anybody listens in the guest, the emulator takes connections and lets them hang.
  await eventually("the guest's stage", () => act("hello", 10_000), PATIENCE * 2);
  say("the guest is up");
  const up = act("start");
  up.catch(() => {});
  await eventually("the page of a daemon that starts", () => page.goto(URL_, { timeout: 5000 }));
  await page.locator("h1", { hasText: "sdtrace is starting." }).waitFor();
  assert.equal((await fetch(`${URL_}/api/v1/processes`)).status, 503);
  assert.equal(await text("#link-text"), "starting");
  assert.match(await text("#notice"), /the probes are being attached/);
  await picture("starting", false);
  say("a daemon that starts is shown as one");
  await up;
}

async function empty() {
  await page.locator("h1", { hasText: "Nothing is tracked yet." }).waitFor();
  away = false;
  // From here on nothing is loaded anew: what comes, comes by events.
  await page.evaluate(() => {
    window.sameDocument = true;
  });
  assert.match(await text("#list"), /clear_refs/);
  assert.equal(await text("#link-text"), "live");
  await eventually("the kernel's name", async () => assert.equal(await text("#kernel"), `Linux ${PAGE_KERNEL}`));
  await accessible("nothing tracked");
  await picture("empty", false);
  say("nothing is tracked, and the page says how to begin");
}

async function steady() {
  const { pids } = await act("steady");
  for (const pid of pids) await page.locator("#list tr", { has: page.getByText(String(pid), { exact: true }) }).waitFor();
  say(`processes ${pids.join(", ")} appeared`);
  // Several epochs each, so that the timeline has something to show.
  await eventually("finished epochs", async () => {
    const { items } = await api("processes");
    assert.ok(items.every(({ epochs }) => epochs.trusted + epochs.suspect + epochs.broken >= 4));
  });
  say("each has finished four epochs");
  return pids;
}

/** What every kernel from 6.1 on misses, by scenario. */
const CAUSES = { "shmem-collapse": "shared-collapse", "shared-zap-refault": "shared-zap", "mremap-table-move": "mremap-table-move" };

/** Three mechanisms and a race; every number is what the battery itself found to be missed. */
async function incidents() {
  const { results } = await act(`battery migration-race,${Object.keys(CAUSES).join(",")}`);
  const found = [];
  for (const [scenario, cause] of Object.entries(CAUSES)) {
    const { pages, ...said } = results.find((result) => result.scenario === scenario);
    assert.ok(pages.missed > 0, `${scenario} missed nothing: ${JSON.stringify(said)}`);
    const item = page.locator("#incidents li", { hasText: cause }).filter({ hasText: `${pages.missed.toLocaleString("en")} pages` });
    await item.first().waitFor();
    const { items } = await api(`incidents?cause=${cause}`);
    const incident = items.find((incident) => incident.pages === pages.missed);
    assert.ok(incident, `the API has no incident of ${pages.missed} pages of ${cause}`);
    found.push(incident);
  }
  assert.equal(await page.evaluate(() => window.sameDocument), true);
  await eventually("the sentence for those who listen", async () => assert.match(await text("#spoken"), /incident/));
  await eventually("the line about those that ended", async () => assert.match(await text("#headline"), /3 processes that ended had missed writes/));
  say(`incidents came without a reload: ${found.map(({ cause, pages }) => `${cause} ${pages}`).join(", ")}`);
  return found;
}

/** The list says what the API says, and the API what the processes did. */
async function list(pids, found) {
  await page.check("#ended");
  const row = page.locator("#list tbody tr").first();
  await eventually("what is worst comes first", async () => assert.match(await row.innerText(), /broken/));
  await eventually("the list and the API", async () => {
    const { items } = await api("processes?state=all");
    const wanted = [...pids.map((pid) => items.find((item) => item.pid === pid)), ...found.map(({ address_space: id }) => items.find((item) => item.id === id))];
    for (const process of wanted) {
      assert.ok(process, "the API does not know one of the processes");
      const cells = await page.locator(`#list tr[data-id="${process.id}"] > *`).allInnerTexts();
      const both = [process.verdict, process.last_verdict];
      const verdict = ["broken", "suspect"].find((one) => both.includes(one)) ?? (process.last_verdict === "trusted" ? "trusted" : "open");
      assert.deepEqual([cells[0].trim(), cells[1].split("\n")[0].replace("ended", "").trim(), cells[2]], [verdict, process.comm, String(process.pid)]);
    }
    for (const incident of found) {
      const process = items.find(({ id }) => id === incident.address_space);
      assert.equal(process.last_verdict, "broken");
      assert.ok(process.missed_pages >= incident.pages);
    }
  });
  await page.uncheck("#ended");
  // The search, and the filter by verdict.
  await page.fill("#search", String(pids[0]));
  await eventually("the search", async () => assert.equal(await page.locator("#list tbody tr").count(), 1));
  await page.fill("#search", "no such process");
  await page.locator("#list", { hasText: "No process matches." }).waitFor();
  await page.fill("#search", "");
  await page.click('#counts button[data-verdict="broken"]');
  await eventually("the filter", async () => {
    const shown = await page.locator("#list tbody tr").evaluateAll((rows) => rows.map((row) => row.dataset.verdict));
    assert.ok(shown.every((verdict) => verdict === "broken"));
  });
  await page.click('#counts button[data-verdict="broken"]');
  await eventually("all of them again", async () => assert.ok((await page.locator("#list tbody tr").count()) >= pids.length));
  say("the list is right, and can be searched and filtered");
}

/** A process that lives: its VMAs from /proc, and what it writes. One that ended: what was missed. */
async function map(pids, found) {
  const { items } = await api(`processes?pid=${pids[0]}`);
  await page.evaluate((id) => {
    location.hash = `#/process/${id}`;
  }, items[0].id);
  await page.locator("#detail h2", { hasText: String(pids[0]) }).waitFor();
  await page.locator("#tape").waitFor();
  const living = await api(`processes/${items[0].id}/map`);
  assert.equal(living.layout, "proc");
  assert.ok(living.vmas.some(({ name }) => name === "[stack]"));
  await eventually("written pages", async () => assert.ok((await api(`processes/${items[0].id}/map`)).written.pages > 0));
  await page.click('[data-focus="all-vmas"]');
  const shown = living.vmas.filter(({ name }) => name !== "[vsyscall]").length;
  await eventually("all VMAs", async () => assert.equal(await page.locator(".vmas tbody tr").count(), shown));
  await page.click('[data-focus="all-vmas"]');
  const written = await colour("written");
  await eventually("written pages on the tape", async () => assert.ok((await colours("tape"))[written] > 5));
  const [incident] = found;
  await page.evaluate((id) => {
    location.hash = `#/process/${id}`;
  }, incident.address_space);
  await page.locator("#detail h2", { hasText: String(incident.process.pid) }).waitFor();
  await page.locator("#cells").waitFor();
  const ended = await api(`processes/${incident.address_space}/map`);
  const missed = ended.vmas.reduce((sum, { missed_pages }) => sum + missed_pages, 0);
  assert.ok(missed >= incident.pages, `${missed} missed pages on the map, ${incident.pages} in the incident`);
  const broken = await colour("broken");
  await eventually("missed pages", async () => {
    assert.ok((await colours("tape"))[broken] > 20, "on the tape");
    assert.ok((await colours("cells"))[broken] > 500, "page by page");
  });
  assert.match(await text("#scale"), /To scale/);
  say(`the map draws ${shown} VMAs of a process that lives, and ${missed} missed pages of one that ended`);
}

/** Everything that a mouse does can be done without one. */
async function keyboard() {
  const focused = () => page.evaluate(() => document.activeElement.outerHTML.slice(0, 120));
  await page.evaluate(() => {
    // From the top, wherever the last click was.
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
    scrollTo(0, 0);
  });
  await page.keyboard.press("Tab");
  assert.match(await focused(), /class="skip"/);
  assert.ok((await page.locator(".skip").boundingBox()).y >= 0, "the skip link cannot be seen while it has the focus");
  await page.keyboard.press("Enter");
  await eventually("the skip link", async () => assert.match(await focused(), /id="processes"/));
  await page.keyboard.press("Tab");
  assert.match(await focused(), /id="search"/);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.notEqual(outline, "none", "the focus cannot be seen");
  await page.locator('[data-sort="pid"]').focus();
  await page.keyboard.press("Enter");
  await page.locator('th[aria-sort="ascending"] [data-sort="pid"]').waitFor();
  await page.keyboard.press("Enter");
  await page.locator('th[aria-sort="descending"] [data-sort="pid"]').waitFor();
  assert.match(await focused(), /data-sort="pid"/);
  await page.locator('[data-sort="verdict"]').focus();
  await page.keyboard.press("Enter");
  // Down to another process, and into it.
  await page.locator("#list tbody tr a").first().focus();
  await page.keyboard.press("ArrowDown");
  const id = await page.evaluate(() => document.activeElement.closest("tr").dataset.id);
  assert.equal(id, await page.locator("#list tbody tr").nth(1).getAttribute("data-id"));
  await page.keyboard.press("Enter");
  await page.locator(`#list tr[data-id="${id}"][aria-current="true"]`).waitFor();
  await page.goBack();
  await page.locator("#list tbody tr a").first().focus();
  await page.keyboard.press("Enter");
  await page.locator("#list tbody tr:first-child[aria-current='true']").waitFor();
  // Along the tape.
  const tape = page.locator("#tape-control");
  await eventually("the tape by keys", async () => {
    await tape.focus();
    const before = await tape.getAttribute("aria-valuenow");
    await page.keyboard.press("Home");
    assert.equal(await tape.getAttribute("aria-valuenow"), "1");
    await page.keyboard.press("ArrowRight");
    assert.equal(await tape.getAttribute("aria-valuenow"), "2");
    assert.notEqual(before, "0");
  });
  assert.match(await tape.getAttribute("aria-valuetext"), /written/);
  // From an incident to what it means.
  const cause = page.locator("#incidents a.cause", { hasText: "shared-collapse" }).first();
  await cause.focus();
  await page.keyboard.press("Enter");
  await page.locator("#cause-shared-collapse[open]").waitFor();
  await eventually("the cause has the focus", async () => assert.match(await page.evaluate(() => document.activeElement.closest("details")?.id ?? ""), /cause-shared-collapse/));
  const explained = await text("#cause-shared-collapse");
  assert.match(explained, /What to do/);
  assert.match(explained, /docs\/causes\.md#shared-collapse/);
  say("the page can be used without a mouse");
}

const paper = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor.match(/\d+/g).map(Number)[0]);

async function looks() {
  // Back to what is worst.
  await page.evaluate(() => {
    location.hash = "#/";
    scrollTo(0, 0);
  });
  await page.locator("#list tbody tr:first-child[aria-current='true']").waitFor();
  await page.locator("#tape").waitFor();
  await page.evaluate(() => document.activeElement.blur());
  await timePasses();
  for (const [scheme, light] of [["dark", false], ["light", true]]) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    await eventually(scheme, async () => assert.equal((await paper()) > 128, light));
    await page.setViewportSize({ width: 1440, height: 1000 });
    await sleep(1500);
    await fits(`${scheme}, 1440 px`);
    await timelineFits(`${scheme}, 1440 px`);
    await accessible(`${scheme}, 1440 px`);
    await picture(scheme);
    await page.setViewportSize({ width: 1440, height: 1440 });
    await sleep(300);
    await picture(`${scheme}-first`, false);
    await page.setViewportSize({ width: 360, height: 780 });
    await sleep(1500);
    await fits(`${scheme}, 360 px`);
    await timelineFits(`${scheme}, 360 px`);
    await accessible(`${scheme}, 360 px`);
    await picture(`phone-${scheme}`);
  }
  await page.setViewportSize({ width: 1440, height: 1000 });
  // The switch outdoes the system, and is remembered.
  assert.equal(await text("#theme"), "theme: system");
  await page.click("#theme");
  await page.click("#theme");
  assert.equal(await text("#theme"), "theme: dark");
  assert.ok((await paper()) < 128);
  assert.equal(await page.evaluate(() => localStorage.getItem("sdtrace-theme")), "dark");
  await page.click("#theme");
  say("light and dark, wide and narrow");
}

async function away_and_back() {
  away = true;
  await act("stop");
  await page.locator('#link[data-state="lost"]').waitFor();
  assert.match(await text("#notice"), /connection to sdtrace is lost/);
  assert.match(await text("#link-text"), /disconnected · as of/);
  await picture("lost", false);
  say("the page says that it is cut off");
  await act("start");
  await page.locator('#link[data-state="live"]').waitFor();
  // What the new one tracks was armed before it: none of the old one's incidents are left in its list of processes.
  await eventually("the page after a restart", async () => {
    const { items } = await api("processes?limit=1000");
    const shown = await page.locator("#list tbody tr").count();
    assert.equal(shown, items.length);
  });
  assert.equal(await page.evaluate(() => window.sameDocument), true);
  say("and comes back by itself");
}

try {
  await starting();
  await empty();
  const pids = await steady();
  const found = await incidents();
  await list(pids, found);
  await map(pids, found);
  await keyboard();
  await looks();
  assert.deepEqual(complaints, [], "the browser complains");
  await away_and_back();
  assert.deepEqual(strangers, [], "a request left the origin");
  await act("end").catch(() => {});
  say("all is well");
} catch (error) {
  console.error(`page: ${error.stack}`);
  for (const complaint of complaints) console.error(`page: the browser said: ${complaint}`);
  await picture("failure").catch(() => {});
  await act("end").catch(() => {});
  process.exitCode = 1;
} finally {
  writeFileSync(path.join(PAGE_FOLDER, "steps.txt"), `${seen.join("\n")}\n`);
  await browser.close();
}
