// The address map: reserved memory in rows, segment after segment by address, each block in its category's colour and free memory left open.
class AddressMap {
  constructor(timeline) {
    this.timeline = timeline;
    this.canvas = document.getElementById("map");
    this.strip = document.getElementById("segment");
    this.note = document.getElementById("segment-note");
    this.only = "all";
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("click", (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  show(event) {
    this.event = event;
    this.map = this.timeline.blockMap(event);
    this.numbers();
    this.draw();
  }

  numbers() {
    const f = this.timeline.fragmentation(this.map, this.event), spare = f.reserved - f.allocated;
    const rows = [
      ["whole segments without a block in use", f.cached, "cached", "empty_cache() gives these back to the driver"],
      ["free blocks in segments that are in use", f.holes, "hole", "they serve requests that fit, and cannot be given back"],
    ];
    if (f.waiting) rows.push(["freed, waiting for another stream", f.waiting, "hole", ""]);
    document.getElementById("spare").textContent = `${sizeText(f.reserved)} reserved, ${sizeText(f.allocated)} allocated: ${sizeText(spare)} (${shareText(spare, f.reserved)}) is held but serves nothing at this moment.`;
    document.getElementById("spare-rows").innerHTML = rows.map(([name, bytes, look, why]) => `<tr><th scope="row"><span class="swatch ${look}"></span>${name}<span class="why">${why}</span></th><td class="number">${sizeText(bytes)}</td><td class="number soft">${shareText(bytes, f.reserved)}</td></tr>`).join("");
    document.getElementById("spare-largest").textContent = f.largest
      ? `The largest of ${count(f.freeBlocks)} free blocks has ${sizeText(f.largest)}: a larger request needs new memory from the driver. ${count(f.segments)} segments, ${count(f.cachedSegments)} of them free.`
      : `No free block in ${count(f.segments)} segments.`;
  }

  shown() {
    return this.map.filter((segment) => this.only === "all" || (segment.blocks.some((block) => block.storage < 0) && (this.only === "holes" || !segment.used)));
  }

  colours() {
    const style = getComputedStyle(document.documentElement), read = (name) => style.getPropertyValue(name).trim();
    const keys = Object.fromEntries(this.timeline.meta.categories.map((category) => [category.number, read(`--${category.key}`)]));
    return { keys, free: read("--free"), line: read("--soft"), paper: read("--paper"), ink: read("--ink") };
  }

  fill(context, block, segment, colours) {
    if (block.storage >= 0) return colours.keys[this.timeline.columns.kind_category[this.timeline.columns.kind[block.storage]]];
    return segment.used ? colours.free : (colours.hatch ??= this.hatch(context, colours));
  }

  hatch(context, colours) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const pen = tile.getContext("2d");
    pen.fillStyle = colours.free;
    pen.fillRect(0, 0, 8, 8);
    pen.strokeStyle = colours.line;
    pen.lineWidth = 1;
    for (const shift of [-8, 0, 8]) pen.stroke(new Path2D(`M${shift} 8L${shift + 8} 0`));
    return context.createPattern(tile, "repeat");
  }

  size(canvas, height) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return [context, width];
  }

  draw() {
    const segments = this.shown(), total = segments.reduce((sum, segment) => sum + segment.bytes, 0);
    this.rows = Math.max(1, Math.min(28, segments.length));
    this.pitch = 15;
    const [context, width] = this.size(this.canvas, this.rows * this.pitch), colours = this.colours();
    this.perRow = Math.max(total / this.rows, 1);
    this.places = [];
    let start = 0;
    const paint = (from, bytes, colour, gap) => {
      for (let done = 0; done < bytes; ) {
        const row = Math.min(Math.floor((from + done) / this.perRow), this.rows - 1), end = row === this.rows - 1 ? total : (row + 1) * this.perRow;
        const piece = Math.max(Math.min(bytes - done, end - from - done), 1), x = ((from + done - row * this.perRow) / this.perRow) * width, w = (piece / this.perRow) * width;
        context.fillStyle = colour;
        context.fillRect(x, row * this.pitch, Math.max(w - (gap && w > 3 ? 0.75 : 0), 0), this.pitch - 2);
        done += piece;
      }
    };
    for (const segment of segments) {
      this.places.push({ start, segment });
      // Neighbours of one colour are painted as one: seams narrower than a pixel would only fade them.
      let run = null;
      for (const block of segment.blocks) {
        const colour = this.fill(context, block, segment, colours);
        if (run && run.colour === colour) run.bytes += block.bytes;
        else {
          if (run) paint(start + run.offset, run.bytes, run.colour, false);
          run = { offset: block.offset, bytes: block.bytes, colour };
        }
      }
      paint(start + run.offset, run.bytes, run.colour, true);
      start += segment.bytes;
    }
    this.total = total;
    this.canvas.setAttribute("aria-label", `Address map of ${segments.length} segments, ${sizeText(total)} together. Arrow keys go from segment to segment.`);
    document.getElementById("map-empty").hidden = segments.length > 0;
    if (segments.length) this.pick(this.places.reduce((best, place) => (this.hole(place.segment) > this.hole(best.segment) ? place : best)));
    else this.note.textContent = "";
  }

  hole(segment) {
    return segment.used ? Math.max(0, ...segment.blocks.filter((block) => block.storage < 0).map((block) => block.bytes)) : 0;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect(), row = Math.floor(((event.clientY - box.top) / box.height) * this.rows);
    const at = (row + (event.clientX - box.left) / box.width) * this.perRow;
    let found = null;
    for (const place of this.places) if (place.start <= at) found = place;
    if (found) this.pick(found, at - found.start);
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !this.places.length) return;
    event.preventDefault();
    this.pick(this.places[Math.min(Math.max(this.places.indexOf(this.picked) + step, 0), this.places.length - 1)]);
  }

  // Shows one segment to its own scale, and in words.
  pick(place, at = -1) {
    this.picked = place;
    const { segment } = place, [context, width] = this.size(this.strip, 26), colours = this.colours();
    for (const block of segment.blocks) {
      const x = (block.offset / segment.bytes) * width, w = (block.bytes / segment.bytes) * width;
      context.fillStyle = this.fill(context, block, segment, colours);
      context.fillRect(x, 0, Math.max(w - (w > 2 ? 1 : 0), 0.5), 26);
    }
    const live = segment.blocks.filter((block) => block.storage >= 0), free = segment.bytes - live.reduce((sum, block) => sum + block.bytes, 0);
    const block = segment.blocks.find((block) => block.offset <= at && at < block.offset + block.bytes);
    const words = [`Segment at 0x${segment.address.toString(16)}, ${sizeText(segment.bytes)}: ${count(live.length)} ${live.length === 1 ? "block" : "blocks"} in use, ${sizeText(free)} free.`];
    if (block) words.push(`Here: ${this.words(block)}.`);
    else if (live.length === 1) words.push(`In use: ${this.words(live[0])}.`);
    this.note.textContent = words.join(" ");
  }

  words(block) {
    if (block.storage < 0) return `${sizeText(block.bytes)} free`;
    const { timeline } = this, birth = timeline.born[block.storage], operator = timeline.meta.operators[timeline.columns.operator[birth]], layer = timeline.columns.layer[birth];
    const category = timeline.category(block.storage).name;
    const name = [category === "unattributed" && operator ? "" : category, operator, layer >= 0 ? `layer ${layer}` : "", phaseText(timeline.span(birth).phase)].filter(Boolean).join(", ");
    return `${sizeText(block.bytes)} for ${name}${block.waiting ? ", freed but waiting for another stream" : ""}`;
  }
}
