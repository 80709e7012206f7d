// Addresses over time: each block a rectangle from its allocation to its free, at its place in its segment; free memory is left open.
class AddressTimeline {
  constructor(timeline, charts, map, onPin) {
    Object.assign(this, { timeline, charts, map, onPin });
    this.canvas = document.getElementById("map-time");
    this.note = document.getElementById("map-time-note");
    this.all = false;
    this.drawn = [];
    this.lives = this.segments();
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("click", (event) => this.onPin(this.moment(event)));
    document.addEventListener("viewchange", () => this.draw());
  }

  // Every segment (or piece of mapped pages) with the events between which it is held.
  segments() {
    const { driver_event, driver_sign, driver_whole, driver_address, driver_bytes } = this.timeline.columns, open = new Map(), found = [];
    for (let at = 0; at < driver_event.length; at++) {
      if (driver_whole[at] === UNKNOWN) continue;
      const address = driver_address[at], bytes = driver_bytes[at];
      if (driver_sign[at] > 0) {
        const held = { address, bytes, start: driver_event[at], stop: this.timeline.n };
        found.push(held);
        open.set(address, held);
      } else if (open.has(address) && open.get(address).bytes === bytes) {
        open.get(address).stop = driver_event[at];
        open.delete(address);
      } else { // pages that were mapped in other pieces: end what lies within
        for (const [start, held] of open) if (start >= address && start + held.bytes <= address + bytes) { held.stop = driver_event[at]; open.delete(start); }
      }
    }
    return found;
  }

  // Ranges of addresses that are held during [lo, hi), sorted and joined; without `all` those in which no block comes or goes are left out.
  ranges(lo, hi) {
    const held = this.lives.filter((s) => s.start < hi && s.stop > lo).sort((a, b) => a.address - b.address), joined = [];
    for (const s of held) {
      const last = joined[joined.length - 1];
      if (last && s.address < last.end) (last.end = Math.max(last.end, s.address + s.bytes)), (last.changes ||= s.start > lo || s.stop < hi);
      else joined.push({ start: s.address, end: s.address + s.bytes, changes: s.start > lo || s.stop < hi });
    }
    const find = (address) => {
      let a = 0, b = joined.length;
      while (a < b) {
        const middle = (a + b) >> 1;
        if (joined[middle].end <= address) a = middle + 1;
        else b = middle;
      }
      return joined[a] && joined[a].start <= address ? joined[a] : null;
    };
    const { born, released, columns } = this.timeline, inside = [];
    for (let storage = 0; storage < this.timeline.storages && born[storage] < hi; storage++) {
      if (released[storage] <= lo) continue;
      const range = find(columns.address[storage]);
      if (!range) continue;
      if (born[storage] >= lo || released[storage] < hi) range.changes = true;
      inside.push([storage, range]);
    }
    const kept = joined.filter((range) => this.all || range.changes);
    let offset = 0;
    for (const range of kept) (range.offset = offset), (offset += range.end - range.start);
    return { kept, total: offset, inside, whole: joined.reduce((sum, range) => sum + range.end - range.start, 0), held };
  }

  draw() {
    const { lo, hi } = this.charts.view, height = 300, [context, width] = this.map.size(this.canvas, height), colours = this.map.colours();
    const { kept, total, inside, whole, held } = this.ranges(lo, hi), narrow = width < 560, left = narrow ? 46 : 56, room = width - left - (narrow ? 6 : 14);
    const from = this.charts.x(lo), to = Math.max(this.charts.x(hi - 1), from + 1e-9), x = (event) => left + (Math.min(Math.max((this.charts.x(event) - from) / (to - from), 0), 1)) * room;
    const y = (offset) => (offset / Math.max(total, 1)) * height;
    this.frame = { left, room, from, to };
    this.drawn = [];
    const place = new Map(kept.map((range) => [range, true]));
    context.fillStyle = colours.free;
    let at = 0;
    for (const s of held) {
      while (at < kept.length && kept[at].end <= s.address) at++;
      const range = kept[at];
      if (range && range.start <= s.address) context.fillRect(x(s.start), y(range.offset + s.address - range.start), Math.max(x(s.stop) - x(s.start), 0.5), Math.max(y(s.bytes) - (y(s.bytes) > 3 ? 0.5 : 0), 0.3));
    }
    const { born, released, columns } = this.timeline;
    for (const [storage, range] of inside) {
      if (!place.has(range)) continue;
      const x0 = x(born[storage]), x1 = x(released[storage]), y0 = y(range.offset + columns.address[storage] - range.start), tall = y(this.timeline.block(storage));
      context.fillStyle = colours.keys[columns.kind_category[columns.kind[storage]]];
      context.fillRect(x0, y0, Math.max(x1 - x0, 0.6), Math.max(tall - (tall > 4 ? 0.5 : 0), 0.3));
      this.drawn.push({ storage, x0, x1: Math.max(x1, x0 + 0.6), y0, y1: y0 + Math.max(tall, 0.3) });
    }
    context.fillStyle = colours.line;
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    context.textAlign = "right";
    const [number, unit] = sizeText(total).split(" "); // on two lines: the margin is the charts', and narrow
    if (total) for (const [text, top] of [["0", 10], [number, height - 16], [unit, height - 3]]) context.fillText(text, left - 6, top);
    document.getElementById("map-time-sub").textContent = total
      ? `The part shown up close, with ${sizeText(total)} of addresses${whole > total ? `; ${sizeText(whole - total)} in segments where nothing changes are left out` : ""}.`
      : "In the part shown up close nothing changes: no block comes or goes.";
    this.note.textContent = "Point at a block to see what it is; click for what was alive at that moment.";
  }

  // The moment under the pointer: the last event at or before it.
  moment(event) {
    const { lo, hi } = this.charts.view, box = this.canvas.getBoundingClientRect(), { left, room, from, to } = this.frame;
    const x = from + (Math.min(Math.max(event.clientX - box.left - left, 0), room) / room) * (to - from);
    let at = Math.floor(this.charts.event(x));
    while (at > lo && this.charts.x(at) > x) at--;
    return Math.min(Math.max(at, lo), hi - 1);
  }

  find(event) {
    const box = this.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    let best = null;
    for (const block of this.drawn) if (block.x0 <= px && px <= block.x1 && block.y0 <= py && py <= block.y1) best = block;
    return best && { block: best, event: this.timeline.born[best.storage] };
  }

  point(event) {
    const at = this.find(event);
    if (!at) return;
    const { storage } = at.block, { timeline } = this, end = timeline.died[storage];
    this.canvas.title = timeline.stack(at.event).join("\n");
    this.note.textContent = `${this.map.words({ storage, bytes: timeline.block(storage) })}; ${at.event < timeline.first ? "from before the recording" : `from event ${timeline.number(at.event)}`} ${end < timeline.n ? `to ${timeline.number(end)}` : "to the end"}.`;
  }
}
