// The exact timeline, unpacked from the page: curves after each event, lifespans of storages, and what any moment looked like.
const GIB = 2 ** 30, MIB = 2 ** 20, KIB = 2 ** 10;
const NOTHING = -2, ALLOC = -1, UNKNOWN = 2;

function gib(bytes, unit = true) {
  const value = bytes / GIB, size = Math.abs(value);
  const text = value.toFixed(size >= 99.95 ? 1 : size >= 0.995 ? 2 : 3);
  return unit ? `${text} GiB` : text;
}

function sizeText(bytes) {
  if (Math.abs(bytes) >= GIB) return gib(bytes);
  if (Math.abs(bytes) >= MIB) return `${(bytes / MIB).toFixed(1)} MiB`;
  if (Math.abs(bytes) >= KIB) return `${(bytes / KIB).toFixed(1)} KiB`;
  return bytes === 1 ? "1 byte" : `${bytes} bytes`;
}

// The unit of an axis by the largest that it shows.
function unitOf(bytes) {
  return bytes >= 0.95 * GIB ? { size: GIB, name: "GiB" } : bytes >= 0.95 * MIB ? { size: MIB, name: "MiB" } : { size: KIB, name: "KiB" };
}

function shareText(part, whole) {
  if (whole <= 0 || part <= 0) return "0 %";
  const percent = (100 * part) / whole;
  return percent < 0.1 ? "<0.1 %" : `${percent.toFixed(percent < 9.95 ? 1 : 0)} %`;
}

function secondsText(seconds) {
  if (seconds >= 9.995) return `${seconds.toFixed(1)} s`;
  return seconds >= 0.9995 ? `${seconds.toFixed(2)} s` : `${(1000 * seconds).toFixed(seconds >= 0.00995 ? 0 : 2)} ms`;
}

const count = (number) => number.toLocaleString("en-US");

function phaseText(phase) {
  if (phase === "trace") return ""; // a recording names no phases
  if (phase === "before") return "before the recording";
  const [step, kind] = phase.split("/");
  return kind ? `step ${step} ${kind}` : phase;
}

async function inflate(id) {
  const text = document.getElementById(id).textContent.trim();
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

function unpack(buffer) {
  const types = {
    uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
  };
  const head = new DataView(buffer).getUint32(0, true);
  const columns = {};
  for (const { name, type, length, offset } of JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, head)))) {
    columns[name] = new types[type](buffer, 4 + head + offset, length);
  }
  return columns;
}

class Timeline {
  constructor(columns, meta) {
    this.columns = columns;
    this.meta = meta;
    this.n = columns.code.length;
    this.storages = columns.kind.length;
    this.first = meta.first; // events before it rebuild the state in which a recording began, and are never shown
    this.layered = columns.layer.some((layer) => layer >= 0);
    this.keys = meta.categories.map((category) => category.key);
    this.live();
    this.hold();
    this.clock();
  }

  // Lifespans and the curves of what is alive: born <= event < died.
  live() {
    const { code, kind, kind_bytes, kind_block, kind_category, late_storage, late_event } = this.columns;
    const slot = new Int8Array(256).fill(-1);
    this.meta.categories.forEach((category, at) => (slot[category.number] = at));
    const curves = this.keys.map(() => new Float64Array(this.n));
    const running = new Float64Array(this.keys.length);
    this.born = new Int32Array(this.storages);
    this.died = new Int32Array(this.storages).fill(this.n);
    this.subject = new Int32Array(this.n).fill(-1); // the storage that an event is about
    this.allocated = new Float64Array(this.n);
    const unsplit = new Float64Array(this.n);
    let next = 0, allocated = 0, requested = 0;
    for (let event = 0; event < this.n; event++) {
      const what = code[event];
      if (what !== NOTHING) {
        const storage = what === ALLOC ? next++ : next - 1 - what;
        const sign = what === ALLOC ? 1 : -1, of = kind[storage];
        (what === ALLOC ? this.born : this.died)[storage] = event;
        this.subject[event] = storage;
        running[slot[kind_category[of]]] += sign * kind_bytes[of];
        requested += sign * kind_bytes[of];
        allocated += sign * kind_block[of];
      }
      for (let at = 0; at < running.length; at++) curves[at][event] = running[at];
      this.allocated[event] = allocated;
      unsplit[event] = allocated - requested;
    }
    this.released = this.died.slice();
    late_storage.forEach((storage, at) => (this.released[storage] = late_event[at]));
    this.curves = Object.fromEntries(this.keys.map((key, at) => [key, curves[at]]));
    this.curves["unsplit-remainder"] = unsplit;
  }

  // What is held from the driver.
  hold() {
    const { driver_event, driver_sign, driver_bytes } = this.columns;
    this.reserved = new Float64Array(this.n);
    let at = 0, reserved = 0;
    for (let event = 0; event < this.n; event++) {
      for (; at < driver_event.length && driver_event[at] <= event; at++) reserved += driver_sign[at] * driver_bytes[at];
      this.reserved[event] = reserved;
    }
  }

  // Seconds from the first step's start, by estimate; null where nobody knows.
  clock() {
    const { seconds } = this.columns;
    this.time = seconds ? new Float64Array(this.n) : null;
    let now = 0;
    if (seconds) for (let event = 0; event < this.n; event++) this.time[event] = now += seconds[event];
  }

  bytes(storage) { return this.columns.kind_bytes[this.columns.kind[storage]]; }
  block(storage) { return this.columns.kind_block[this.columns.kind[storage]]; }

  category(storage) {
    const number = this.columns.kind_category[this.columns.kind[storage]];
    return this.meta.categories.find((category) => category.number === number);
  }

  span(event) { return this.meta.spans.find((span) => span.start <= event && event < span.stop); }

  // An event's number as people read it: counted from the first that is shown.
  number(event) { return count(event - this.first); }

  // The stack of an event, the innermost frame first; empty where none was recorded.
  stack(event) {
    const at = this.columns.stack ? this.columns.stack[event] : -1;
    return at < 0 ? [] : this.meta.stacks[at].map((frame) => this.meta.frames[frame]);
  }

  place(event) {
    const words = [phaseText(this.span(event).phase)].filter(Boolean);
    if (this.columns.layer[event] >= 0) words.push(`layer ${this.columns.layer[event]}`);
    const operator = this.meta.operators[this.columns.operator[event]];
    return (operator ? [...words, operator] : words).join(", ") || "no place recorded";
  }

  // What an event does: "allocates 594.0 MiB (scratch)".
  deed(event) {
    const storage = this.subject[event];
    if (storage < 0) return this.meta.oom && this.meta.oom.event === event ? "fails to allocate" : "changes no memory";
    const name = this.category(storage).name, what = this.columns.code[event] === ALLOC ? "allocates" : "frees";
    return `${what} ${sizeText(this.bytes(storage))}${name === "unattributed" ? "" : ` (${name})`}`;
  }

  // Events to draw for [lo, hi): of each of `bins` parts its highest and lowest allocated and highest reserved, so every extreme stays and every point is real.
  sample(lo, hi, bins) {
    if (hi - lo <= 4 * bins) return Int32Array.from({ length: hi - lo }, (_, i) => lo + i);
    const picked = [];
    const { allocated, reserved } = this;
    for (let bin = 0; bin < bins; bin++) {
      const from = lo + Math.floor(((hi - lo) * bin) / bins), to = lo + Math.floor(((hi - lo) * (bin + 1)) / bins);
      let top = from, low = from, held = from;
      for (let event = from + 1; event < to; event++) {
        if (allocated[event] > allocated[top]) top = event;
        if (allocated[event] < allocated[low]) low = event;
        if (reserved[event] > reserved[held]) held = event;
      }
      picked.push(...[...new Set([from, top, low, held])].sort((a, b) => a - b));
    }
    picked.push(hi - 1);
    return Int32Array.from([...new Set(picked)]);
  }

  // Sums over what is alive just after an event: by category, by layer, and storages of one kind together, largest first.
  moment(event) {
    const byCategory = Object.fromEntries(this.keys.map((key) => [key, this.curves[key][event]]));
    const byLayer = new Map(), groups = new Map();
    for (let storage = 0; storage < this.storages && this.born[storage] <= event; storage++) {
      if (this.died[storage] <= event) continue;
      const birth = this.born[storage], layer = this.columns.layer[birth];
      const key = this.category(storage).key, bytes = this.bytes(storage);
      if (!byLayer.has(layer)) byLayer.set(layer, {});
      byLayer.get(layer)[key] = (byLayer.get(layer)[key] || 0) + bytes;
      const name = `${this.columns.operator[birth]}/${this.span(birth).phase}/${key}/${bytes}`;
      let group = groups.get(name);
      if (!group) groups.set(name, (group = { birth, storage, bytes, count: 0, layers: new Set() }));
      group.count += 1;
      group.layers.add(layer);
    }
    const largest = [...groups.values()].sort((a, b) => b.bytes * b.count - a.bytes * a.count);
    return { event, byCategory, unsplit: this.curves["unsplit-remainder"][event], byLayer, largest, allocated: this.allocated[event], reserved: this.reserved[event] };
  }

  // Segments just after an event, by address, as {address, bytes}. Ordinary ones stay apart; mapped pages that touch are one.
  segments(event) {
    const { driver_event, driver_sign, driver_whole, driver_address, driver_bytes } = this.columns;
    const whole = new Map(), edges = new Map();
    for (let at = 0; at < driver_event.length && driver_event[at] <= event; at++) {
      if (driver_whole[at] === UNKNOWN) continue;
      const address = driver_address[at], sign = driver_sign[at];
      if (driver_whole[at]) {
        if (sign > 0) whole.set(address, driver_bytes[at]);
        else whole.delete(address);
      } else {
        edges.set(address, (edges.get(address) || 0) + sign);
        edges.set(address + driver_bytes[at], (edges.get(address + driver_bytes[at]) || 0) - sign);
      }
    }
    const found = [...whole].map(([address, bytes]) => ({ address, bytes }));
    let depth = 0, start = 0;
    for (const [address, change] of [...edges].sort((a, b) => a[0] - b[0])) {
      if (depth === 0 && depth + change > 0) start = address;
      if (depth > 0 && depth + change === 0) found.push({ address: start, bytes: address - start });
      depth += change;
    }
    return found.sort((a, b) => a.address - b.address);
  }

  // The segments with their blocks: {offset, bytes, storage}, storage -1 for a free block, and whether it waits for another stream.
  blockMap(event) {
    const inUse = [];
    for (let storage = 0; storage < this.storages && this.born[storage] <= event; storage++) {
      if (this.released[storage] > event && this.block(storage) > 0) inUse.push(storage);
    }
    const { address } = this.columns;
    inUse.sort((a, b) => address[a] - address[b]);
    let at = 0;
    return this.segments(event).map((segment) => {
      const blocks = [];
      let cursor = 0;
      for (; at < inUse.length && address[inUse[at]] < segment.address + segment.bytes; at++) {
        const storage = inUse[at], offset = address[storage] - segment.address;
        if (offset > cursor) blocks.push({ offset: cursor, bytes: offset - cursor, storage: -1 });
        blocks.push({ offset, bytes: this.block(storage), storage, waiting: this.died[storage] <= event });
        cursor = offset + this.block(storage);
      }
      if (cursor < segment.bytes) blocks.push({ offset: cursor, bytes: segment.bytes - cursor, storage: -1 });
      return { ...segment, blocks, used: blocks.some((block) => block.storage >= 0) };
    });
  }

  fragmentation(map, event) {
    let cached = 0, holes = 0, largest = 0, waiting = 0, cachedSegments = 0, freeBlocks = 0;
    for (const segment of map) {
      if (!segment.used) (cached += segment.bytes), cachedSegments++;
      for (const block of segment.blocks) {
        if (block.waiting) waiting += block.bytes;
        if (block.storage >= 0) continue;
        freeBlocks++;
        largest = Math.max(largest, block.bytes);
        if (segment.used) holes += block.bytes;
      }
    }
    return { reserved: this.reserved[event], allocated: this.allocated[event], cached, holes, largest, waiting, cachedSegments, freeBlocks, segments: map.length };
  }
}
