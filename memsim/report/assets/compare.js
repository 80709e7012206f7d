// Runs side by side: memory against time, one step overlaid, what is alive at each peak, and the table.
const HUES = {
  light: ["#0b57d0", "#c2410c", "#0f766e", "#a21caf", "#a16207", "#334155", "#be123c", "#4d7c0f"],
  dark: ["#7cacff", "#ff9d5c", "#4fd1c5", "#e58af5", "#f2c94c", "#cbd5e1", "#ff8fa3", "#a6d854"],
};
const DASHES = ["solid", "8px,3px", "2px,2px", "8px,3px,2px,3px"];
// A label in at most so many characters: its middle goes, for what tells labels apart stands at either end.
function shortened(label, most) {
  if (label.length <= most) return label;
  const head = Math.ceil((most - 1) / 2);
  return `${label.slice(0, head)}…${label.slice(label.length - (most - 1 - head))}`;
}
const escapeText = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

class Comparison {
  constructor(columns, meta) {
    this.meta = meta;
    this.cases = meta.cases.map((data, at) => {
      const sum = (column, scale = 1) => {
        const total = new Float64Array(column.length);
        let running = 0;
        for (let i = 0; i < column.length; i++) total[i] = running += column[i] * scale;
        return total;
      };
      const allocated = sum(columns[`allocated${at}`]), seconds = columns[`seconds${at}`];
      return { ...data, at, n: allocated.length, curves: { allocated, reserved: sum(columns[`reserved${at}`]) }, time: seconds ? sum(seconds) : null };
    });
    this.timed = this.cases.every((one) => one.time);
    this.axis = this.timed ? "time" : "events";
    this.curve = meta.curve;
    this.view = null;
    this.unit = unitOf(Math.max(...this.cases.map((one) => one.reserved)));
  }

  hue(one) { return HUES[page.theme][one.at % HUES[page.theme].length]; }
  dash(one) { return DASHES[Math.floor(one.at / HUES.light.length) % DASHES.length]; }
  x(one, event) { return this.axis === "time" ? one.time[event] : event; }
  end() { return Math.max(...this.cases.filter((one) => one.shown).map((one) => this.x(one, one.n - 1)), 1e-9); }

  // The first event at or after x.
  after(one, x) {
    let lo = 0, hi = one.n;
    while (lo < hi) {
      const middle = (lo + hi) >> 1;
      if (this.x(one, middle) < x) lo = middle + 1;
      else hi = middle;
    }
    return lo;
  }

  // Events to draw between two x: of each of `bins` equal parts the first, the highest and the lowest, so that no extreme is lost.
  sample(one, from, to, bins) {
    const curve = one.curves[this.curve], lo = Math.max(0, this.after(one, from) - 1), hi = Math.min(one.n, this.after(one, to) + 1);
    if (hi - lo <= 3 * bins) return Array.from({ length: hi - lo }, (_, i) => lo + i);
    const picked = [];
    let start = lo;
    for (let bin = 1; bin <= bins && start < hi; bin++) {
      const stop = bin === bins ? hi : Math.min(hi, Math.max(this.after(one, from + ((to - from) * bin) / bins), start));
      if (stop === start) continue;
      let top = start, low = start;
      for (let event = start + 1; event < stop; event++) {
        if (curve[event] > curve[top]) top = event;
        if (curve[event] < curve[low]) low = event;
      }
      picked.push(...[...new Set([start, top, low, stop - 1])].sort((a, b) => a - b));
      start = stop;
    }
    return picked;
  }

  base(div) {
    const layout = structuredClone(this.meta.axes[page.theme].layout), narrow = div.clientWidth < 560;
    layout.margin.l = narrow ? 46 : 60;
    layout.margin.r = narrow ? 8 : 24;
    return [layout, this.meta.axes[page.theme].ink, narrow];
  }

  capacity(ink, upright) {
    const at = this.meta.capacity / this.unit.size, across = upright ? { yref: "paper", y0: 0, y1: 1, xref: "x", x0: at, x1: at } : { xref: "paper", x0: 0, x1: 1, yref: "y", y0: at, y1: at };
    return { type: "line", ...across, line: { color: ink.alarm, width: 2, dash: "8px,3px" } };
  }

  against() {
    const div = document.getElementById("against");
    if (!this.cases.some((one) => one.pace)) return Promise.resolve();
    const [layout, ink, narrow] = this.base(div), known = this.cases.filter((one) => one.known);
    layout.hovermode = "closest";
    layout.xaxis.title.text = `peak reserved, ${this.unit.name}`;
    layout.yaxis.title.text = this.meta.paceTitle;
    layout.margin.t = 26;
    layout.margin.l = 64;  // times have more digits than bytes do
    const xs = known.map((one) => one.reserved / this.unit.size), ys = known.map((one) => one.pace), most = Math.max(...xs, (this.meta.capacity || 0) / this.unit.size <= 2.5 * Math.max(...xs) ? (this.meta.capacity || 0) / this.unit.size : 0);
    const spread = Math.max(Math.max(...ys) - Math.min(...ys), 0.08 * Math.max(...ys));
    layout.xaxis.range = [0, 1.12 * most];
    layout.yaxis.range = [Math.max(0, Math.min(...ys) - 0.35 * spread), Math.max(...ys) + 0.35 * spread];
    layout.yaxis.rangemode = "normal";
    const groups = [...new Set(known.map((one) => one.group))].map((group) => known.filter((one) => one.front && one.group === group).sort((a, b) => a.reserved - b.reserved));
    const traces = [
      ...groups.map((front) => ({ type: "scatter", mode: "lines", x: front.map((one) => one.reserved / this.unit.size), y: front.map((one) => one.pace), line: { color: ink.soft, width: 1.5, shape: "linear", dash: "2px,3px" }, hoverinfo: "skip" })),
      {
        type: "scatter", mode: "markers", x: xs, y: ys, hoverinfo: "text",
        text: known.map((one) => `<b>${escapeText(one.label)}</b><br>${sizeText(one.reserved)} reserved, ${one.speed}<br>${one.fits ? "fits" : "does not fit"}${one.front ? ", on the front" : ""}`),
        marker: { opacity: 1, size: known.map((one) => (one.best ? 15 : 11)), color: known.map((one) => (one.fits ? this.hue(one) : ink.paper)), line: { width: 2.5, color: known.map((one) => this.hue(one)) } },
      },
    ];
    layout.shapes = this.meta.capacity && this.meta.capacity / this.unit.size <= layout.xaxis.range[1] ? [this.capacity(ink, true)] : [];
    layout.annotations = layout.shapes.length ? [{ x: this.meta.capacity / this.unit.size, xref: "x", xanchor: this.meta.capacity / this.unit.size > layout.xaxis.range[1] / 2 ? "right" : "left", y: 1, yref: "paper", yanchor: "bottom", text: this.meta.capacityWords, showarrow: false, font: { size: 11.5, color: ink.alarm } }] : [];
    this.labels(known, layout, ink, div);
    return Plotly.react(div, traces, layout, this.meta.config);
  }

  // A label beside each mark where there is room, those that matter first; the rest are left to the pointer.
  labels(known, layout, ink, div) {
    const [left, right] = layout.xaxis.range, [low, high] = layout.yaxis.range;
    const width = Math.max(div.clientWidth - layout.margin.l - layout.margin.r, 1), height = Math.max(div.clientHeight - 70, 1);
    const px = (one) => ((one.reserved / this.unit.size - left) / (right - left)) * width, py = (one) => (1 - (one.pace - low) / (high - low)) * height;
    const taken = known.map((one) => ({ x0: px(one) - 9, x1: px(one) + 9, y0: py(one) - 9, y1: py(one) + 9 }));
    const free = (box) => box.x0 >= 0 && box.x1 <= width + layout.margin.r && box.y0 >= 0 && box.y1 <= height && !taken.some((b) => box.x0 < b.x1 && box.x1 > b.x0 && box.y0 < b.y1 && box.y1 > b.y0);
    for (const one of [...known].sort((a, b) => b.best - a.best || b.front - a.front)) {
      const text = shortened(one.label, 33), wide = 6.9 * text.length + 8;
      const places = [[0, -19], [0, 19], [wide / 2 + 14, 0], [-wide / 2 - 14, 0], [wide / 2, -19], [-wide / 2, -19], [wide / 2, 19], [-wide / 2, 19]];
      const near = (other, dx, dy) => Math.hypot(px(one) + dx - px(other), py(one) + dy - py(other)); // a label belongs to the mark that it is nearest to
      const place = places.find(([dx, dy]) => known.every((other) => near(one, dx, dy) <= near(other, dx, dy)) && free({ x0: px(one) + dx - wide / 2, x1: px(one) + dx + wide / 2, y0: py(one) + dy - 8, y1: py(one) + dy + 8 }));
      if (!place) continue;
      const [dx, dy] = place;
      taken.push({ x0: px(one) + dx - wide / 2, x1: px(one) + dx + wide / 2, y0: py(one) + dy - 8, y1: py(one) + dy + 8 });
      layout.annotations.push({ x: one.reserved / this.unit.size, y: one.pace, xshift: dx, yshift: -dy, text: one.best ? `<b>${escapeText(text)}</b>` : escapeText(text), showarrow: false, bgcolor: ink.paper, borderpad: 0, font: { size: 12.5, color: one.fits ? ink.ink : ink.soft } });
    }
  }

  async overlay() {
    const div = document.getElementById("overlay"), [layout, ink] = this.base(div), shown = this.cases.filter((one) => one.shown);
    const [from, to] = this.view || [0, this.end()], bins = Math.max(120, Math.round(div.clientWidth / 2));
    let top = 0;
    const traces = shown.map((one) => {
      const events = this.sample(one, from, to, bins), y = events.map((event) => one.curves[this.curve][event] / this.unit.size);
      for (const value of y) if (value > top) top = value;
      const phase = (event) => (one.phases.find((p) => p.start <= event && event < p.stop) || { name: "" }).name;
      return {
        type: "scatter", mode: "lines", name: one.label, x: events.map((event) => this.x(one, event)), y, hoverinfo: "text",
        text: events.map((event, i) => `<b>${escapeText(one.label)}</b>: ${y[i].toFixed(2)} ${this.unit.name} ${this.curve}, ${phase(event) ? `${phase(event)}, ` : ""}event ${count(event)}${one.time ? `, ${secondsText(one.time[event])}` : ""}`),
        line: { color: this.hue(one), width: one.best ? 2.4 : 1.5, dash: this.dash(one), shape: "hv" },
      };
    });
    layout.hovermode = "closest";
    layout.dragmode = div.clientWidth < 560 ? false : "zoom";
    layout.xaxis.fixedrange = false;
    layout.xaxis.range = [from, to];
    layout.xaxis.title.text = this.axis === "time" ? "seconds since the step began, estimated" : this.meta.stepped ? "allocator requests since the step began" : "allocator requests, in order";
    layout.yaxis.title.text = this.unit.name;
    layout.margin.t = 14;
    const room = this.meta.capacity ? this.meta.capacity / this.unit.size : 0, near = room && room <= 1.6 * top;
    layout.yaxis.range = [0, 1.06 * Math.max(top, near ? room : 0)];
    layout.shapes = near ? [this.capacity(ink, false)] : [];
    layout.annotations = near ? [{ x: 1, xref: "paper", xanchor: "right", y: room, yref: "y", yanchor: "bottom", text: this.meta.capacityWords, showarrow: false, bgcolor: ink.paper, opacity: 0.9, font: { size: 11.5, color: ink.alarm } }] : [];
    this.busy = true;
    await Plotly.react(div, traces, layout, this.meta.config);
    this.busy = false;
  }

  peaks() {
    const div = document.getElementById("peaks"), [layout, ink] = this.base(div), cases = [...this.cases].reverse();
    div.style.height = `${Math.max(140, 34 * cases.length + 76)}px`;
    const long = Math.max(...cases.map((one) => Math.min(one.label.length, 34)));
    layout.margin.l = Math.min(7.2 * long + 20, 0.42 * div.clientWidth);
    layout.margin.t = 12;
    layout.barmode = "stack";
    layout.bargap = 0.3;
    layout.dragmode = false;
    layout.hovermode = "closest";
    layout.yaxis.type = "category";
    layout.yaxis.title.text = "";
    layout.yaxis.tickvals = cases.map((one) => one.at);
    layout.yaxis.tickmode = "array";
    const letters = Math.max(Math.floor((layout.margin.l - 14) / 7.2), 6);
    layout.yaxis.ticktext = cases.map((one) => escapeText(shortened(one.label, letters)));
    layout.yaxis.tickfont = { size: 12.5, color: ink.ink };
    layout.xaxis.title.text = `${this.unit.name} allocated at the peak`;
    layout.xaxis.showgrid = true;
    const style = getComputedStyle(document.documentElement);
    const traces = this.meta.kinds.map(({ key, name }) => ({
      type: "bar", orientation: "h", name, y: cases.map((one) => one.at), x: cases.map((one) => (one.parts[key] || 0) / this.unit.size),
      marker: { color: style.getPropertyValue(`--${key}`).trim(), line: { width: 0 } }, hoverinfo: "text", textposition: "none",
      text: cases.map((one) => `<b>${escapeText(one.label)}</b><br>${name}: ${sizeText(one.parts[key] || 0)}`),
    }));
    const most = Math.max(...cases.map((one) => one.allocated)) / this.unit.size, room = this.meta.capacity ? this.meta.capacity / this.unit.size : 0, near = room && room <= 1.6 * most;
    layout.xaxis.range = [0, 1.05 * Math.max(most, near ? room : 0)];
    layout.shapes = near ? [this.capacity(ink, true)] : [];
    return Plotly.react(div, traces, layout, this.meta.config);
  }

  draw() {
    for (const key of document.querySelectorAll("[data-key]")) {
      const one = this.cases[Number(key.dataset.key)];
      key.style.borderTopColor = this.hue(one);
      key.style.borderTopStyle = this.dash(one) === "solid" ? "solid" : this.dash(one) === "2px,2px" ? "dotted" : "dashed";
    }
    return Promise.all([this.against(), this.overlay(), this.peaks()]);
  }
}

// Sorts the table by a column: first ascending, then descending.
function sortable(table) {
  for (const button of table.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const column = Number(button.dataset.sort), head = button.closest("th"), down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], value = (row) => Number(row.cells[column].dataset.value);
      body.append(...[...body.rows].sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b))));
    });
  }
}

async function comparison() {
  page.setTheme(page.theme, false);
  page.start();
  if (!("DecompressionStream" in window)) throw new Error("This browser is too old for the figures: it lacks DecompressionStream.");
  const meta = JSON.parse(document.getElementById("meta").textContent);
  const [buffer] = await Promise.all([inflate("data"), page.plotly()]);
  const found = new Comparison(unpack(buffer), meta), on = (id, type, act) => document.getElementById(id).addEventListener(type, act);
  document.getElementById("choices").innerHTML = found.cases.map((one) => `<li><label><input type="checkbox" data-case="${one.at}"${one.shown ? " checked" : ""}> <span class="key" data-key="${one.at}"></span>${escapeText(one.label)}</label></li>`).join("");
  document.getElementById("peaks-legend").innerHTML = meta.kinds.map(({ key, name }) => `<li><span class="swatch" style="background:var(--${key})"></span>${name}</li>`).join("");
  for (const box of document.querySelectorAll("#choices input")) {
    box.addEventListener("change", () => { found.cases[Number(box.dataset.case)].shown = box.checked; found.overlay(); });
  }
  document.getElementById("curve").value = found.curve;
  if (!found.timed) document.getElementById("axis").querySelector('[value="time"]').remove();
  on("axis", "change", (event) => { found.axis = event.target.value; found.view = null; found.overlay(); });
  on("curve", "change", (event) => { found.curve = event.target.value; found.overlay(); });
  const zoom = (factor) => {
    const [lo, hi] = found.view || [0, found.end()], middle = (lo + hi) / 2, half = ((hi - lo) / 2) * factor;
    found.view = [Math.max(0, middle - half), Math.min(found.end(), middle + half)];
    return found.overlay();
  };
  on("zoom-in", "click", () => zoom(0.5));
  on("zoom-out", "click", () => zoom(2));
  on("reset", "click", () => { found.view = null; found.overlay(); });
  sortable(document.getElementById("runs"));
  page.themed.push(() => found.draw());
  await found.draw();
  document.getElementById("overlay").on("plotly_relayout", (change) => {
    const low = change["xaxis.range[0]"], high = change["xaxis.range[1]"];
    if (low === undefined || found.busy) return;
    found.view = [Math.max(0, low), Math.min(high, found.end())];
    found.overlay();
  });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; found.draw(); } });
  window.memsim = { comparison: found, page };
}
