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

const CAUSES = { "ksm-merge": 63, "shared-zap": 64, "mremap-table-move": 512 };

/** Three mechanisms in one epoch of one process; every number is what the process itself found to be missed. */
async function incidents() {
  // Races first: their processes end, what was found in them stays.
  await act("battery migration-race");
  say("the battery's race is over");
  const scene = await act("scene two-causes");
  assert.deepEqual(scene.missed, Object.values(CAUSES));
  for (const [cause, pages] of Object.entries(CAUSES)) {
    const item = page.locator("#incidents li", { hasText: cause }).filter({ hasText: `${pages} pages` }).filter({ hasText: String(scene.pid) });
    await item.first().waitFor();
  }
  assert.equal(await page.evaluate(() => window.sameDocument), true);
  await eventually("the sentence for those who listen", async () => assert.match(await text("#spoken"), /incident/));
  await page.locator("h1", { hasText: /^Writes were missed in 1 of \d+ processes\.$/ }).waitFor();
  say(`the incidents of ${scene.pid} came without a reload`);
  return scene;
}

/** The list says what the API says, and the API what the processes did. */
async function list(pids, scene) {
  const row = page.locator("#list tbody tr").first();
  await eventually("what is worst comes first", async () => assert.match(await row.innerText(), /broken/));
  await eventually("the list and the API", async () => {
    const { items } = await api("processes");
    for (const pid of [...pids, scene.pid]) {
      const process = items.find((item) => item.pid === pid);
      assert.ok(process, `the API does not know ${pid}`);
      const cells = await page.locator(`#list tr[data-id="${process.id}"] > *`).allInnerTexts();
      const both = [process.verdict, process.last_verdict];
      const verdict = ["broken", "suspect"].find((one) => both.includes(one)) ?? (process.last_verdict === "trusted" ? "trusted" : "open");
      assert.deepEqual([cells[0].trim(), cells[1].trim(), cells[2]], [verdict, process.comm, String(pid)]);
    }
  });
  const worst = (await api("processes?verdict=broken")).items;
  assert.deepEqual(worst.map(({ pid, missed_pages }) => [pid, missed_pages]), [[scene.pid, 639]]);
  // The search, and the filter by verdict.
  await page.fill("#search", String(scene.pid));
  await eventually("the search", async () => assert.equal(await page.locator("#list tbody tr").count(), 1));
  await page.fill("#search", "no such process");
  await page.locator("#list", { hasText: "No process matches." }).waitFor();
  await page.fill("#search", "");
  await page.click('#counts button[data-verdict="broken"]');
  await eventually("the filter", async () => assert.equal(await page.locator("#list tbody tr").count(), 1));
  await page.click('#counts button[data-verdict="broken"]');
  await page.check("#ended");
  await page.locator("#list", { hasText: "ended" }).first().waitFor();
  await page.uncheck("#ended");
  say("the list is right, and can be searched and filtered");
}

async function map(scene) {
  const { items } = await api(`processes?pid=${scene.pid}`);
  const drawn = await api(`processes/${items[0].id}/map`);
  assert.equal(drawn.layout, "proc");
  await page.locator("#detail h2", { hasText: String(scene.pid) }).waitFor();
  await page.locator("#tape").waitFor();
  // Each range of the scene lies in a VMA that says how much of it was missed.
  const within = (vma, range) => BigInt(vma.start) <= BigInt(range.start) && BigInt(range.end) <= BigInt(vma.end);
  for (const [place, range] of scene.ranges.entries()) {
    const vma = drawn.vmas.find((vma) => within(vma, range));
    assert.ok(vma, `no VMA holds ${range.start}`);
    assert.ok(vma.missed_pages >= scene.missed[place], `${vma.start}: ${vma.missed_pages} missed, not ${scene.missed[place]}`);
    const row = page.locator(`.vmas tr[data-start="${vma.start}"] td`).last();
    await eventually("the VMA's row", async () => assert.equal(await row.innerText(), String(vma.missed_pages)));
  }
  assert.equal(drawn.vmas.reduce((sum, { missed_pages }) => sum + missed_pages, 0), 639);
  assert.ok(drawn.written.pages >= 128, `${drawn.written.pages} written pages`);
  await page.click('[data-focus="all-vmas"]');
  const shown = drawn.vmas.filter(({ name }) => name !== "[vsyscall]").length;
  await eventually("all VMAs", async () => assert.equal(await page.locator(".vmas tbody tr").count(), shown));
  await page.click('[data-focus="all-vmas"]');
  const [tape, cells, broken, written] = [await colours("tape"), await colours("cells"), await colour("broken"), await colour("written")];
  assert.ok(tape[broken] > 500 && tape[written] > 20, `the tape has no missed or no written pages: ${JSON.stringify(tape)}`);
  assert.ok(cells[broken] > 5000, "the squares have no missed pages");
  assert.match(await text("#scale"), /To scale.*closed up/s);
  say(`the map draws ${shown} VMAs, 639 missed pages and ${drawn.written.pages} written ones`);
}

/** Everything that a mouse does can be done without one. */
async function keyboard() {
  const focused = () => page.evaluate(() => document.activeElement.outerHTML.slice(0, 120));
  await page.evaluate(() => {
    document.activeElement.blur();
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
  const cause = page.locator("#incidents a.cause", { hasText: "ksm-merge" }).first();
  await cause.focus();
  await page.keyboard.press("Enter");
  await page.locator("#cause-ksm-merge[open]").waitFor();
  await eventually("the cause has the focus", async () => assert.match(await page.evaluate(() => document.activeElement.closest("details")?.id ?? ""), /cause-ksm-merge/));
  const explained = await text("#cause-ksm-merge");
  assert.match(explained, /What to do/);
  assert.match(explained, /docs\/causes\.md#ksm-merge/);
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
  for (const [scheme, light] of [["dark", false], ["light", true]]) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    await eventually(scheme, async () => assert.equal((await paper()) > 128, light));
    await page.setViewportSize({ width: 1440, height: 1000 });
    await sleep(1500);
    await fits(`${scheme}, 1440 px`);
    await accessible(`${scheme}, 1440 px`);
    await picture(scheme);
    await picture(`${scheme}-first`, false);
    await page.setViewportSize({ width: 360, height: 780 });
    await sleep(1500);
    await fits(`${scheme}, 360 px`);
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
  const scene = await incidents();
  await list(pids, scene);
  await map(scene);
  await keyboard();
  await looks();
  assert.deepEqual(complaints, [], "the browser complains");
  await away_and_back();
  assert.deepEqual(strangers, [], "a request left the origin");
  await act(process.env.PAGE_KEEP ? "stop" : "end").catch(() => {});
  say("all is well");
} catch (error) {
  console.error(`page: ${error.stack}`);
  for (const complaint of complaints) console.error(`page: the browser said: ${complaint}`);
  await picture("failure").catch(() => {});
  await act(process.env.PAGE_KEEP ? "stop" : "end").catch(() => {});
  process.exitCode = 1;
} finally {
  writeFileSync(path.join(PAGE_FOLDER, "steps.txt"), `${seen.join("\n")}\n`);
  await browser.close();
}
