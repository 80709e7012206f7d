// The page of `memsim graph`: what colours mean, views shown or hidden, and a card for the operator that is pointed at or focused.
const card = {
  owner: null,

  show(node) {
    const box = document.getElementById("card"), section = node.closest("section");
    const key = node.dataset.key, rows = this.meta[section.id][key];
    box.replaceChildren(element("b", key), list(rows));
    box.hidden = false;
    if (this.owner !== node) this.light(this.owner, false);
    this.owner = node;
    this.light(node, true);
    this.place();
  },

  // Beside its operator, or on the other side where there is no room.
  place() {
    const box = document.getElementById("card");
    const at = this.owner.querySelector(".box").getBoundingClientRect(), gap = 10;
    const right = at.right + gap + box.offsetWidth <= innerWidth - 8;
    box.style.left = `${right ? at.right + gap : Math.max(8, at.left - gap - box.offsetWidth)}px`;
    box.style.top = `${Math.max(8, Math.min(at.top, innerHeight - box.offsetHeight - 8))}px`;
  },

  hide() {
    this.light(this.owner, false);
    this.owner = null;
    document.getElementById("card").hidden = true;
  },

  light(node, on) {
    if (!node) return;
    const key = node.dataset.key.split(" ")[0];
    for (const edge of node.ownerSVGElement.querySelectorAll(".edge")) {
      if (edge.dataset.from === key || edge.dataset.to === key) edge.classList.toggle("near", on);
    }
  },
};

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function list(rows) {
  const made = document.createElement("dl");
  for (const [heading, lines] of rows) made.append(element("dt", heading), ...lines.map((line) => element("dd", line)));
  return made;
}

// One operator of a drawing is in the tab order; the arrow keys go on from it.
function keys(svg) {
  const nodes = [...svg.querySelectorAll(".node")];
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  nodes.forEach((node, i) => {
    node.addEventListener("mouseenter", () => card.show(node));
    node.addEventListener("mouseleave", () => { if (document.activeElement !== node) card.hide(); });
    node.addEventListener("focus", () => {
      for (const other of nodes) other.tabIndex = other === node ? 0 : -1;
      card.show(node);
    });
    node.addEventListener("blur", () => card.hide());
    node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") card.hide();
      if (!(event.key in step) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const next = nodes[Math.min(Math.max(i + step[event.key], 0), nodes.length - 1)];
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
      card.show(next);
    });
  });
}

async function graphs() {
  page.setTheme(page.theme, false);
  page.start();
  card.meta = JSON.parse(document.getElementById("meta").textContent);
  document.querySelectorAll(".graph svg").forEach(keys);
  const selects = [...document.querySelectorAll("select.by")], checks = [...document.querySelectorAll("input.views")];
  const moved = () => { if (card.owner && card.owner === document.activeElement) card.place(); else card.hide(); };
  const apply = (by, views) => {
    card.hide();
    for (const select of selects) select.value = by;
    for (const check of checks) check.checked = views;
    for (const section of document.querySelectorAll("section")) section.dataset.by = by;
    for (const graph of document.querySelectorAll(".graph")) { graph.dataset.by = by; graph.classList.toggle("all", views); }
  };
  for (const select of selects) select.addEventListener("change", () => apply(select.value, checks[0].checked));
  for (const check of checks) check.addEventListener("change", () => apply(selects[0].value, check.checked));
  for (const graph of document.querySelectorAll(".graph")) graph.addEventListener("scroll", moved);
  addEventListener("scroll", moved);
  addEventListener("keydown", (event) => { if (event.key === "Escape") card.hide(); });
  apply("keeps", false); // a browser may restore what was chosen before a reload
  window.memsim = { page, card };
}
