const LEAST_WIDTH = 3; // pixels that a spike keeps, however short it lasts
const PROMINENT = 0.03; // of the height drawn: what stands out by less is no spike

// The two timelines: the whole run from zero, and a part of it up close. Both draw the same traces over a range of events.
const SHORT = { forward: "fwd", backward: "bwd", optimizer: "opt" };

class Charts {
  constructor(timeline, figures, theme, onPin) {
    Object.assign(this, { timeline, figures, theme, onPin });
    this.whole = document.getElementById("overview");
    this.close = document.getElementById("closeup");
    this.pinned = timeline.meta.moments[0].event;
    this.home = timeline.meta.home;
    this.view = this.home;
    this.leaveOut = null; // null: decide by what the view shows
    this.axis = "events";
    this.drawnEvents = new Map(); // by chart: the event of each point
  }

  // Where an event lies on the axis, and the event that lies there.
  x(event) { return this.axis === "time" ? this.timeline.time[Math.min(Math.max(Math.floor(event), 0), this.timeline.n - 1)] : event - this.timeline.first; }

  middle(a, b) { return this.event((this.x(a) + this.x(b)) / 2); }

  event(x) {
    if (this.axis !== "time") return x + this.timeline.first;
    let lo = 0, hi = this.timeline.n - 1;
    while (lo < hi) {
      const middle = (lo + hi) >> 1;
      if (this.timeline.time[middle] < x) lo = middle + 1;
      else hi = middle;
    }
    return lo;
  }

  async start() {
    await this.draw();
    this.whole.on("plotly_relayout", (change) => this.follow(change, this.whole));
    this.close.on("plotly_relayout", (change) => this.follow(change, this.close));
    for (const div of [this.whole, this.close]) div.on("plotly_click", (click) => this.onPin(this.drawnEvents.get(div)[click.points[0].pointIndex]));
  }

  // A range dragged in either chart is what the close-up shows.
  follow(change, div) {
    const low = change["xaxis.range[0]"], high = change["xaxis.range[1]"];
    if (low === undefined || this.busy) return;
    this.show(this.event(low), this.event(high));
    if (div === this.whole) this.close.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  show(low, high) {
    const { n, first } = this.timeline, least = Math.min(20, n - first);
    let lo = Math.floor(Math.max(first, low)), hi = Math.ceil(Math.min(n, high));
    if (hi - lo < least) {
      lo = Math.max(first, Math.min(Math.floor((lo + hi - least) / 2), n - least));
      hi = lo + least;
    }
    this.view = { lo, hi };
    document.dispatchEvent(new CustomEvent("viewchange", { detail: this.view }));
    return this.draw();
  }

  zoom(factor) {
    const { lo, hi } = this.view, middle = this.x(this.pinned >= lo && this.pinned < hi ? this.pinned : (lo + hi) / 2);
    return this.show(this.event(middle - (middle - this.x(lo)) * factor), this.event(middle + (this.x(hi) - middle) * factor));
  }

  pan(fraction) {
    const { lo, hi } = this.view, width = this.x(hi) - this.x(lo), end = this.x(this.timeline.n);
    const from = Math.min(Math.max(this.x(this.timeline.first), this.x(lo) + width * fraction), end - width);
    return this.show(this.event(from), this.event(from + width));
  }

  pin(event) {
    this.pinned = event;
    return this.draw();
  }

  async draw() {
    this.busy = true;
    const { lo, hi } = this.view;
    const base = this.base(lo, hi);
    await this.drawWhole();
    await Plotly.react(this.close, ...this.figure(this.close, lo, hi, base, null));
    this.busy = false;
    document.getElementById("closeup-note").textContent = base.total
      ? `Left out: ${sizeText(base.total)} that is held from the first to the last event shown (${base.words}). The vertical axis counts what comes on top.`
      : "The vertical axis starts at zero.";
    document.getElementById("leave-out").checked = base.total > 0;
  }

  // The whole run's curves change only with theme and width; what moves over them is cheap.
  drawWhole() {
    const look = `${this.theme} ${this.axis} ${this.whole.clientWidth}`, [traces, layout, config] = this.figure(this.whole, this.timeline.first, this.timeline.n, null, this.view, this.drawn === look);
    if (this.drawn === look) return Plotly.relayout(this.whole, { shapes: layout.shapes, annotations: layout.annotations, "xaxis.range": layout.xaxis.range });
    this.drawn = look;
    return Plotly.react(this.whole, traces, layout, config);
  }

  // What is held throughout [lo, hi), by category; nothing where that is asked for, or where it is little beside the rest.
  base(lo, hi) {
    const least = {}, { curves, allocated } = this.timeline;
    let total = 0, top = 0;
    for (const key of Object.keys(curves)) {
      let low = Infinity;
      for (let event = lo; event < hi; event++) if (curves[key][event] < low) low = curves[key][event];
      total += least[key] = low;
    }
    for (let event = lo; event < hi; event++) if (allocated[event] > top) top = allocated[event];
    if (!(this.leaveOut ?? total > 0.6 * top)) return { least: {}, total: 0, words: "" };
    const names = Object.fromEntries(this.timeline.meta.categories.map((category) => [category.key, category.name]));
    const words = Object.entries(least).filter(([, bytes]) => bytes >= 0.01 * total).sort((a, b) => b[1] - a[1]);
    return { least, total, words: words.map(([key, bytes]) => `${names[key] || "unsplit remainder"} ${sizeText(bytes)}`).join(", ") };
  }

  figure(div, lo, hi, base, selection, marksOnly = false) {
    const { timeline } = this, spec = this.figures[this.theme].timeline, narrow = div.clientWidth < 560;
    const events = timeline.sample(lo, hi, Math.max(150, Math.round(div.clientWidth / 2.5)));
    const at = Array.from(events), least = base ? base.least : {}, total = base ? base.total : 0;
    let top = 0;
    for (const event of events) top = Math.max(top, timeline.reserved[event]);
    const unit = unitOf(top - total), x = marksOnly ? [] : this.widened(at, lo, hi, top - total, div);
    const values = (curve, floor) => at.map((event) => (curve[event] - floor) / unit.size);
    const traces = marksOnly ? [] : spec.traces.map((trace) => {
      const key = trace.meta.key;
      if (key === "reserved") return { ...trace, x, y: values(timeline.reserved, total) };
      if (key === "allocated") return { ...trace, x, y: values(timeline.allocated, total), text: at.map((event) => this.label(event)) };
      return { ...trace, x, y: values(timeline.curves[key], least[key] || 0) };
    });
    const layout = structuredClone(spec.layout);
    layout.dragmode = narrow ? false : "zoom"; // on a phone a finger scrolls the page; the buttons zoom
    if (!marksOnly) this.drawnEvents.set(div, at);
    layout.xaxis.range = this.axis === "time" ? [this.x(lo), Math.max(this.x(hi - 1), this.x(lo) + 1e-6)] : [this.x(lo), this.x(Math.max(hi - 1, lo + 1))];
    if (this.axis === "time") Object.assign(layout.xaxis, { tickformat: "", title: { ...layout.xaxis.title, text: "seconds from the first step's start, estimated" } });
    const marks = this.marks(lo, hi, { top, floor: total, unit }, spec.ink, div, selection);
    layout.yaxis.range = [0, (1.06 * (marks.top - total)) / unit.size];
    layout.yaxis.title.text = total ? `${unit.name} above ${sizeText(total)}` : unit.name;
    layout.shapes = marks.shapes;
    layout.annotations = marks.annotations;
    if (narrow) layout.xaxis.nticks = 4;
    layout.margin.l = narrow ? 46 : 56;
    layout.margin.r = narrow ? 6 : 14;
    return [traces, layout, this.timeline.meta.config];
  }

  // Where each drawn event lies: a spike of a few events among thousands keeps a visible width, and what follows it within that gives way.
  widened(at, lo, hi, height, div) {
    const { allocated } = this.timeline, x = at.map((event) => this.x(event));
    const pixel = Math.max(this.x(hi - 1) - this.x(lo), 1e-9) / Math.max(div.clientWidth - 76, 100), width = LEAST_WIDTH * pixel;
    const real = x.slice();
    for (let i = 0; i < at.length; i++) {
      const rises = i === 0 ? 0 : allocated[at[i]] - allocated[at[i - 1]];
      if (rises < PROMINENT * height) continue;
      let end = i + 1; // the first drawn event that is clearly below
      while (end < at.length && real[end] < x[i] + width && allocated[at[end]] >= allocated[at[i]] - PROMINENT * height) end++;
      if (end === at.length || real[end] >= x[i] + width) continue;
      for (let k = end; k < at.length && x[k] < x[i] + width && allocated[at[k]] <= allocated[at[i]]; k++) x[k] = x[i] + width;
    }
    for (let i = 1; i < x.length; i++) x[i] = Math.max(x[i], x[i - 1]);
    return x;
  }

  label(event) {
    const { timeline } = this, size = (curve) => sizeText(curve[event]);
    const when = timeline.time ? ` (${secondsText(timeline.time[event])})` : "";
    const callers = timeline.stack(event).filter((frame) => /:\d+ /.test(frame)).slice(0, 8).map((frame) => `<br>  ${escape(frame.replace(/^.*[\\/](?=[^\\/]*:\d+ )/, ""))}`);
    return `<b>event ${timeline.number(event)}</b>${when}: ${escape(timeline.place(event))}<br>${timeline.deed(event)}<br>allocated ${size(timeline.allocated)}, reserved ${size(timeline.reserved)}${callers.join("")}`;
  }

  // Phases as a ribbon above the plot, the device's capacity, out of memory, the pinned moment, and the part that the close-up shows.
  marks(lo, hi, { top, floor, unit }, ink, div, selection) {
    const shapes = [], annotations = [], { meta } = this.timeline, width = Math.max(div.clientWidth - 76, 100);
    const pixels = (a, b) => ((this.x(b) - this.x(a)) / Math.max(this.x(hi) - this.x(lo), 1e-9)) * width;
    const text = (x, y, words, more = {}) => annotations.push({ x: this.x(x), y, xref: "x", yref: "paper", text: words, showarrow: false, font: { size: 11, color: ink.soft }, ...more });
    const bar = (a, b, y0, y1, fill) => shapes.push({ type: "rect", xref: "x", yref: "paper", x0: this.x(a), x1: this.x(b), y0, y1, fillcolor: fill, line: { width: 0 }, layer: "above" });
    const dot = 1 / (div.clientHeight - 78 || 200); // of the plot's height a pixel
    let shade = 0;
    for (const step of this.steps(lo, hi).filter((step) => phaseText(step.name))) {
      bar(step.start, step.stop, 1 + 17 * dot, 1 + 31 * dot, shade++ % 2 ? ink.band2 : ink.band);
      const room = pixels(step.start, step.stop);
      if (room > 18) text(this.middle(step.start, step.stop), 1 + 24 * dot, room > 7 * step.name.length ? step.name : step.name.startsWith("step ") ? step.name.slice(5) : "", { yanchor: "middle", font: { size: 11, color: ink.ink } });
      if (step.start > lo) shapes.push({ type: "line", xref: "x", yref: "paper", x0: this.x(step.start), x1: this.x(step.start), y0: 0, y1: 1 + 31 * dot, line: { color: ink.soft, width: 1, dash: "1px,3px" } });
    }
    shade = 0;
    for (const span of meta.spans) {
      const a = Math.max(span.start, lo), b = Math.min(span.stop, hi), kind = span.phase.split("/").pop();
      if (a >= b || !span.phase.includes("/")) continue;
      bar(a, b, 1 + 2 * dot, 1 + 16 * dot, shade++ % 2 ? ink.band2 : ink.band);
      const room = pixels(a, b), words = room > 9 * kind.length ? kind : SHORT[kind] || kind.slice(0, 3);
      if (room > 7.5 * words.length) text(this.middle(a, b), 1 + 9 * dot, words, { yanchor: "middle" });
    }
    const seen = meta.capacity && meta.capacity <= floor + (selection ? 2.5 : 1.6) * (top - floor);
    if (meta.capacity && selection && !seen) annotations.push({ x: 0, xref: "paper", xanchor: "left", y: 0.99, yref: "paper", yanchor: "top", text: `${meta.capacityWords}: far above`, showarrow: false, bgcolor: ink.paper, opacity: 0.9, font: { size: 11.5, color: ink.alarm } });
    if (seen) {
      top = Math.max(top, meta.capacity);
      const y = (meta.capacity - floor) / unit.size;
      if (y > 0) {
        const line = { type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: y, y1: y };
        shapes.push({ ...line, line: { color: ink.paper, width: 4.5 } }, { ...line, line: { color: ink.alarm, width: 2, dash: "8px,3px" } });
        annotations.push({ x: 0, xref: "paper", xanchor: "left", y, yref: "y", yanchor: y > 0.9 * (top - floor) / unit.size ? "top" : "bottom", text: meta.capacityWords, showarrow: false, bgcolor: ink.paper, opacity: 0.9, font: { size: 11.5, color: ink.alarm } });
      }
    }
    const { oom } = meta;
    if (oom && oom.event >= lo && oom.event < hi) {
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: this.x(oom.event), x1: this.x(oom.event), y0: 0, y1: 1, line: { color: ink.alarm, width: 2 } });
      const left = this.x(oom.event) > (this.x(lo) + this.x(hi)) / 2, words = selection ? "out of memory" : oom.words;
      annotations.push({ x: this.x(oom.event), xref: "x", xanchor: left ? "right" : "left", y: 0.98, yref: "paper", yanchor: "top", align: "left", text: words, showarrow: false, bgcolor: ink.paper, bordercolor: ink.alarm, borderpad: 4, xshift: left ? -5 : 5, font: { size: 12, color: ink.alarm } });
    }
    if (this.pinned >= lo && this.pinned < hi) {
      const y = (this.timeline.allocated[this.pinned] - floor) / unit.size;
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: this.x(this.pinned), x1: this.x(this.pinned), y0: 0, y1: 1, line: { color: ink.mark, width: 1 } });
      const right = this.x(this.pinned) > (this.x(lo) + this.x(hi)) / 2, crowded = oom && Math.abs(pixels(oom.event, this.pinned)) < 320 && !selection;
      annotations.push({ x: this.x(this.pinned), xref: "x", y, yref: "y", text: sizeText(this.timeline.allocated[this.pinned]), showarrow: true, arrowhead: 0, arrowcolor: ink.mark, ax: right ? -48 : 48, ay: selection ? (y < 0.18 * (top - floor) / unit.size ? -26 : 26) : crowded ? 60 : -18, bgcolor: ink.paper, bordercolor: ink.mark, borderpad: 3, font: { size: 11.5, color: ink.ink } });
    }
    if (selection && (selection.lo > this.timeline.first || selection.hi < this.timeline.n)) {
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: this.x(selection.lo), x1: this.x(selection.hi), y0: 0, y1: 1, fillcolor: "rgba(128,140,160,0.14)", line: { color: ink.soft, width: 1.5 } });
    }
    return { shapes, annotations, top };
  }

  // Steps (and what lies outside of them) within [lo, hi).
  steps(lo, hi) {
    const found = [];
    for (const span of this.timeline.meta.spans) {
      const name = span.phase.includes("/") ? `step ${span.phase.split("/")[0]}` : span.phase, last = found[found.length - 1];
      if (last && last.name === name) last.stop = span.stop;
      else found.push({ name, start: span.start, stop: span.stop });
    }
    return found.map((step) => ({ ...step, start: Math.max(step.start, lo), stop: Math.min(step.stop, hi) })).filter((step) => step.start < step.stop);
  }
}
