// What was alive at one moment: by category, by layer, the largest storages.
const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const swatch = (key) => `<span class="swatch" style="background:var(--${key})"></span>`;

// Layers as people write them: "0–79", "0–3, 7", "outside".
function layerText(layers) {
  const sorted = [...layers].sort((a, b) => a - b), runs = [];
  for (const layer of sorted.filter((layer) => layer >= 0)) {
    const last = runs[runs.length - 1];
    if (last && last[1] === layer - 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  const words = runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`));
  if (words.length > 3) words.splice(3, words.length, `… ${sorted.filter((layer) => layer >= 0).length} layers`);
  return [...(sorted[0] === -1 ? ["outside"] : []), ...words].join(", ");
}

class MomentPanel {
  constructor(timeline, figures, theme) {
    Object.assign(this, { timeline, figures, theme });
    this.withoutWeights = null; // null: decide by how much they are
  }

  show(event) {
    this.moment = this.timeline.moment(event);
    const named = this.timeline.meta.moments.find((moment) => moment.event === event);
    document.getElementById("moment-title").textContent = named ? named.title : `What is alive after event ${this.timeline.number(event)}`;
    document.getElementById("moment-place").textContent = `Event ${this.timeline.number(event)} of ${this.timeline.number(this.timeline.n)}: ${this.timeline.place(event)}; it ${this.timeline.deed(event)}.`;
    document.getElementById("moment-event").value = event - this.timeline.first;
    const stack = this.timeline.stack(event);
    document.getElementById("moment-stack").hidden = !stack.length;
    document.getElementById("moment-stack-text").textContent = stack.join("\n");
    for (const button of document.querySelectorAll("[data-moment]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.moment) === event));
    }
    this.categories();
    this.largest();
    return this.layers();
  }

  categories() {
    const { moment, timeline } = this;
    const rows = timeline.meta.stack.map(({ key, name }) => ({ key, name, bytes: key === "unsplit-remainder" ? moment.unsplit : moment.byCategory[key] || 0 }));
    const most = Math.max(...rows.map((row) => row.bytes), 1);
    const present = rows.filter((row) => row.bytes > 0).sort((a, b) => b.bytes - a.bytes);
    document.getElementById("moment-strip").innerHTML = rows.filter((row) => row.bytes > 0).map((row) => `<span style="flex:${row.bytes} 0 0;background:var(--${row.key})" title="${row.name} ${sizeText(row.bytes)}"></span>`).join("");
    document.getElementById("moment-categories").innerHTML = present
      .map((row) => `<tr><th scope="row">${swatch(row.key)}${row.name}</th><td class="number">${sizeText(row.bytes)}</td><td class="number soft">${shareText(row.bytes, moment.allocated)}</td><td class="bar"><span style="width:${(100 * row.bytes) / most}%;background:var(--${row.key})"></span></td></tr>`)
      .join("") + `<tr class="total"><th scope="row">allocated</th><td class="number">${sizeText(moment.allocated)}</td><td class="soft" colspan="2">of ${sizeText(moment.reserved)} reserved</td></tr>`;
  }

  largest() {
    const { moment, timeline } = this;
    document.getElementById("moment-largest").closest("table").classList.toggle("flat", !timeline.layered);
    document.getElementById("moment-largest").innerHTML = moment.largest.slice(0, 15).map((group) => {
      const category = timeline.category(group.storage), operator = timeline.meta.operators[timeline.columns.operator[group.birth]];
      const each = group.count > 1 ? `${count(group.count)} × ${sizeText(group.bytes)}` : sizeText(group.bytes);
      const stack = timeline.stack(group.birth);
      return `<tr><th scope="row"${stack.length ? ` title="${escape(stack.join("\n"))}"` : ""}>${swatch(category.key)}${escape(operator || category.name)}</th><td class="number">${sizeText(group.bytes * group.count)}</td><td class="number soft wide">${each}</td><td>${layerText(group.layers)}</td><td class="wide">${phaseText(timeline.span(group.birth).phase) || `event ${timeline.number(group.birth)}`}</td></tr>`;
    }).join("");
    const rest = moment.largest.slice(15).reduce((sum, group) => sum + group.bytes * group.count, 0);
    document.getElementById("moment-rest").textContent = rest ? `${count(moment.largest.length - 15)} other kinds hold ${sizeText(rest)} together.` : "";
  }

  layers() {
    const div = document.getElementById("layers"), spec = this.figures[this.theme].layers, layout = structuredClone(spec.layout);
    const layers = [...this.moment.byLayer.keys()].sort((a, b) => a - b);
    document.getElementById("layers-figure").hidden = !layers.some((layer) => layer >= 0);
    if (document.getElementById("layers-figure").hidden) return Promise.resolve();
    const without = this.withoutWeights ?? this.moment.byCategory.weights > 0.6 * this.moment.allocated;
    document.getElementById("without-weights").checked = without;
    const total = (layer, without) => Object.entries(this.moment.byLayer.get(layer) || {}).reduce((sum, [key, bytes]) => sum + (without && key === "weights" ? 0 : bytes), 0);
    const unit = unitOf(Math.max(...layers.filter((layer) => layer >= 0).map((layer) => total(layer, without))));
    const x = layers.map((layer) => (layer < 0 ? "outside" : `${layer}`)), kept = spec.traces.filter((trace) => !(without && trace.meta.key === "weights"));
    const traces = kept.map((trace) => {
      const bytes = layers.map((layer) => this.moment.byLayer.get(layer)[trace.meta.key] || 0);
      return { ...trace, x, y: bytes.map((value) => (value ? value / unit.size : null)), customdata: bytes.map(sizeText) };
    });
    const narrow = div.clientWidth < 560;
    layout.yaxis.title.text = unit.name;
    layout.margin.l = narrow ? 46 : 56;
    layout.margin.r = narrow ? 6 : 14;
    if (narrow) layout.xaxis.nticks = 7;
    if (layers.length > 40) layout.bargap = 0; // gaps of a fraction of a pixel would show as stripes
    const top = Math.max(...layers.filter((l) => l >= 0).map((layer) => kept.reduce((sum, trace) => sum + (this.moment.byLayer.get(layer)[trace.meta.key] || 0), 0)));
    const outside = kept.reduce((sum, trace) => sum + ((this.moment.byLayer.get(-1) || {})[trace.meta.key] || 0), 0);
    // What lies outside the layers can dwarf them: then its bar is cut and says so.
    if (outside > 4 * top) {
      layout.yaxis.range = [0, (1.5 * top) / unit.size];
      layout.annotations = [{ x: "outside", y: 1, yref: "paper", yanchor: "top", xanchor: "left", xshift: 12, showarrow: false, text: `outside: ${sizeText(outside)} (bar is cut)`, font: { size: 11.5, color: this.figures[this.theme].timeline.ink.soft } }];
    }
    return Plotly.react(div, traces, layout, this.timeline.meta.config);
  }
}
