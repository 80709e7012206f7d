// What every page has: theme, copying, printing. And the start of the report.
const page = {
  themed: [], // called with the new theme
  get theme() { return document.documentElement.dataset.theme; },

  setTheme(theme, keep = true) {
    document.documentElement.dataset.theme = theme;
    if (keep) try { localStorage.setItem("memsim-theme", theme); } catch { /* a page may be barred from storage */ }
    const button = document.getElementById("theme");
    button.textContent = theme === "dark" ? "Light theme" : "Dark theme";
    return Promise.all(this.themed.map((draw) => draw(theme)));
  },

  start() {
    document.getElementById("theme").addEventListener("click", () => this.setTheme(this.theme === "dark" ? "light" : "dark"));
    for (const button of document.querySelectorAll("[data-copy]")) {
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      });
    }
    let before = null;
    window.addEventListener("beforeprint", () => { before = this.theme; this.setTheme("light", false); });
    window.addEventListener("afterprint", () => this.setTheme(before, false));
  },

  async plotly() {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await inflate("plotly"));
    document.head.append(script);
  },
};

// A page without figures.
async function plain() {
  page.setTheme(page.theme, false);
  page.start();
}

async function report() {
  page.setTheme(page.theme, false);
  page.start();
  if (!("DecompressionStream" in window)) throw new Error("This browser is too old for the figures: it lacks DecompressionStream.");
  const meta = JSON.parse(document.getElementById("meta").textContent);
  const [buffer] = await Promise.all([inflate("data"), page.plotly()]);
  const timeline = new Timeline(unpack(buffer), meta);
  const charts = new Charts(timeline, meta.figures, page.theme, pin);
  const panel = new MomentPanel(timeline, meta.figures, page.theme), map = new AddressMap(timeline);

  const over = new AddressTimeline(timeline, charts, map, (event) => pin(event));

  async function pin(event, move = false) {
    event = Math.min(Math.max(Math.round(event), timeline.first), timeline.n - 1);
    if (move && !(charts.view.lo <= event && event < charts.view.hi)) {
      const half = (charts.view.hi - charts.view.lo) / 2;
      charts.pinned = event;
      await charts.show(event - half, event + half);
    } else await charts.pin(event);
    map.show(event);
    await panel.show(event);
  }

  const on = (id, type, act) => document.getElementById(id).addEventListener(type, act);
  on("zoom-in", "click", () => charts.zoom(0.5));
  on("zoom-out", "click", () => charts.zoom(2));
  on("pan-left", "click", () => charts.pan(-0.5));
  on("pan-right", "click", () => charts.pan(0.5));
  on("leave-out", "change", (event) => { charts.leaveOut = event.target.checked; charts.draw(); });
  on("without-weights", "change", (event) => { panel.withoutWeights = event.target.checked; panel.layers(); });
  on("moment-event", "change", (event) => pin(Number(event.target.value) + timeline.first, true));
  on("moment-before", "click", () => pin(panel.moment.event - 1, true));
  on("moment-after", "click", () => pin(panel.moment.event + 1, true));
  on("axis", "change", (event) => { charts.axis = event.target.value; over.draw(); charts.draw(); });
  if (timeline.time) document.getElementById("axis-choice").hidden = false;
  on("map-time-all", "change", (event) => { over.all = event.target.checked; over.draw(); });
  on("map-only", "change", (event) => { map.only = event.target.value; map.draw(); });
  for (const button of document.querySelectorAll("[data-moment]")) button.addEventListener("click", () => pin(Number(button.dataset.moment), true));
  goTo(charts, timeline);
  page.themed.push((theme) => { charts.theme = panel.theme = theme; map.draw(); over.draw(); return Promise.all([charts.draw(), panel.layers()]); });
  await charts.start();
  map.show(charts.pinned);
  over.draw();
  await panel.show(charts.pinned);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; charts.draw(); panel.layers(); map.draw(); over.draw(); } });
  window.memsim = { timeline, charts, panel, map, over, page };
}

// The three menus that say which part the close-up shows: a step, a phase of it, a layer of that.
function goTo(charts, timeline) {
  const [step, phase, layer] = ["go-step", "go-phase", "go-layer"].map((id) => document.getElementById(id));
  const move = () => {
    const spans = timeline.meta.spans.filter((span) => {
      const [number, kind] = span.phase.includes("/") ? span.phase.split("/") : [span.phase, ""];
      return (step.value === "" || number === step.value) && (phase.value === "" || kind === phase.value);
    });
    if (!spans.length) return;
    let lo = spans[0].start, hi = spans[spans.length - 1].stop;
    if (layer.value !== "") {
      const wanted = Number(layer.value), { layer: of } = timeline.columns;
      const inside = (event) => of[event] === wanted && spans.some((span) => span.start <= event && event < span.stop);
      let first = lo, last = hi - 1;
      while (first < hi && !inside(first)) first++;
      while (last > first && !inside(last)) last--;
      if (first < hi) (lo = first), (hi = last + 1);
    }
    return charts.show(lo, hi);
  };
  for (const menu of [step, phase, layer]) menu.addEventListener("change", move);
  document.getElementById("reset").addEventListener("click", () => {
    step.value = timeline.meta.homeStep;
    phase.value = layer.value = "";
    charts.leaveOut = null;
    charts.show(charts.home.lo, charts.home.hi);
  });
}

function failed(error) {
  const note = document.getElementById("failed");
  note.hidden = false;
  note.textContent = `The figures could not be drawn: ${error.message}`;
}
