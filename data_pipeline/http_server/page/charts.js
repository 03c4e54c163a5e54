// The three charts.  Prices stand on one axis: who zooms the heat map zooms the ladder with it.
const NEW_YORK = new Intl.DateTimeFormat("sv-SE", { timeZone: "America/New_York", dateStyle: "short", timeStyle: "medium" });
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const time = (seconds) => NEW_YORK.format(1000 * seconds);
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
let range = null; // of the price axis, where somebody has zoomed

function layout(more) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), color: colour("dim") };
  return {
    margin: { l: 52, r: 10, t: 8, b: 34 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent", showlegend: false,
    font: { color: colour("text"), size: 11 }, hovermode: "closest", uirevision: "keep", ...more,
    xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
  };
}

// Forget a zoom: another series has other prices.
export function relayout() {
  range = null;
}

const line = (rows, field, name, style) => ({
  type: "scatter", mode: "lines", name, x: rows.map((row) => time(row.time)), y: rows.map((row) => row[field]), connectgaps: false, line: style,
  hovertemplate: `${name} %{y:,.2f}<extra></extra>`,
});

// 20,000 points a line are more than a screen has: one of each `most`-th part is enough.
function thinned(rows, most) {
  const every = Math.ceil(rows.length / most);
  return every > 1 ? rows.filter((_, at) => at % every === 0 || at === rows.length - 1) : rows;
}

function prices(strikes, spot) {
  if (range) return range;
  if (spot === null || !strikes.length) return null;
  const near = strikes.filter((strike) => Math.abs(strike - spot) <= 0.03 * spot);
  const room = 0.001 * spot; // so that a level at the edge is seen
  return near.length > 4 ? [near[0], near.at(-1)] : [Math.min(strikes[0], spot) - room, Math.max(strikes.at(-1), spot) + room];
}

export function drawHeat(where, grid, rows, one) {
  const root = (value) => (value === null ? null : Math.sign(value) * Math.sqrt(Math.abs(value)));
  const cells = grid.strikes.map((_, at) => grid.values.map((column) => root(column[at])));
  const most = Math.max(1e-9, ...cells.flat().map((cell) => Math.abs(cell ?? 0)));
  const few = thinned(rows, 1500);
  const step = (field, name, tint) => line(few.filter((row) => row[field] !== null), field, name, { color: tint, width: 1, shape: "hv" });
  // One column or one strike alone has no neighbour that says how large a cell is: then its edges are given.
  const x = grid.times.length === 1 ? [time(grid.times[0]), time(grid.times[0] + grid.step)] : grid.times.map((seconds) => time(seconds + grid.step / 2));
  const y = grid.strikes.length === 1 ? [grid.strikes[0] - 1, grid.strikes[0] + 1] : grid.strikes;
  Plotly.react(where, [
    { type: "heatmap", x, y, z: cells, zmin: -most, zmax: most, showscale: false,
      customdata: grid.strikes.map((_, at) => grid.values.map((column) => column[at])),
      colorscale: [[0, colour("negative")], [0.5, colour("card")], [1, colour("positive")]], hovertemplate: "%{y} %{x|%H:%M} %{customdata:,.4s}<extra></extra>" },
    step("major_pos_vol", "major positive", colour("positive")), step("major_neg_vol", "major negative", colour("negative")),
    line(few.filter((row) => row.zero_gamma !== null), "zero_gamma", "zero gamma", { color: colour("flip"), width: 1.5, dash: "dash" }),
    line(few.filter((row) => row.spot !== null), "spot", "spot", { color: colour("spot"), width: 1.5 }),
  ], layout({ xaxis: { type: "date", tickformat: "%H:%M" }, yaxis: { range: prices(grid.strikes, one.spot), tickformat: ",.6~g" } }), config);
  if (!where.dataset.watched) {
    where.dataset.watched = "yes";
    where.on("plotly_relayout", () => {
      range = where.layout.yaxis.autorange ? null : [...where.layout.yaxis.range];
      const ladder = document.getElementById("ladder");
      if (range && ladder.layout) Plotly.relayout(ladder, { "yaxis.range": range });
    });
  }
}

export function drawLadder(where, ladder, one, measure) {
  const strikes = ladder.strikes.map((row) => row.strike);
  const bars = ladder.strikes.map((row) => (measure === "oi" ? row.oi : row.volume));
  const outline = ladder.strikes.map((row) => (measure === "oi" ? row.volume : row.oi));
  const tint = (value) => colour((value ?? 0) < 0 ? "negative" : "positive");
  const traces = [
    { type: "bar", orientation: "h", x: bars, y: strikes, marker: { color: bars.map(tint) }, name: measure === "oi" ? "open interest" : "volume", hovertemplate: "%{y}: %{x:,.4s}<extra>%{fullData.name}</extra>" },
    { type: "bar", orientation: "h", x: outline, y: strikes, marker: { color: "rgba(0,0,0,0)", line: { color: colour("dim"), width: 1 } }, name: measure === "oi" ? "volume" : "open interest", hovertemplate: "%{y}: %{x:,.4s}<extra>%{fullData.name}</extra>" },
    ...["1 min ago", "5 min ago", "10 min ago", "15 min ago", "30 min ago"].map((name, at) => ({
      type: "scatter", mode: "markers", name, x: ladder.strikes.map((row) => row.priors[at]), y: strikes, marker: { size: 5, color: colour("text"), opacity: 0.75 - 0.13 * at },
      hovertemplate: "%{y}: %{x:,.4s}<extra>%{fullData.name}</extra>", visible: measure === "volume",
    })),
  ];
  const level = (value, tint_, dash, text) => (value === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: tint_, width: 1.5, dash }, label: { text, textposition: "end", font: { color: tint_, size: 10 } } }]);
  Plotly.react(where, traces, layout({
    barmode: "overlay", xaxis: { tickformat: ".2s" }, yaxis: { range: prices(strikes, one.spot), tickformat: ",.6~g" },
    shapes: [...level(one.spot, colour("spot"), "solid", "spot"), ...level(one.zero_gamma, colour("flip"), "dash", "zero gamma"), ...level(one.major_pos_vol, colour("positive"), "dot", "major +"), ...level(one.major_neg_vol, colour("negative"), "dot", "major −")],
  }), config);
}

export function drawNet(where, rows) {
  const few = thinned(rows, 1500);
  Plotly.react(where, [
    { ...line(few.filter((row) => row.net_gex_vol !== null), "net_gex_vol", "volume", { color: colour("fresh"), width: 1.5 }), hovertemplate: "volume %{y:,.4s}<extra></extra>" },
    { ...line(few.filter((row) => row.net_gex_oi !== null), "net_gex_oi", "open interest", { color: colour("dim"), width: 1.5 }), hovertemplate: "open interest %{y:,.4s}<extra></extra>" },
  ], layout({ xaxis: { type: "date", tickformat: "%H:%M" }, yaxis: { tickformat: ".2s" }, showlegend: true, legend: { orientation: "h", y: 1.15 } }), config);
}
