// What the page does: asks once a second, keeps what it knows of the series that is shown, and has it drawn.
// Text of clients is only ever set as text.
import { drawHeat, drawLadder, drawNet, relayout } from "./charts.js";

const ASK = 1000, ASK_HIDDEN = 10000, ASK_AWAY = 30000; // ms between two questions
const FRESH = 15; // s; older is stale while the market is open
const HEAT_EVERY = 10000; // ms between two looks at the grid, which gets a column a minute
const element = (id) => document.getElementById(id);
const chosen = { ticker: "", endpoint: "", measure: "volume", step: "60", day: "", theme: "dark", symbol: "", side: "", premium: "0" };
let series = []; // the rows of /api/state
let rows = []; // the timeline of the series that is shown
let shown = ""; // what `rows` belong to
let wait = ASK, heatAt = 0, timer = 0, running = false, pending = {};

const path = (name, more) => `/api/${name}?` + new URLSearchParams({ ticker: chosen.ticker, endpoint: chosen.endpoint, ...(chosen.day ? { day: chosen.day } : {}), ...more });

// The browser asks with If-None-Match by itself, and hands on what it has where nothing changed.
async function ask(where) {
  const answer = await fetch(where, { cache: "no-cache", signal: AbortSignal.timeout(8000) });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`${where}: ${answer.status}`);
  return answer.json();
}

const known = (value) => value !== null && value !== undefined;
const price = (value) => (known(value) ? value.toLocaleString("en-US", { maximumFractionDigits: 2 }) : "–");
const gamma = (value) => (known(value) ? Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2, signDisplay: "exceptZero" }).format(value) : "–");
const share = (value) => (known(value) && isFinite(value) ? (100 * value).toLocaleString("en-US", { maximumFractionDigits: 2, signDisplay: "exceptZero" }) + " %" : "");

function marketOpen(now) {
  const at = Object.fromEntries(new Intl.DateTimeFormat("en-US", { timeZone: "America/New_York", weekday: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).formatToParts(now).map((part) => [part.type, part.value]));
  const minute = 60 * at.hour + +at.minute;
  return !["Sat", "Sun"].includes(at.weekday) && minute >= 570 && minute < 960;
}

const ageOf = (one) => (known(one.updated) ? Date.now() / 1000 - one.updated : Infinity);
function ageWord(one) {
  return ageOf(one) <= FRESH ? "fresh" : marketOpen(Date.now()) ? "stale" : "asleep";
}
function ageText(one) {
  const age = ageOf(one);
  if (!isFinite(age)) return "never";
  return age < 90 ? `${Math.max(0, Math.round(age))} s` : age < 5400 ? `${Math.round(age / 60)} min` : `${Math.round(age / 3600)} h`;
}

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Only what changed is made anew: a button that is replaced under the mouse cannot be clicked.
function showTabs() {
  const tabs = element("tabs"), freshest = new Map();
  for (const one of series) if (!freshest.has(one.ticker) || ageOf(one) < ageOf(freshest.get(one.ticker))) freshest.set(one.ticker, one);
  const names = [...freshest.keys()];
  if (JSON.stringify([...tabs.children].map((tab) => tab.dataset.ticker)) !== JSON.stringify(names)) {
    tabs.replaceChildren(...names.map((name) => {
      const tab = make("button", { type: "button", onclick: () => choose({ ticker: name, endpoint: "" }) }, make("span", { className: "dot" }), make("span"));
      tab.dataset.ticker = name;
      return tab;
    }));
  }
  for (const tab of tabs.children) {
    const one = freshest.get(tab.dataset.ticker);
    tab.setAttribute("aria-current", String(one.ticker === chosen.ticker));
    tab.firstChild.dataset.age = ageWord(one);
    tab.lastChild.textContent = `${one.ticker} ${price(one.spot)}`;
    tab.title = `last payload ${ageText(one)} ago`;
  }
}

function showEndpoints() {
  const select = element("endpoint"), names = series.filter((one) => one.ticker === chosen.ticker).map((one) => one.endpoint);
  if (JSON.stringify([...select.options].map((option) => option.value)) !== JSON.stringify(names)) {
    select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name || "(none)" })));
  }
  select.value = chosen.endpoint;
}

const TILES = [
  ["spot", "Spot"], ["age", "Age"], ["zero_gamma", "Zero gamma"], ["flip", "Spot against the flip"], ["net_gex_vol", "Net gamma, volume"],
  ["net_gex_oi", "Net gamma, open interest"], ["major_pos_vol", "Major positive"], ["major_neg_vol", "Major negative"],
];
function showTiles(one) {
  const tiles = element("tiles");
  if (!tiles.children.length) {
    tiles.append(...TILES.map(([field, title]) => {
      const value = make("output");
      value.dataset.field = field;
      return make("div", { className: "tile" }, make("h2", { textContent: title }), value, make("small"));
    }));
  }
  const before = rows.findLast((row) => known(row.net_gex_vol) && row.time <= (one.updated ?? 0) - 300);
  const above = known(one.spot) && known(one.zero_gamma) ? one.spot - one.zero_gamma : null;
  const texts = {
    spot: [price(one.spot)], age: [ageText(one), { fresh: "", stale: "stale: the market is open and nothing comes", asleep: "the market is closed" }[ageWord(one)]],
    zero_gamma: [price(one.zero_gamma), share(above === null ? null : -above / one.spot)],
    flip: [above === null ? "–" : above >= 0 ? "above" : "below", above === null ? "spot or zero gamma is missing" : `${price(Math.abs(above))} points`],
    net_gex_vol: [gamma(one.net_gex_vol), before ? `${gamma(one.net_gex_vol - before.net_gex_vol)} in 5 min` : "no value of 5 min ago"],
    net_gex_oi: [gamma(one.net_gex_oi)],
    major_pos_vol: [price(one.major_pos_vol), `open interest ${price(one.major_pos_oi)}`], major_neg_vol: [price(one.major_neg_vol), `open interest ${price(one.major_neg_oi)}`],
  };
  for (const tile of tiles.children) {
    const [value, more = ""] = texts[tile.children[1].dataset.field];
    tile.children[1].textContent = value;
    tile.children[2].textContent = more;
  }
}

async function showDisk() {
  const answer = await fetch("/status", { cache: "no-store" });
  const waiting = (await answer.json()).loader?.lag_records ?? 0;
  element("disk").textContent = `all on disk · ${waiting} waiting`;
}

async function askTimeline() {
  const key = JSON.stringify([chosen.ticker, chosen.endpoint, chosen.day]);
  if (shown !== key) [rows, shown, heatAt] = [[], key, 0];
  // The first answer is thinned to a row in five seconds, which is more than a screen has; then each row as it comes.
  const first = { step: 5, limit: 10000 }, next = () => ({ since: rows.at(-1).time, limit: 10000 });
  const found = await ask(path("timeline", rows.length ? next() : first));
  if (!found || shown !== key) return;
  // A series that began a new day has older rows here, which belong to no chart any more.
  if (found.rows.length && rows.length && found.rows.at(-1).time - rows[0].time > 86400) rows = [];
  rows.push(...found.rows);
}

async function showDays() {
  const key = JSON.stringify([chosen.ticker, chosen.endpoint]), select = element("day");
  if (select.dataset.of === key) return;
  const found = await ask("/api/days?" + new URLSearchParams({ ticker: chosen.ticker, endpoint: chosen.endpoint }));
  const today = new Intl.DateTimeFormat("sv-SE", { timeZone: "America/New_York" }).format(Date.now());
  const days = found.map((one) => one.day).filter((day) => day !== today).reverse();
  select.replaceChildren(make("option", { value: "", textContent: "today" }), ...days.map((day) => make("option", { value: day, textContent: day })));
  select.value = chosen.day = days.includes(chosen.day) ? chosen.day : "";
  select.dataset.of = key;
}

const clock = new Intl.DateTimeFormat("en-US", { timeZone: "America/New_York", hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit" });
async function showFlow() {
  const asked = { limit: 200, min_premium: chosen.premium, ...(chosen.side ? { side: chosen.side } : {}), ...(chosen.symbol ? { symbol: chosen.ticker } : {}) };
  const found = await ask("/api/flow?" + new URLSearchParams(asked)), body = element("flow");
  element("noflow").hidden = found.length > 0;
  const version = JSON.stringify([asked, found[0]?.number]);
  if (body.dataset.version === version) return;
  body.dataset.version = version;
  body.replaceChildren(...found.map((one) => {
    const contract = `${one.expiration ?? ""} ${price(one.strike)} ${one.option_type ?? ""}`;
    const row = make("tr", {}, ...[clock.format(1000 * one.time), one.symbol ?? "", contract, one.side ?? "", price(one.size), price(one.price), gamma(one.premium).replace("+", ""), price(one.underlying_price), one.has_sweep ? "sweep" : one.rule ?? ""].map((text) => make("td", { textContent: text })));
    row.dataset.flow = one.number;
    row.children[2].dataset.type = one.option_type ?? "";
    return row;
  }));
}

// One step at a time, and what was chosen meanwhile counts from the next one on: half a step of each would ask for
// one ticker's endpoint or day of another.
async function step() {
  clearTimeout(timer);
  if (running) return;
  running = true;
  apply();
  try {
    series = await ask("/api/state");
    element("empty").hidden = series.length > 0;
    element("board").hidden = series.length === 0;
    if (series.length) await showSeries();
    await showDisk();
    element("away").hidden = true;
    wait = ASK;
  } catch (problem) {
    element("away").hidden = false;
    wait = Math.min(ASK_AWAY, 2 * wait);
  }
  running = false;
  const next = Object.keys(pending).length ? 0 : document.hidden ? Math.max(wait, ASK_HIDDEN) : wait;
  timer = setTimeout(step, next);
}

async function showSeries() {
  const of = (ticker) => series.filter((one) => one.ticker === ticker).sort((a, b) => ageOf(a) - ageOf(b));
  if (!of(chosen.ticker).length) [chosen.ticker, chosen.endpoint] = [series[0].ticker, ""];
  const one = of(chosen.ticker).find((found) => found.endpoint === chosen.endpoint) ?? of(chosen.ticker)[0];
  chosen.endpoint = one.endpoint;
  showTabs();
  showEndpoints();
  await showDays();
  await askTimeline();
  showTiles(one);
  const ladder = await ask(path("strikes"));
  if (Date.now() - heatAt > HEAT_EVERY) {
    const grid = await ask(path("heatmap", { step: chosen.step, measure: chosen.measure }));
    if (grid) drawHeat(element("heat"), grid, rows, one);
    heatAt = Date.now();
  }
  if (ladder) drawLadder(element("ladder"), ladder, one, chosen.measure);
  drawNet(element("net"), rows);
  await showFlow();
}

function choose(change) {
  Object.assign(pending, change);
  step();
}

function apply() {
  if (!Object.keys(pending).length) return;
  Object.assign(chosen, pending);
  pending = {};
  document.documentElement.dataset.theme = chosen.theme;
  for (const name of ["measure", "step", "theme", "symbol", "side", "premium"]) element(name).value = chosen[name];
  history.replaceState(null, "", "?" + new URLSearchParams(chosen));
  heatAt = 0;
  relayout();
}

element("example").textContent = `curl -d '{"ticker": "SPX", "kind": "snapshot", "endpoint": "gex_zero", "data": {"timestamp": ${Math.floor(Date.now() / 1000)}, "spot": 5334.67, "zero_gamma": 5326.29, "strikes": [[5300, 60228.8, -40374.4], [5350, 91200.5, 3100.2]]}}' ${location.origin}/gex`;
for (const name of ["endpoint", "measure", "step", "day", "theme", "symbol", "side", "premium"]) element(name).addEventListener("change", (event) => choose({ [name]: event.target.value }));
document.addEventListener("keydown", (event) => {
  const days = [...element("day").options].map((option) => option.value), at = days.indexOf(chosen.day);
  const day = days[at + { ArrowLeft: 1, ArrowRight: -1 }[event.key]];
  if (day !== undefined && event.target.tagName !== "SELECT") return choose({ day });
  const tab = element("tabs").children[event.key - 1];
  if (tab && !event.ctrlKey && !event.metaKey && !event.altKey && event.target.tagName !== "SELECT") choose({ ticker: tab.dataset.ticker, endpoint: "" });
});
document.addEventListener("visibilitychange", () => document.hidden || step());
const asked = new URLSearchParams(location.search);
choose({ ...chosen, ...Object.fromEntries(Object.keys(chosen).filter((name) => asked.has(name)).map((name) => [name, asked.get(name)])) });
