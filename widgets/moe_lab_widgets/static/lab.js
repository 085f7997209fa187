// @ts-check
/* The page's half of MoE Lab's dashboard. One ES module, no import, no bundler.
 *
 *  1 types      2 frames      3 colours      4 map geometry and tiles      5 words and numbers      6 scales
 *  7 charts     8 the store (what has arrived, shared by all views)        9 small DOM helpers     10 panes     11 render
 *
 * Pure functions are named exports, so that `node --test` runs them from this very file.
 * Whatever comes from the kernel reaches the page as text, never as HTML.
 */

// ------------------------------------------------------------------------------------------------- 1 types

/** @typedef {{still: boolean, rows: number, cols: number, slots: number, seq: number, token: number, sent: number, cells: Uint8Array}} Frame */
/** @typedef {[number, number, number]} RGB */
/** @typedef {{disk: RGB, low: RGB, high: RGB, loaded: RGB, swap: RGB, mark: RGB, route: RGB, rest: RGB, paper: RGB, ink: RGB, button: RGB, buttonInk: RGB}} Palette */
/** @typedef {{left: number, width: number, height: number, w: number, h: number, gap: number, between: number, group: number, rows: number, cols: number}} Geometry */
/** @typedef {{name: string, default: number, low: number, high: number, unit: string, doc: string, integer: boolean, open_ended: boolean, rare: boolean, words: Record<string, number>}} Parameter */
/** @typedef {{name: string, doc: string, parameters: Parameter[]}} Policy */
/** @typedef {{layer: number, expert: number, number: number, resident: boolean, used: boolean, loaded: boolean, swapped: boolean, token: number, before: number, after: number, uses: number, hits: number, age: number, bytes: number}} Cell */
/** @typedef {{token: number, knob: string, words: string, by: string}} Mark */
/** @typedef {[string, number, number]} Piece */
/** @typedef {{get(name: string): any, set(name: string, value: any): void, save_changes(): void, send(content: any): void, on(name: string, f: any): void, off(name: string, f: any): void}} Model */

// ------------------------------------------------------------------------------------------------ 2 frames

export const VERSION = 1, HEAD = 32;
export const RESIDENT = 1, LOADED = 2, USED = 4, SWAPPED = 8, LEVELS = 16;

/** A frame from its bytes; frames.py says what they mean. @param {DataView} v @returns {Frame} */
export function decode(v) {
  if (v.byteLength < HEAD) throw new RangeError(`a frame has at least ${HEAD} bytes, not ${v.byteLength}`);
  if (v.getUint8(0) !== VERSION) throw new RangeError(`frame of version ${v.getUint8(0)}, this page reads ${VERSION}: reload the page`);
  const rows = v.getUint16(2, true), cols = v.getUint16(4, true);
  if (v.byteLength !== HEAD + rows * cols) throw new RangeError(`frame has ${v.byteLength} bytes, expected ${HEAD + rows * cols}`);
  return { still: (v.getUint8(1) & 1) === 1, rows, cols, slots: v.getUint16(6, true), seq: v.getUint32(8, true), token: v.getUint32(12, true),
           sent: v.getFloat64(16, true), cells: new Uint8Array(v.buffer, v.byteOffset + HEAD, rows * cols).slice() };
}

/** Items of `next`, which begin at index `first`, put behind `kept` (which ends at `count`); a gap starts anew.
 *  @template T @param {T[]} kept @param {number} count @param {number} first @param {T[]} next @param {number} limit @returns {T[]} */
export function join(kept, count, first, next, limit) {
  const begin = count - kept.length;
  const head = first > count || first < begin ? [] : kept.slice(0, first - begin);
  const all = head.concat(next);
  return all.length > limit ? all.slice(all.length - limit) : all;
}

// ----------------------------------------------------------------------------------------------- 3 colours

/** The one table of colours; map, legend, text and lines are all painted from it. @type {{light: Palette, dark: Palette}} */
export const PALETTE = {
  light: { disk: [214, 218, 224], low: [62, 120, 170], high: [8, 58, 110], loaded: [204, 84, 0], swap: [118, 66, 170], mark: [255, 255, 255],
           route: [118, 66, 170], rest: [150, 156, 166], paper: [255, 255, 255], ink: [33, 33, 33], button: [30, 84, 138], buttonInk: [255, 255, 255] },
  dark: { disk: [58, 61, 67], low: [86, 140, 190], high: [176, 222, 255], loaded: [240, 160, 20], swap: [200, 160, 255], mark: [10, 14, 20],
          route: [200, 160, 255], rest: [130, 136, 146], paper: [33, 33, 33], ink: [230, 230, 230], button: [124, 180, 230], buttonInk: [10, 18, 28] },
};

/** @param {RGB} c @param {number} [alpha] */
export const css = (c, alpha = 1) => alpha === 1 ? `rgb(${c[0]} ${c[1]} ${c[2]})` : `rgb(${c[0]} ${c[1]} ${c[2]} / ${alpha})`;
/** @param {RGB} a @param {RGB} b @param {number} t @returns {RGB} */
export const mix = (a, b, t) => /** @type {RGB} */ (a.map((x, i) => Math.round(x + (b[i] - x) * t)));
/** Relative luminance (WCAG 2). @param {RGB} c */
export function luminance(c) {
  const [r, g, b] = c.map((x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
/** Contrast ratio (WCAG 2). @param {RGB} a @param {RGB} b */
export function contrast(a, b) {
  const [x, y] = [luminance(a), luminance(b)].sort((m, n) => n - m);
  return (x + 0.05) / (y + 0.05);
}
/** Colour of a cell's place. @param {Palette} p @param {number} byte @returns {RGB} */
export function place(p, byte) {
  if (!(byte & RESIDENT)) return p.disk;
  return byte & LOADED ? p.loaded : mix(p.low, p.high, (byte >> 4) / (LEVELS - 1));
}
export const TINT = 0.4;
/** Background of a token by its share of loads, 0 to 1. @param {Palette} p @param {number} share */
export const tint = (p, share) => (share > 0 ? css(p.loaded, Math.round(TINT * Math.min(1, 0.15 + 0.85 * share) * 100) / 100) : "transparent");
/** @param {Palette} p @param {number} share */
export const underline = (p, share) => (share > 0 ? css(p.swap, Math.round((0.35 + 0.65 * Math.min(1, share * 2)) * 100) / 100) : "transparent");
/** A colour that the browser computed, such as `rgb(20, 20, 20)`. @param {string} text @returns {RGB} */
export function parsed(text) {
  const n = (text.match(/[\d.]+/g) || ["0", "0", "0"]).map(Number);
  const scale = text.startsWith("color(") ? 255 : 1;
  return [n[0] * scale, n[1] * scale, n[2] * scale];
}

// --------------------------------------------------------------------------------- 4 map geometry and tiles

/** Where cells lie, in device pixels: experts in groups of eight, so that they can be counted.
 *  @param {number} width @param {number} rows @param {number} cols @param {number} dpr @returns {Geometry} */
export function geometry(width, rows, cols, dpr) {
  const left = Math.round(30 * dpr), all = Math.max(cols, Math.floor(width * dpr) - left), group = 8;
  const w = Math.max(1, Math.min(Math.round(26 * dpr), Math.floor(all / cols)));
  const groups = Math.ceil(cols / group);
  const between = groups > 1 ? Math.max(0, Math.min(Math.round(8 * dpr), Math.floor((all - w * cols) / (groups - 1)))) : 0;
  const h = Math.max(Math.round(3 * dpr), Math.floor(Math.min(22 * dpr, Math.max(1.4 * w, 13 * dpr), (430 * dpr) / rows)));
  const gap = w >= 5 * dpr ? Math.max(1, Math.round(dpr)) : 0;
  return { left, width: left + cols * w + (groups - 1) * between, height: rows * h, w, h, gap, between, group, rows, cols };
}
/** @param {Geometry} g @param {number} col */
export const columnAt = (g, col) => g.left + col * g.w + Math.floor(col / g.group) * g.between;
/** The cell under a point (device pixels), or null. @param {Geometry} g @param {number} x @param {number} y */
export function cellAt(g, x, y) {
  const row = Math.floor(y / g.h), span = g.group * g.w + g.between, inside = x - g.left;
  if (inside < 0 || row < 0 || row >= g.rows) return null;
  const block = Math.floor(inside / span), within = Math.min(g.group - 1, Math.floor((inside - block * span) / g.w));
  const col = block * g.group + within;
  return col < g.cols ? { row, col } : null;
}
/** Where the keyboard takes the cursor, or null for another key.
 *  @param {{row: number, col: number}} at @param {string} key @param {number} rows @param {number} cols */
export function move(at, key, rows, cols) {
  /** @type {Record<string, [number, number]>} */
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -cols], End: [0, cols], PageUp: [-rows, 0], PageDown: [rows, 0] };
  const d = steps[key];
  if (!d) return null;
  const clip = (/** @type {number} */ x, /** @type {number} */ n) => Math.max(0, Math.min(n - 1, x));
  return { row: clip(at.row + d[0], rows), col: clip(at.col + d[1], cols) };
}

/** What of a byte is seen: on disk, nothing else. @param {number} byte */
export const look = (byte) => (byte & RESIDENT ? byte : 0);
/** Paint one cell: a small square on disk; a full tile resident; a cut corner just loaded; a dot used now; a plus swapped in.
 *  @param {CanvasRenderingContext2D} c @param {Palette} p @param {number} byte @param {number} x @param {number} y @param {number} w @param {number} h @param {number} gap */
export function paintCell(c, p, byte, x, y, w, h, gap) {
  const W = w - gap, H = h - gap;
  c.clearRect(x, y, w, h);
  c.fillStyle = css(place(p, byte));
  if (!(byte & RESIDENT)) {
    const d = Math.max(1, Math.round(Math.min(W, H) * 0.36));
    c.fillRect(x + ((W - d) >> 1), y + ((H - d) >> 1), d, d);
    return;
  }
  c.fillRect(x, y, W, H);
  if (byte & LOADED && W >= 4) {
    const d = Math.max(2, Math.round(Math.min(W, H) * 0.5));
    for (let i = 0; i < d; i++) c.clearRect(x, y + i, d - i, 1);
  }
  if (!(byte & USED)) return;
  c.fillStyle = css(p.mark);
  if (byte & SWAPPED && W >= 4) {
    const long = Math.max(3, Math.round(Math.min(W, H) * 0.6)), thick = Math.max(1, Math.round(Math.min(W, H) * 0.18));
    c.fillRect(x + ((W - long) >> 1), y + ((H - thick) >> 1), long, thick);
    c.fillRect(x + ((W - thick) >> 1), y + ((H - long) >> 1), thick, long);
  } else {
    const d = Math.max(1, Math.round(Math.min(W, H) * 0.36));
    if (d < 4) c.fillRect(x + ((W - d) >> 1), y + ((H - d) >> 1), d, d);
    else { c.beginPath(); c.arc(x + W / 2, y + H / 2, d / 2, 0, 7); c.fill(); }
  }
}

// ------------------------------------------------------------------------------------- 5 words and numbers

/** @param {number} n */
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (Math.abs(n) >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return i === 0 ? `${n.toFixed(0)} B` : `${n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)} ${units[i]}`;
}
/** A number with about three figures. @param {number} n */
export function figure(n) {
  if (!Number.isFinite(n)) return "–";
  const a = Math.abs(n);
  return a >= 100 ? n.toFixed(0) : a >= 10 ? n.toFixed(1) : a === 0 ? "0" : n.toFixed(2);
}
/** A setting's value as short as it can be said. @param {number} n */
export const short = (n) => String(Number.isInteger(n) ? n : +n.toPrecision(4));
/** @param {number} n @param {string} one @param {string} [many] */
const count = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
/** Where an expert is, and whether the last token used it. @param {{resident: boolean, loaded: boolean, used: boolean, swapped: boolean, token: number}} c */
const standing = (c) => (c.loaded && c.resident ? "just loaded" : c.resident ? "resident" : "on disk")
  + (c.used ? (c.swapped ? ", used now in place of a better ranked one" : ", used now") : c.token ? ", not used now" : "");
/** What there is to say on a cell: who, where, and its figures. @param {Cell} c @param {number} experts @returns {[string, string, string]} */
export function describe(c, experts) {
  const rank = c.before ? `rank ${c.before} of ${experts} for the router, ${c.after ? `${c.after} after` : "ruled out by"} the policy` : "";
  const age = c.age < 0 ? "never used" : c.age === 0 ? "last used by this token" : `last used ${count(c.age, "token")} ago`;
  return [`Layer ${c.number}, expert ${c.expert}`, `${standing(c)} · ${bytes(c.bytes)}`,
          [rank, c.uses ? `${count(c.uses, "use")}, ${count(c.hits, "hit")}` : "", age].filter(Boolean).join(" · ")];
}
/** The state in words. @param {string} state @param {string} finish */
export function stateWord(state, finish) {
  return state === "finished" && finish ? `finished (${{ end: "end of text", length: "length reached", stop: "stop string", context: "context full" }[finish] || finish})` : state;
}

// ------------------------------------------------------------------------------------------------ 6 scales

/** Whether a parameter's slider is logarithmic. @param {Parameter} p */
export const isLog = (p) => p.low > 0 && p.high / p.low >= 100;
/** Place on the slider, 0 to 1. @param {Parameter} p @param {number} value */
export function toPlace(p, value) {
  const x = isLog(p) ? Math.log(value / p.low) / Math.log(p.high / p.low) : (value - p.low) / (p.high - p.low || 1);
  return Math.max(0, Math.min(1, x));
}
/** The value at a place on the slider. @param {Parameter} p @param {number} x */
export function toValue(p, x) {
  const v = isLog(p) ? p.low * (p.high / p.low) ** x : p.low + (p.high - p.low) * x;
  return p.integer ? Math.round(v) : +v.toPrecision(3);
}
/** Steps of the slider: every integer of a short range, hundredths else. @param {Parameter} p */
export const steps = (p) => (p.integer && !isLog(p) && p.high - p.low <= 1000 ? Math.max(1, p.high - p.low) : 100);
/** A round number at or above `x`, for the top of an axis. @param {number} x */
export function roundUp(x) {
  if (!(x > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 2.5, 5, 10].map((m) => m * unit).find((v) => v >= x * 0.9999) || 10 * unit;
}

// ------------------------------------------------------------------------------------------------ 7 charts

/** How large canvases are shown. Asking the page makes it lay itself out, so it is asked when its width changes only.
 *  @type {WeakMap<HTMLCanvasElement, [number, number]>} */
const SIZES = new WeakMap();
/** @param {HTMLElement} root */
const measure = (root) => root.querySelectorAll("canvas").forEach((c) => SIZES.set(c, [c.clientWidth, c.clientHeight]));
/** Make a canvas as large as it is shown and clear it. @param {HTMLCanvasElement} canvas @returns {[CanvasRenderingContext2D, number, number]} */
function sheet(canvas) {
  const dpr = window.devicePixelRatio || 1, [w, h] = SIZES.get(canvas) || [0, 0];
  if (canvas.width !== Math.round(w * dpr) || canvas.height !== Math.round(h * dpr)) { canvas.width = Math.round(w * dpr); canvas.height = Math.round(h * dpr); }
  const c = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  c.setTransform(dpr, 0, 0, dpr, 0, 0);
  c.clearRect(0, 0, w, h);
  return [c, w, h];
}
/** @param {CanvasRenderingContext2D} c @param {number[][]} xy @param {string} stroke @param {string} [fill] @param {number} [floor] */
function trace(c, xy, stroke, fill, floor = 0) {
  if (!xy.length) return;
  c.beginPath();
  xy.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
  if (fill) {
    c.save(); c.lineTo(xy[xy.length - 1][0], floor); c.lineTo(xy[0][0], floor); c.closePath(); c.fillStyle = fill; c.fill(); c.restore();
    c.beginPath();
    xy.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
  }
  c.strokeStyle = stroke; c.lineWidth = 1.5; c.lineJoin = "round"; c.stroke();
}
/** Points of the last ten seconds of generation. @param {number[][]} points @param {number} [seconds] */
export function lately(points, seconds = 10) {
  const last = points.length ? points[points.length - 1][1] : 0;
  let from = points.length;
  while (from > 0 && points[from - 1][1] >= last - seconds) from--;
  return points.slice(from);
}
/** The largest value to draw to: one that towers over all others (a kernel was compiled, a disk woke up) leaves the picture.
 *  @param {number[]} values */
export function ceiling(values) {
  const sorted = [...values].sort((a, b) => a - b), max = sorted[sorted.length - 1] || 0, usual = sorted[Math.floor(0.97 * (sorted.length - 1))] || 0;
  return usual > 0 && max > 3 * usual ? 1.25 * usual : max;
}
/** At most about `most` points: means of neighbours. @param {number[][]} points @param {number} most */
export function thinned(points, most) {
  const k = Math.ceil(points.length / most);
  if (k <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / k) }, (_, i) => {
    const some = points.slice(i * k, (i + 1) * k);
    return some[0].map((_, j) => some.reduce((sum, q) => sum + q[j], 0) / some.length);
  });
}
/** @param {HTMLCanvasElement} canvas @param {number[][]} points @param {(p: number[]) => number} value @param {number} top @param {Palette} p @param {Ink} ink */
function spark(canvas, points, value, top, p, ink) {
  const [c, w, h] = sheet(canvas);
  c.strokeStyle = ink.line; c.lineWidth = 1; c.beginPath(); c.moveTo(0, h - 0.5); c.lineTo(w, h - 0.5); c.stroke();
  const recent = lately(points);
  if (recent.length < 2) return;
  const end = recent[recent.length - 1][1], max = top || Math.max(1e-9, ceiling(recent.map(value))) * 1.08;
  const xy = recent.map((q) => [w - 4 - ((end - q[1]) / 10) * (w - 4), h - 3 - Math.min(1, value(q) / max) * (h - 6)]);
  trace(c, xy, css(p.low), css(p.low, 0.12), h - 1);
  const [x, y] = xy[xy.length - 1];
  c.fillStyle = css(p.low); c.beginPath(); c.arc(x, y, 2.5, 0, 7); c.fill();
}

/** @typedef {{text: string, soft: string, line: string, paper: string, font: string}} Ink */
const THUMB = 14;
/** The hit rate over all cache sizes; its axis lies exactly over the slider below.
 *  @param {HTMLCanvasElement} canvas @param {number[]} hit @param {number} low @param {number} high @param {number} slots @param {Palette} p @param {Ink} ink */
function drawCurve(canvas, hit, low, high, slots, p, ink) {
  const [c, w, h] = sheet(canvas), top = 14, base = h - 5;
  const X = (/** @type {number} */ s) => THUMB / 2 + ((s - low) / (high - low || 1)) * (w - THUMB);
  const Y = (/** @type {number} */ v) => base - (v / 1e4) * (base - top);
  c.font = `10.5px ${ink.font}`; c.textBaseline = "middle";
  for (const v of [0, 5000, 10000]) {
    c.strokeStyle = ink.line; c.lineWidth = 1; c.beginPath(); c.moveTo(THUMB / 2, Math.round(Y(v)) + 0.5); c.lineTo(w - THUMB / 2, Math.round(Y(v)) + 0.5); c.stroke();
  }
  const drawn = hit.length > high;
  if (drawn) trace(c, Array.from({ length: high - low + 1 }, (_, i) => [X(low + i), Y(hit[low + i])]), css(p.low), css(p.low, 0.12), base);
  c.fillStyle = ink.soft; c.textAlign = "left"; c.strokeStyle = ink.paper; c.lineWidth = 3; c.lineJoin = "round";
  c.textAlign = "right";
  for (const [words, v] of /** @type {[string, number][]} */ ([["100 %", 10000], ["50 %", 5000]])) { c.strokeText(words, w - THUMB / 2, Y(v) - 7); c.fillText(words, w - THUMB / 2, Y(v) - 7); }
  c.lineWidth = 1;
  const x = X(slots);
  c.strokeStyle = ink.soft; c.setLineDash([3, 3]); c.beginPath(); c.moveTo(x, top); c.lineTo(x, h); c.stroke(); c.setLineDash([]);
  if (drawn) {
    const y = Y(hit[slots]);
    c.fillStyle = ink.paper; c.beginPath(); c.arc(x, y, 5, 0, 7); c.fill();
    c.fillStyle = css(p.low); c.beginPath(); c.arc(x, y, 3.5, 0, 7); c.fill();
  }
}

/** @typedef {{key: string, name: string, unit: string, top: number, values: (p: number[]) => number[], colours: (p: Palette) => RGB[], say: (p: number[]) => string}} Strip */
/** @type {Strip[]} */
const STRIPS = [
  { key: "hit", name: "Reuse", unit: "%", top: 100, values: (q) => [100 * q[2]], colours: (p) => [p.low], say: (q) => `${(100 * q[2]).toFixed(1)} %` },
  { key: "tps", name: "Speed", unit: "tokens/s", top: 0, values: (q) => [q[3]], colours: (p) => [p.low], say: (q) => `${figure(q[3])} tokens/s` },
  { key: "mib", name: "Read per token", unit: "MiB", top: 0, values: (q) => [q[4] / 2 ** 20], colours: (p) => [p.low], say: (q) => `${figure(q[4] / 2 ** 20)} MiB` },
  { key: "split", name: "Time per token", unit: "ms", top: 0, values: (q) => q.slice(5, 9), colours: (p) => [p.loaded, p.route, p.low, p.rest], say: (q) => `${figure(q[5] + q[6] + q[7] + q[8])} ms` },
];
/** @param {HTMLCanvasElement} canvas @param {Strip} s @param {number[][]} points @param {Mark[]} marks @param {Palette} p @param {Ink} ink */
function drawStrip(canvas, s, points, marks, p, ink) {
  const [c, w, h] = sheet(canvas), base = h - 1, roof = 12;
  c.strokeStyle = ink.line; c.lineWidth = 1; c.beginPath(); c.moveTo(0, base - 0.5); c.lineTo(w, base - 0.5); c.moveTo(0, roof + 0.5); c.lineTo(w, roof + 0.5); c.stroke();
  if (!points.length) return;
  const first = points[0][0], last = Math.max(points[points.length - 1][0], first + 20);
  const sums = points.map((q) => s.values(q).reduce((a, b) => a + b, 0));
  const high = s.top || roundUp(ceiling(sums));
  const X = (/** @type {number} */ t) => ((t - first) / (last - first)) * (w - 1), Y = (/** @type {number} */ v) => base - Math.min(1, v / high) * (base - roof);
  const n = s.values(points[0]).length, colours = s.colours(p);
  if (n === 1) trace(c, points.map((q, i) => [X(q[0]), Y(sums[i])]), css(colours[0]), css(colours[0], 0.12), base);
  else {
    const low = points.map(() => 0);
    for (let k = 0; k < n; k++) {
      const under = low.slice();
      points.forEach((q, i) => { low[i] += s.values(q)[k]; });
      c.beginPath();
      points.forEach((q, i) => (i ? c.lineTo(X(q[0]), Y(low[i])) : c.moveTo(X(q[0]), Y(low[i]))));
      for (let i = points.length - 1; i >= 0; i--) c.lineTo(X(points[i][0]), Y(under[i]));
      c.closePath(); c.fillStyle = css(colours[k]); c.fill();
    }
  }
  c.font = `10px ${ink.font}`; c.textBaseline = "top"; c.fillStyle = ink.soft; c.textAlign = "right";
  c.fillText(`${short(high)}`, w, 0);
  c.textAlign = "center";
  marks.forEach((m, i) => {
    if (m.token < first || m.token > last) return;
    const x = Math.round(X(m.token)) + 0.5;
    c.strokeStyle = ink.text; c.lineWidth = 1; c.setLineDash([2, 2]); c.beginPath(); c.moveTo(x, roof); c.lineTo(x, base); c.stroke(); c.setLineDash([]);
    if (x < w - 24) { c.fillStyle = ink.text; c.fillText(String(i + 1), Math.max(4, x), 0); }
  });
}

// ------------------------------------------------------------------------------------------------- 8 store

/** What has arrived from the kernel, kept once for all views of a dashboard; a view that mounts late draws from it. */
export class Store {
  constructor() {
    /** @type {Frame | null} */ this.frame = null;
    /** @type {Piece[]} */ this.text = [];
    /** @type {number[][]} */ this.points = [];
    /** @type {Mark[]} */ this.marks = [];
    /** @type {string[]} */ this.said = [];
    /** @type {{tokens: number, hit: number[]}} */ this.curve = { tokens: 0, hit: [] };
    /** @type {number[]} */ this.numbers = [0, 0, 0, 0];
    /** @type {Cell | null} */ this.cell = null;
    this.distinct = 1;     // share of the text's last 4-grams that are distinct
    this.dark = false; this.prompt = ""; this.texts = 0; this.pointed = 0; this.run = -1; this.token = 0; this.cost = 0;
    /** @type {{key: string, button: HTMLElement} | null} */ this.pressed = null;
    /** @type {Map<string, string>} */ this.drafts = new Map();
    this.tall = "130px";   // the map's height, for a view that has no picture yet
    this.at = { row: 0, col: 0 }; this.held = false; this.looking = false; this.focus = ""; /** @type {Set<string>} */ this.open = new Set();
    /** @type {View[]} */ this.views = [];
    this.fulls = 0;        // counts how often all came anew: what was drawn before may have begun in the middle
    this.changes = 0;      // counts changes of everything but the frame's cells
    this.painted = 0;      // newest sequence that some view has painted
    /** @type {WeakSet<object>} */ this.known = new WeakSet();
  }
  get answered() { return this.fulls > 0; }
  /** A message of the kernel; the second view's copy of it is passed over. @param {any} m @param {DataView[]} buffers @returns {boolean} */
  take(m, buffers) {
    if (!m || this.known.has(m)) return false;
    this.known.add(m);
    if (m.cell) this.cell = m.cell;
    if (m.k === "full") { this.text = []; this.points = []; this.texts = this.pointed = 0; this.fulls++; }
    if (m.k === "frame" || m.k === "full") {
      if (m.run !== this.run) { this.run = m.run; this.text = []; this.texts = 0; }
      if (m.prompt !== undefined) this.prompt = m.prompt;
      this.text = join(this.text, this.texts, m.text[0], m.text[1], 4000);
      this.texts = m.text[0] + m.text[1].length;
      this.points = join(this.points, this.pointed, m.points[0], m.points[1], 1200);
      this.pointed = m.points[0] + m.points[1].length;
      this.numbers = m.numbers; this.token = m.token; this.cost = m.cost;
      if (m.marks) this.marks = m.marks;
      if (m.curve) this.curve = m.curve;
      if (m.said) this.said = m.said;
      if (m.distinct !== undefined) this.distinct = m.distinct;
      this.frame = decode(buffers[0]);
    }
    this.changes++;
    return true;
  }
}
/** @type {Map<string, Store>} */
const STORES = new Map();
/** @param {string} uid */
function storeOf(uid) {
  let s = STORES.get(uid);
  if (!s) STORES.set(uid, (s = new Store()));
  return s;
}

// ------------------------------------------------------------------------------------------------- 9 DOM

/** An element; strings become text nodes, so nothing is ever read as HTML.
 *  @param {string} tag @param {Record<string, any>} [attributes] @param {...(Node | string)} children @returns {any} */
function h(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) if (v !== undefined) e.setAttribute(k, String(v));
  e.append(...children);
  return e;
}
/** @param {Element} e @param {string} text */
const say = (e, text) => { if (e.textContent !== text) e.textContent = text; };
let serial = 0;

// ------------------------------------------------------------------------------------------------ 10 panes

/** What panes share. @typedef {{model: Model, store: Store, root: HTMLElement, p: Palette, ink: Ink, dark: boolean, on: {signal: AbortSignal}, tell: (m: object) => void, put: (values: Record<string, any>) => void}} Board */
/** @typedef {{el: HTMLElement[], draw: (why: {theme?: boolean, data?: boolean, frame?: boolean, traits?: boolean, slow?: boolean}) => void}} Pane */

/** Name, state, exactness and disk. @param {Board} b @returns {Pane} */
function header(b) {
  const name = h("span", { class: "name" }), facts = h("span", { class: "soft" }), word = h("span", { class: "word" }), more = h("div", { class: "soft wide" });
  const el = h("header", {}, h("div", {}, name, facts), h("div", { class: "status", role: "status" }, h("span", { class: "lamp", "aria-hidden": "true" }), word), more);
  return { el: [el], draw(why) {
    if (!why.traits) return;
    const m = b.model.get("model");
    say(name, String(m.name)); say(facts, `${m.layers.length} layers × ${m.experts} experts, top-${m.top_k}, ${m.format}`);
    say(word, b.root.dataset.gone ? "kernel gone" : b.model.get("foreign") ? "other code generates" : stateWord(b.model.get("state"), b.model.get("finish")));
    say(more, `${b.model.get("exact") ? "exact: the model's own answer" : "lossy: the answer may differ"} · ${b.model.get("disk")}`);
    b.root.dataset.state = b.model.get("state");
  } };
}

/** Speed, reuse, reading. @param {Board} b @returns {Pane} */
function numbers(b) {
  const items = [["tps", "Speed", "", "tokens/s"], ["hit", "Reuse", ": the expert was in memory", "% of uses"], ["mib", "Read from disk", ": the expert was not", "MiB per token"]].map(([key, label, more, unit]) => {
    const big = h("span", { class: `big ${key}` }, "–"), canvas = h("canvas", { "aria-hidden": "true" });
    return { key, big, canvas, el: h("div", { class: "number", role: "group", "aria-label": label }, h("div", { class: "label" }, label, h("span", { class: "more" }, more)), h("div", { class: "figure" }, big, h("span", { class: "unit" }, unit)), canvas) };
  });
  const el = h("section", { class: "numbers", "aria-label": "Speed and reuse" }, ...items.map((i) => i.el));
  return { el: [el], draw(why) {
    if (!why.data && !why.theme) return;
    const [tps, hit, read] = b.store.numbers, any = tps > 0;
    const words = [figure(tps), (100 * hit).toFixed(1), figure(read / 2 ** 20)];
    /** @type {((p: number[]) => number)[]} */ const of = [(p) => p[3], (p) => p[2], (p) => p[4]];
    items.forEach((item, i) => { say(item.big, any ? words[i] : "–"); item.big.classList.toggle("none", !any); spark(item.canvas, b.store.points, of[i], i === 1 ? 1 : 0, b.p, b.ink); });
  } };
}

/** The residency map, its legend, and the line on the cell under the cursor. @param {Board} b @returns {Pane} */
function map(b) {
  const s = b.store;
  const canvas = h("canvas", { class: "map", tabindex: "0", role: "img", "aria-label": "Expert map", style: `width: 1px; height: ${s.tall}` });
  const line = h("p", { class: "cell" }), heard = h("span", { class: "hidden", "aria-live": "polite" });
  /** @type {[number | number[], string][]} */
  const kinds = [[0, "on disk"], [[0, 5, 10, 15].map((v) => RESIDENT | (v << 4)), "resident, few to many uses"], [RESIDENT | LOADED | (8 << 4), "just loaded"],
                 [RESIDENT | USED | (8 << 4), "used now"], [RESIDENT | USED | SWAPPED | (8 << 4), "used, swapped in"]];
  const keys = kinds.map(([byte, words]) => ({ bytes: [byte].flat(), canvas: h("canvas", { "aria-hidden": "true", style: `width: ${14 * [byte].flat().length}px; height: 14px` }), words }));
  const legend = h("div", { class: "legend" }, ...keys.map((k) => h("span", {}, k.canvas, k.words)));
  const el = h("section", { class: "mapbox" }, h("div", { class: "titlerow" }, h("h3", {}, "Experts", h("span", { class: "aside" }, "one row per layer, one cell per expert")), legend), canvas, line, heard);
  const tiles = document.createElement("canvas");
  const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  /** @type {Geometry | null} */ let g = null;
  /** @type {Uint8Array | null} */ let shown = null;
  let labelled = 0, asked = 0, timer = 0, cursor = s.looking && !s.held, dpr = 1, spotted = { row: -1, col: -1 };

  /** @param {Frame} f */
  function layout(f) {
    dpr = window.devicePixelRatio || 1;
    const style = getComputedStyle(el), width = el.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    if (!(width > 0)) return;
    g = geometry(width, f.rows, f.cols, dpr);
    canvas.width = g.width; canvas.height = g.height + Math.round(16 * dpr);
    canvas.style.width = `${g.width / dpr}px`; canvas.style.height = s.tall = `${canvas.height / dpr}px`;
    canvas.dataset.geometry = JSON.stringify({ ...g, dpr });
    tiles.width = 16 * g.w; tiles.height = 16 * g.h;
    const t = /** @type {CanvasRenderingContext2D} */ (tiles.getContext("2d"));
    for (let i = 0; i < 256; i++) paintCell(t, b.p, i, (i & 15) * g.w, (i >> 4) * g.h, g.w, g.h, g.gap);
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    ctx.font = `${10.5 * dpr}px ${b.ink.font}`; ctx.fillStyle = b.ink.soft; ctx.textBaseline = "middle"; ctx.textAlign = "right";
    const layers = b.model.get("model").layers, every = Math.max(1, Math.ceil((12 * dpr) / g.h));
    for (let r = 0; r < f.rows; r += every) ctx.fillText(String(layers[r]), g.left - 8 * dpr, Math.max(6 * dpr, (r + 0.5) * g.h - g.gap / 2));
    ctx.textAlign = "left";
    const stride = g.group * Math.max(1, Math.ceil((22 * dpr) / (g.group * g.w + g.between)));
    for (let c = 0; c < f.cols; c += stride) ctx.fillText(String(c), columnAt(g, c), g.height + 9 * dpr);
    shown = null;
    for (const k of keys) {          // the legend: the same tiles, in the same colours
      const W = Math.round(14 * dpr), H = Math.round(14 * dpr), n = k.bytes.length;
      k.canvas.width = W * n; k.canvas.height = H;
      k.bytes.forEach((byte, i) => paintCell(k.canvas.getContext("2d"), b.p, byte, i * W, 0, W, H, Math.round(dpr)));
    }
  }
  /** @param {Frame} f @param {number} i @param {number} [byte] */
  function cell(f, i, byte = f.cells[i]) {
    if (!g) return;
    const x = columnAt(g, i % f.cols), y = Math.floor(i / f.cols) * g.h;
    ctx.clearRect(x, y, g.w, g.h);
    ctx.drawImage(tiles, (byte & 15) * g.w, (byte >> 4) * g.h, g.w, g.h, x, y, g.w, g.h);
  }
  /** @param {Frame} f */
  function paint(f) {
    if (!g || g.rows !== f.rows || g.cols !== f.cols) layout(f);
    if (!g) return;
    if (spotted.row >= 0 && shown) cell(f, spotted.row * f.cols + spotted.col, shown[spotted.row * f.cols + spotted.col]);
    for (let i = 0; i < f.cells.length; i++) if (!shown || look(shown[i]) !== look(f.cells[i])) cell(f, i);
    shown = f.cells;
    spotted = cursor || s.held ? s.at : { row: -1, col: -1 };
    if (spotted.row >= 0 && spotted.row < f.rows && spotted.col < f.cols) {
      ctx.strokeStyle = b.ink.text; ctx.lineWidth = Math.max(1, 1.5 * dpr);
      const inset = ctx.lineWidth / 2;
      ctx.strokeRect(columnAt(g, spotted.col) + inset, spotted.row * g.h + inset, g.w - g.gap - 2 * inset, g.h - g.gap - 2 * inset);
    }
    canvas.dataset.seq = String(f.seq); canvas.dataset.token = String(f.token);
    if (Date.now() - labelled > 2000 || f.still) {
      labelled = Date.now();
      const on = f.cells.reduce((n, c) => n + (c & RESIDENT), 0);
      canvas.setAttribute("aria-label", `Expert map: ${f.rows} layers by ${f.cols} experts, ${on} of ${f.cells.length} resident, reuse ${Math.round(100 * s.numbers[1])} %, token ${s.token}. Arrow keys walk, Enter holds a cell, Space pauses.`);
    }
  }
  function words() {
    const f = s.frame, c = s.cell, known = c && c.layer === s.at.row && c.expert === s.at.col;
    s.looking = cursor || s.held;
    if (!s.looking || !f) { say(line, "Point at an expert to read about it, or walk the map with the arrow keys.\nA click or Enter holds it; Space pauses."); return; }
    const byte = f.cells[s.at.row * f.cols + s.at.col], bit = (/** @type {number} */ n) => (byte & n) !== 0;
    const [who, where, figures] = known ? describe(c, f.cols) : [`Layer ${b.model.get("model").layers[s.at.row]}, expert ${s.at.col}`,
      standing({ resident: bit(RESIDENT), loaded: bit(LOADED), used: bit(USED), swapped: bit(SWAPPED), token: f.token }), ""];
    const what = ` · ${where}${s.held ? " · held" : ""}\n${figures}`;
    if (line.textContent !== who + what) line.replaceChildren(h("b", {}, who), what);
    if (heard.dataset.wants && known) { say(heard, `${who}: ${where} · ${figures}`); delete heard.dataset.wants; }
  }
  const ask = () => {
    if (timer) return;
    timer = window.setTimeout(() => { timer = 0; asked = Date.now(); b.tell({ look: [s.at.row, s.at.col] }); }, Math.max(0, 200 - (Date.now() - asked)));
  };
  /** @param {{row: number, col: number}} to */
  function go(to) { if (to.row !== s.at.row || to.col !== s.at.col || !s.looking) { s.at = to; ask(); } words(); if (s.frame) paint(s.frame); }
  const left = () => { cursor = canvas === document.activeElement; words(); if (s.frame) paint(s.frame); };
  const under = (/** @type {PointerEvent} */ e) => {
    const box = canvas.getBoundingClientRect();
    return g ? cellAt(g, (e.clientX - box.left) * dpr, (e.clientY - box.top) * dpr) : null;
  };
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => { const to = under(e); if (to && !s.held) { cursor = true; go(to); } }, b.on);
  canvas.addEventListener("pointerleave", left, b.on);
  if (cursor) document.addEventListener("pointermove", (e) => { if (e.target !== canvas) left(); }, { once: true, ...b.on });   // a pointer that stood on the view before this one
  canvas.addEventListener("click", (/** @type {PointerEvent} */ e) => { const to = under(e); if (!to) return; s.held = !(s.held && to.row === s.at.row && to.col === s.at.col); go(to); words(); }, b.on);
  canvas.addEventListener("focus", () => { cursor = true; ask(); words(); if (s.frame) paint(s.frame); }, b.on);
  canvas.addEventListener("blur", left, b.on);
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => {
    if (!s.frame) return;
    const to = move(s.at, e.key, s.frame.rows, s.frame.cols);
    if (to) { s.held = false; cursor = true; heard.dataset.wants = "1"; go(to); }
    else if (e.key === "Enter") { s.held = !s.held; go(s.at); words(); }
    else if (e.key === "Escape") { s.held = false; words(); }
    else return;
    e.preventDefault(); e.stopPropagation();
  }, b.on);
  b.on.signal.addEventListener("abort", () => clearTimeout(timer));
  return { el: [el], draw(why) {
    const f = s.frame;
    if (!f) return;
    if (why.theme) g = null;
    if (why.theme || why.frame) paint(f);
    if (why.theme || why.data) words();
  } };
}

/** Prompt, buttons, and the line that speaks: hint, refusal or error. @param {Board} b @returns {Pane} */
function run(b) {
  const id = `ml${++serial}`;
  const prompt = h("textarea", { id, rows: "1", spellcheck: "false" });
  /** @type {[string, string, string[]][]} */
  const commands = [["run", "Run", ["ready", "paused", "stopped", "finished"]], ["pause", "Pause", ["running"]], ["step", "One token", ["ready", "running", "paused", "stopped", "finished"]], ["stop", "Stop", ["running", "paused", "foreign"]]];
  const note = h("p", { class: "note", role: "status" });
  const buttons = commands.map(([key, words, when]) => {
    const e = h("button", { type: "button", class: key === "run" ? "main" : "", "data-do": key }, words);
    pressed(b, e, key);
    return { e, when };
  });
  const typing = typed(b, prompt, "prompt", () => { if (prompt.value !== b.model.get("prompt")) b.put({ prompt: prompt.value }); });
  prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { b.tell({ do: "run" }); e.preventDefault(); } }, b.on);
  const el = h("section", { class: "run", "aria-label": "Run" }, h("div", { class: "buttons", role: "group", "aria-label": "Run" }, ...buttons.map((x) => x.e)),
               h("div", {}, h("label", { for: id, class: "hidden" }, "prompt"), prompt), note);
  return { el: [el], draw(why) {
    if (!why.traits && !why.data) return;
    const gone = b.root.dataset.gone, foreign = b.model.get("foreign"), state = foreign ? "foreign" : b.model.get("state");
    const foreground = b.model.get("foreground"), error = b.model.get("error");
    for (const x of buttons) x.e.setAttribute("aria-disabled", String(Boolean(gone) || !x.when.includes(state) || (foreground && x.e.dataset.do !== "stop")));
    if (!typing() && prompt.value !== b.model.get("prompt")) prompt.value = b.model.get("prompt");
    const text = gone ? "The kernel is gone. What you see is the last state; run the cell again for a new dashboard."
      : error || (foreground ? "A loop in a cell generates: controls apply when this cell ends, unless a change gets through."
      : foreign ? "Code outside this dashboard generates; Stop ends it after its present token."
      : !b.store.answered && b.root.dataset.waiting ? "Waiting for the kernel: it is busy, and answers when its cell ends."
      : state === "ready" ? "Press Run, then move the knobs while it writes: each acts at the next token."
      : state === "running" ? (!b.store.texts ? "Reading the prompt. The very first run also compiles the kernels, once: that takes a minute on a slow machine."
        : `${"penalty" in b.model.get("routing_values") ? "Drag penalty to the right" : "Choose the routing cache-prior and drag penalty to the right"}: fewer loads, same sentence? Then shrink the cache.`)
      : state === "paused" ? "Paused. One token goes a single step and says what happened; Run goes on." : "Run starts again from the prompt; the cache keeps its experts.");
    say(note, text); note.classList.toggle("bad", Boolean(gone || error));
  } };
}

/** Said of a text that repeats itself; empty for others. @param {number} distinct share of its last 4-grams @param {number} tokens */
export const repeats = (distinct, tokens) => (tokens >= 20 && distinct < 0.7 ? `This text repeats itself: ${Math.round(100 * distinct)} % of its last 4-grams are distinct. It uses the same experts again and again, so reuse and speed flatter. A temperature of 1 helps.` : "");

/** The text, each token tinted by its loads and underlined by its swaps. @param {Board} b @returns {Pane} */
function text(b) {
  const box = h("div", { class: "text", tabindex: "0", role: "region", "aria-label": "Generated text" });
  const loads = h("i", {}, "experts read from disk"), swaps = h("i", {}, "experts swapped");
  const loops = h("p", { class: "loops", role: "status" });
  const said = h("ol", { class: "said", tabindex: "0", role: "region", "aria-label": "What just happened" });
  const el = h("div", { class: "written" }, h("div", { class: "titlerow" }, h("h3", {}, "Text"), h("div", { class: "key" }, loads, swaps)), box, loops, h("h3", {}, "What just happened"), said);
  let run = -1, fulls = -1, drawn = 0, count = 0, saying = "", low = true;
  box.addEventListener("scroll", () => { low = box.scrollHeight - box.scrollTop - box.clientHeight < 40; }, b.on);
  /** Each line is a block of its own, so that a token makes the browser lay out its line and not the whole text.
   *  @param {string} words @param {string} kind @param {number} [load] @param {number} [swap] */
  const write = (words, kind, load = 0, swap = 0) => words.split("\n").forEach((part, i, all) => {
    const rest = i < all.length - 1 ? part + "\n" : part;
    if (!box.lastChild || i > 0) box.append(h("div", {}));
    if (!rest) return;
    const e = h("span", { class: kind }, rest);
    if (load > 0) e.style.background = tint(b.p, load);
    if (swap > 0) e.style.borderBottomColor = underline(b.p, swap);
    /** @type {Element} */ (box.lastChild).append(e);
    count++;
  });
  return { el: [el], draw(why) {
    if (!why.data && !why.theme) return;
    const s = b.store;
    if (why.theme) { loads.style.background = tint(b.p, 0.8); swaps.style.borderBottomColor = underline(b.p, 1); }
    if (s.run !== run || s.fulls !== fulls || why.theme || s.texts < drawn || s.texts - drawn > s.text.length) {
      run = s.run; fulls = s.fulls; drawn = s.texts - s.text.length; count = 0;
      box.replaceChildren();
      write(s.run > 0 ? s.prompt : "Nothing has been written yet.", "prompt");
    }
    const fresh = s.texts - drawn;
    if (fresh > 0) {
      for (const [words, load, swap] of s.text.slice(s.text.length - fresh)) write(words, "t", load, swap);
      while (count - box.children[0].childElementCount > 4000) { count -= box.children[0].childElementCount; box.children[0].remove(); }
      drawn = s.texts;
      if (low) box.scrollTop = 1e9;
    }
    say(loops, repeats(s.distinct, s.texts));
    const now = s.said.join("\n");
    if (now !== saying || !said.childElementCount) {
      saying = now;
      said.replaceChildren(...(s.said.length ? s.said : ["One token goes a single step, and each thing that happened is told here."]).map((w) => h("li", {}, w)));
      said.scrollTop = 0;
    }
  } };
}

/** A slider that is told of changes from elsewhere, but not while it is being dragged. @param {Board} b @param {HTMLInputElement} input @param {() => void} again */
function untouched(b, input, again) {
  let held = false;
  input.addEventListener("pointerdown", () => { held = true; }, b.on);
  for (const end of ["pointerup", "pointercancel", "blur"]) input.addEventListener(end, () => { if (held) { held = false; window.setTimeout(again, 300); } }, b.on);
  return () => !held;
}
/** A button that sends a command; also where the view is made anew between press and release (`render` sees to it).
 *  @param {Board} b @param {HTMLElement} button @param {string} key */
function pressed(b, button, key) {
  const on = () => button.getAttribute("aria-disabled") !== "true";
  button.addEventListener("pointerdown", () => { if (on()) b.store.pressed = { key, button }; }, b.on);
  button.addEventListener("click", () => { b.store.pressed = null; if (on()) b.tell({ do: key }); }, b.on);
}
/** Call `done` when the user has finished typing: Enter, or the field is left. Returns whether somebody types.
 *  What is half typed when the view is made anew goes on in the next one, under the same `key`.
 *  @param {Board} b @param {HTMLInputElement} field @param {string} key @param {() => void} done */
function typed(b, field, key, done) {
  const { drafts } = b.store, draft = drafts.get(key);
  let typing = draft !== undefined;
  if (draft !== undefined) field.value = draft;
  const end = () => { if (typing && field.isConnected) { typing = false; drafts.delete(key); done(); } };
  const later = () => { window.setTimeout(end); };       // a field that is taken out of the page is left, too, and then gone
  field.addEventListener("input", () => { typing = true; drafts.set(key, field.value); }, b.on);
  field.addEventListener("change", later, b.on);
  field.addEventListener("blur", later, b.on);
  field.addEventListener("keydown", (e) => { if (e.key === "Enter" && (field.tagName === "INPUT" || e.ctrlKey || e.metaKey)) end(); }, b.on);
  return () => typing;
}
/** @param {HTMLInputElement} input @param {number} place */
const fill = (input, place) => input.style.setProperty("--at", `${(100 * place).toFixed(1)}%`);

/** The word for a value, if the parameter has one. @param {Parameter} q @param {number | string} v */
export const wordOf = (q, v) => Object.keys(q.words).find((w) => q.words[w] === v || w === v) || "";
/** What stands in a parameter's field. @param {number | string} v */
export const inField = (v) => (typeof v === "number" ? short(v) : v.startsWith("[") ? "by layer" : v.startsWith("Schedule") ? "schedule" : v);
/** What was typed into it: a number, or text that the kernel reads. @param {string} text */
export const fromField = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text.trim());
/** A slider with a field beside it, for one declared parameter; and a choice before it where words stand for some numbers.
 *  @param {Board} b @param {string} kind @param {Parameter} q @param {() => number | string} get @param {(v: number | string) => void} set @param {() => string} refusal */
function knob(b, kind, q, get, set, refusal) {
  const id = `ml${++serial}`, n = steps(q);
  const range = h("input", { type: "range", id, min: "0", max: n, step: "1", "aria-describedby": `${id}d` });
  const exact = h("input", { class: "exact", inputmode: "decimal", autocomplete: "off", spellcheck: "false", "aria-label": `${q.name}, exact` });
  const doc = h("div", { class: "doc", id: `${id}d` }), words = Object.keys(q.words || {}), other = "a number";
  const choice = h("select", { "aria-label": `${q.name}, in words` }, ...[...words, other].map((w) => h("option", { value: w }, w)));
  const slide = h("div", { class: "slide" }, ...(words.length ? [choice] : []), range);
  const el = h("div", { class: "knob", "data-knob": q.name }, h("label", { for: id }, q.name), slide, exact, doc);
  const free = untouched(b, range, () => draw());
  choice.addEventListener("change", () => set(choice.value === other ? toValue(q, 0.25) : q.words[choice.value]), b.on);
  const show = (/** @type {number | string} */ v, /** @type {boolean} */ moving) => {
    const word = words.length ? wordOf(q, v) : "", x = typeof v === "number" ? toPlace(q, v) : 0;
    if (!moving) range.value = String(Math.round(x * n));
    fill(range, moving ? +range.value / n : x);
    range.setAttribute("aria-valuetext", word || `${inField(v)} ${q.unit}`.trim());
    choice.value = word || other;
    el.classList.toggle("worded", Boolean(word));
    if (!typing()) exact.value = word || inField(v);
  };
  range.addEventListener("input", () => { const v = toValue(q, +range.value / n); show(v, true); set(v); }, b.on);
  const typing = typed(b, exact, `${kind} ${q.name}`, () => { const v = fromField(exact.value); if (v !== "" && exact.value.trim() !== inField(get())) set(v); draw(); });
  function draw() {
    if (free()) show(get(), false);
    const bad = refusal(), v = get();
    say(doc, bad || (typeof v === "string" && !wordOf(q, v) ? `${v} · the slider sets one number instead`
      : `${q.doc}${q.doc ? " · " : ""}${short(q.low)}\u2060–\u2060${short(q.high)}${q.open_ended ? "+" : ""}${q.unit ? " " + q.unit : ""}`));
    doc.classList.toggle("bad", Boolean(bad));
  }
  return { el, draw };
}

/** Cache slots on their curve, policies with their parameters, the disk, sampling. @param {Board} b @returns {Pane} */
function knobs(b) {
  const m = b.model, id = `ml${++serial}`;
  const canvas = h("canvas", { class: "curve", role: "img" });
  const slots = h("input", { type: "range", id, step: "1", "aria-describedby": `${id}d` }), value = h("output", { class: "value" }), doc = h("div", { class: "doc", id: `${id}d` });
  const reset = h("button", { type: "button", "data-do": "reset" }, "Reset cache");
  pressed(b, reset, "reset");
  const free = untouched(b, slots, () => drawSlots());
  slots.addEventListener("input", () => { b.put({ slots: +slots.value }); drawSlots(); }, b.on);
  const low = h("span", { class: "soft" }), high = h("span", { class: "soft" });
  const cache = h("div", { class: "slots", "data-knob": "slots" }, h("div", { class: "ends" }, h("label", { for: id }, "slots"), value), canvas, slots, h("div", { class: "ends" }, low, high), doc);
  const policies = ["routing", "eviction"].map((kind) => policy(b, kind));
  const disk = h("div", { class: "group" }), drawing = sampling(b);
  /** @type {{el: HTMLElement, draw: () => void} | null} */ let bandwidth = null;
  const el = h("div", { class: "knobs" }, h("div", { class: "titlerow" }, h("h3", {}, "Cache and reuse"), reset), cache, ...policies.map((p) => p.el), disk, drawing.el);
  function drawSlots() {
    const r = m.get("offered").slots, one = m.get("model"), curve = b.store.curve.hit, bad = m.get("refusals").slots;
    slots.min = r.low; slots.max = r.high; say(low, `${r.low}`); say(high, `${r.high} slots`);
    if (free()) slots.value = m.get("slots");
    const n = +slots.value, hit = curve.length > n ? (curve[n] / 100).toFixed(1) : "";
    fill(slots, (n - r.low) / (r.high - r.low || 1));
    say(value, `${n} of ${r.high} a layer · ${bytes(n * one.expert_bytes * one.layers.length)}`);
    say(doc, bad || (b.store.curve.tokens ? `LRU with ${n} slots reuses ${hit} % (exact for LRU with the routing as it was, last ${b.store.curve.tokens} tokens)` : "The curve of reuse over all cache sizes is drawn here as tokens come."));
    doc.classList.toggle("bad", Boolean(bad));
    slots.setAttribute("aria-valuetext", `${n} slots${hit ? `, ${hit} % reuse with LRU` : ""}`);
    canvas.setAttribute("aria-label", b.store.curve.tokens ? `Reuse over cache size: ${[0.25, 0.5, 0.75].map((q) => Math.round(q * r.high)).map((k) => `${k} slots ${(curve[k] / 100).toFixed(0)} %`).join(", ")}` : "Reuse over cache size, empty so far");
    drawCurve(canvas, b.store.curve.tokens ? curve : [], r.low, r.high, n, b.p, b.ink);
  }
  return { el: [el], draw(why) {
    if (why.traits) {
      for (const p of policies) p.draw();
      const simulated = m.get("offered").simulated;
      if (simulated && !bandwidth) {
        bandwidth = knob(b, "disk", { name: "bandwidth", default: 200, low: 10, high: 5000, unit: "MB/s", doc: "simulated disk", integer: false, open_ended: true, rare: false, words: {} },
                         () => m.get("bandwidth"), (v) => b.put({ bandwidth: Number(v) || 0 }), () => m.get("refusals").bandwidth);
        disk.append(bandwidth.el);
      }
      disk.hidden = !simulated;
      if (bandwidth) bandwidth.draw();
      drawing.draw();
    }
    if (why.traits || why.theme || why.slow) drawSlots();
  } };
}
/** Something that is shown when asked for; the next view knows whether it was. @param {Board} b @param {string} key @param {string} words @param {...Node} inside */
function folded(b, key, words, ...inside) {
  const el = h("details", {}, h("summary", {}, words), ...inside);
  el.open = b.store.open.has(key);
  el.addEventListener("toggle", () => { el.open ? b.store.open.add(key) : b.store.open.delete(key); }, b.on);
  return el;
}
/** The choice of one kind of policy and its parameters. @param {Board} b @param {string} kind */
function policy(b, kind) {
  const m = b.model, id = `ml${++serial}`, select = h("select", { id, "aria-describedby": `${id}d` }), doc = h("div", { class: "doc", id: `${id}d` });
  const box = h("div", {}), el = h("div", { class: "group" }, h("div", { class: "knob", "data-knob": kind }, h("label", { for: id }, kind), select, doc), box);
  let listed = "", built = "";
  /** @type {{el: HTMLElement, draw: () => void}[]} */ let parts = [];
  select.addEventListener("change", () => b.put({ [kind]: select.value, [`${kind}_values`]: {} }), b.on);
  return { el, draw() {
    /** @type {Policy[]} */ const all = m.get("offered")[kind];
    const names = all.map((p) => p.name).join("\n");
    if (names !== listed) { listed = names; select.replaceChildren(...all.map((p) => h("option", { value: p.name }, p.name))); }
    const name = m.get(kind), now = all.find((p) => p.name === name), bad = m.get("refusals")[kind];
    if (select.value !== name) select.value = name;
    const mine = now ? now.parameters : [], shape = JSON.stringify([name, mine]);
    if (shape !== built) {
      built = shape;
      parts = mine.map((q) => knob(b, kind, q, () => m.get(`${kind}_values`)[q.name] ?? q.default,
        (v) => b.put({ [`${kind}_values`]: { ...m.get(`${kind}_values`), [q.name]: v } }), () => m.get("refusals")[`${kind}.${q.name}`]));
      const rare = parts.filter((_, i) => mine[i].rare), fold = folded(b, `rare ${kind}`, "More parameters", ...rare.map((p) => p.el));
      box.replaceChildren(...parts.filter((p) => !rare.includes(p)).map((p) => p.el), ...(rare.length ? [fold] : []));
    }
    say(doc, bad || (now ? now.doc : "")); doc.classList.toggle("bad", Boolean(bad));
    for (const p of parts) p.draw();
  } };
}
/** How tokens are drawn, and how many. @param {Board} b */
function sampling(b) {
  /** @type {[string, string, number][]} */
  const items = [["temperature", "any", 0], ["top_k", "1", 0], ["top_p", "any", 0], ["repetition_penalty", "any", 0], ["seed", "1", 0], ["max_new_tokens", "1", 1]];
  const doc = h("div", { class: "doc", role: "status" });
  const inputs = items.map(([name, step, min]) => {
    const id = `ml${++serial}`, e = h("input", { type: "number", id, step, min });
    const typing = typed(b, e, name, () => { const v = step === "1" ? Math.round(Number(e.value)) : Number(e.value); if (e.value !== "" && Number.isFinite(v) && v !== b.model.get(name)) b.put({ [name]: v }); draw(); });
    return { name, e, typing, el: h("label", { for: id }, name, e) };
  });
  const el = folded(b, "sampling", "Sampling", h("div", { class: "sampling" }, ...inputs.map((i) => i.el)), doc);
  el.classList.add("group");
  function draw() {
    const bad = inputs.map((i) => b.model.get("refusals")[i.name]).filter(Boolean).join(" ");
    for (const i of inputs) if (!i.typing()) i.e.value = short(b.model.get(i.name));
    say(doc, bad || "temperature 0: always the likeliest token; top_k 0 and top_p 1: drawn from all. max_new_tokens is of the next run.");
    doc.classList.toggle("bad", Boolean(bad));
  }
  return { el, draw };
}

/** Four lines over the tokens, with a mark wherever the user changed something. @param {Board} b @returns {Pane} */
function lines(b) {
  const items = STRIPS.map((s) => {
    const now = h("b", {}), canvas = h("canvas", { role: "img" });
    return { s, now, canvas, el: h("div", { class: "strip", "data-strip": s.key }, h("div", { class: "label" }, h("span", {}, s.name), now), canvas) };
  });
  const swatches = ["reading", "routing", "experts", "the rest"].map((words) => ({ i: h("i"), words }));
  const legend = h("div", { class: "legend split" }, "Time spent on", ...swatches.map((w) => h("span", {}, w.i, w.words)));
  const marks = h("p", { class: "marks" });
  const el = h("section", { class: "lines" }, h("div", { class: "titlerow" }, h("h3", {}, "Over the tokens"), legend), h("div", { class: "strips" }, ...items.map((i) => i.el)), marks);
  return { el: [el], draw(why) {
    if (!why.slow && !why.theme) return;
    const last = b.store.points[b.store.points.length - 1], points = thinned(b.store.points, 300);
    if (why.theme) STRIPS[3].colours(b.p).forEach((c, k) => { swatches[k].i.style.background = css(c); });
    for (const i of items) {
      say(i.now, last ? i.s.say(last) : "");
      i.canvas.setAttribute("aria-label", last ? `${i.s.name}, now ${i.s.say(last)}` : i.s.name);
      drawStrip(i.canvas, i.s, points, b.store.marks, b.p, b.ink);
    }
    const recent = b.store.marks.slice(-6), first = b.store.marks.length - recent.length;
    marks.replaceChildren(...(recent.length ? recent.map((m, k) => h("span", {}, h("b", {}, String(first + k + 1)), `token ${m.token}: ${m.words}${m.by ? ` (${m.by})` : ""}`)) : ["What is changed is marked here and on the lines."]));
  } };
}

/** The map as a table, layer by layer. @param {Frame} f @param {number[]} layers @returns {string[][]} */
export function table(f, layers) {
  return Array.from({ length: f.rows }, (_, r) => {
    const row = f.cells.subarray(r * f.cols, (r + 1) * f.cols);
    /** @param {number} bit */
    const which = (bit) => Array.from(row.keys()).filter((c) => (row[c] & bit) === bit);
    return [String(layers[r]), `${which(RESIDENT).length} of ${f.cols}`, String(which(USED).length), which(LOADED).join(" ") || "none", which(USED).join(" ") || "none"];
  });
}
/** @param {Board} b @returns {Pane} */
function asTable(b) {
  const body = h("tbody");
  const details = h("details", {}, h("summary", {}, "Table view"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Experts as a table" },
    h("table", {}, h("thead", {}, h("tr", {}, ...["Layer", "Resident", "Used now", "Just loaded", "Experts used now"].map((w) => h("th", { scope: "col" }, w)))), body)));
  details.open = b.store.open.has("table");
  details.addEventListener("toggle", () => { details.open ? b.store.open.add("table") : b.store.open.delete("table"); draw(); }, b.on);
  let at = 0;
  function draw() {
    const f = b.store.frame;
    if (!f || !details.open) return;
    at = Date.now();
    body.replaceChildren(...table(f, b.model.get("model").layers).map((r) => h("tr", {}, ...r.map((w) => h("td", {}, w)))));
  }
  return { el: [h("section", { class: "tablebox" }, details)], draw(why) { if (why.frame && (Date.now() - at > 1000 || b.store.frame?.still)) draw(); } };
}
/** What the dashboard itself costs. @param {Board} b @returns {Pane} */
function footer(b) {
  const cost = h("span"), rate = h("span"), el = h("footer", {}, cost, rate);
  return { el: [el], draw(why) {
    if (!why.slow && !why.traits) return;
    say(cost, `This dashboard has taken ${(100 * b.store.cost).toFixed(1)} % of the generating time (processor seconds, by its own clock).`);
    say(rate, `At most ${short(b.model.get("fps"))} pictures a second.`);
  } };
}

// ----------------------------------------------------------------------------------------------- 11 render

const TRAITS = ["slots", "routing", "routing_values", "eviction", "eviction_values", "bandwidth", "prompt", "max_new_tokens", "temperature", "top_k", "top_p",
  "repetition_penalty", "seed", "fps", "state", "finish", "exact", "disk", "error", "refusals", "foreground", "foreign", "offered", "model"];

/** @param {{model: Model, el: HTMLElement}} arg */
function render({ model, el }) {
  const end = new AbortController(), store = storeOf(model.get("uid"));
  /** @type {HTMLElement} */
  const root = h("div", { class: "moelab", role: "group", "aria-label": "MoE Lab dashboard", "data-lm-suppress-shortcuts": "true" });
  root.classList.toggle("dark", store.dark);
  let gone = false;
  /** @type {Board} */
  const b = { model, store, root, p: store.dark ? PALETTE.dark : PALETTE.light, dark: store.dark, ink: { text: "", soft: "", line: "", paper: "", font: "" }, on: { signal: end.signal },
    tell(m) { try { if (!gone) model.send(m); } catch { lost(); } },
    put(values) { try { for (const [k, v] of Object.entries(values)) model.set(k, v); model.save_changes(); } catch { lost(); } } };
  const written = text(b), turned = knobs(b);
  const above = [header(b), numbers(b), map(b), run(b)], below = [lines(b), asTable(b), footer(b)];
  const panes = [...above, turned, ...below, written];      // the text last: it scrolls, and that makes the page lay itself out
  const desk = h("section", { class: "desk" }, ...written.el, ...turned.el), nodes = (/** @type {Pane[]} */ some) => some.flatMap((p) => p.el);
  root.append(...nodes(above), desk, ...nodes(below));
  el.append(root);

  /** @type {View} */
  const me = { el, panel: null, stop };
  store.views.push(me);
  let raf = 0, timer = 0, receipt = 0, slowly = 0, sized = "", seen = -1, sequence = -1, wait = 0, late = 0;
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  function lost() { gone = true; root.dataset.gone = "1"; draw({ traits: true }); }
  /** @param {{theme?: boolean, data?: boolean, frame?: boolean, traits?: boolean, slow?: boolean}} why */
  function draw(why) { if (sized && root.isConnected) for (const p of panes) p.draw(why); }
  function paint() {
    raf = 0; timer = 0;
    if (!sized || !root.isConnected) return;      // scrolled away, or an old view: the store keeps what it will need
    const s = store, now = performance.now(), slow = now - slowly > 500 || Boolean(s.frame?.still);
    if (slow) slowly = now;
    /** @type {{data: boolean, frame: boolean, slow: boolean}} */
    const why = { data: s.changes !== seen, frame: Boolean(s.frame) && s.frame?.seq !== sequence, slow };
    seen = s.changes; sequence = s.frame ? s.frame.seq : -1;
    draw(why);
    root.dataset.took = (performance.now() - now).toFixed(1);
    if (!s.frame) return;
    s.painted = Math.max(s.painted, s.frame.seq);
    root.dataset.lag = String(Math.round(Date.now() - s.frame.sent));
    root.dataset.painted = String(1 + Number(root.dataset.painted || 0));
    if (!receipt) receipt = window.setTimeout(() => { receipt = 0; b.tell({ ack: s.painted, ...(s.looking ? { look: [s.at.row, s.at.col] } : {}) }); },
      s.looking || model.get("fps") > 10 ? 250 : 500);      // each message costs a kernel and JupyterLab some milliseconds
  }
  function soon() {
    if (raf || timer) return;
    if (document.hidden) timer = window.setTimeout(paint, 1000);        // animation frames stop in a hidden tab
    else if (calm.matches) timer = window.setTimeout(paint, 250);
    else raf = requestAnimationFrame(paint);
  }
  function theme() {
    const style = getComputedStyle(root), ink = parsed(style.color), get = (/** @type {string} */ v, /** @type {string} */ or) => style.getPropertyValue(v).trim() || or;
    b.dark = luminance(ink) > 0.4; b.p = b.dark ? PALETTE.dark : PALETTE.light;
    root.classList.toggle("dark", store.dark = b.dark);
    const soft = getComputedStyle(/** @type {Element} */ (root.querySelector(".soft"))).color;
    b.ink = { text: style.color, soft, line: get("--jp-border-color2", "rgb(128 128 128 / .4)"), paper: get("--jp-layout-color1", b.dark ? "#111" : "#fff"), font: style.fontFamily };
    root.style.setProperty("--ml-ramp", css(b.p.low)); root.style.setProperty("--ml-button", css(b.p.button)); root.style.setProperty("--ml-button-ink", css(b.p.buttonInk));
    measure(root);
    draw({ theme: true, data: true, traits: true, frame: true, slow: true });
  }
  /** @param {any} m @param {DataView[]} buffers */
  function take(m, buffers) {
    try { store.take(m, buffers); } catch (error) { root.dataset.error = String(error); return; }
    soon();
  }
  const traits = () => draw({ traits: true });
  root.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => {
    const target = /** @type {HTMLElement} */ (e.target);
    if (e.key !== " " || /^(INPUT|TEXTAREA|SELECT|BUTTON|SUMMARY)$/.test(target.tagName)) return;
    b.tell({ do: model.get("state") === "running" ? "pause" : "run" });
    e.preventDefault(); e.stopPropagation();
  }, b.on);
  root.addEventListener("focusin", (/** @type {FocusEvent} */ e) => { store.focus = mark(/** @type {Element} */ (e.target)); }, b.on);
  root.addEventListener("focusout", (/** @type {FocusEvent} */ e) => { if (e.relatedTarget) store.focus = ""; }, b.on);
  document.addEventListener("pointerup", () => {
    const p = store.pressed;
    if (p && !p.button.isConnected) { store.pressed = null; b.tell({ do: p.key }); }     // its click will never come
  }, b.on);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { clearTimeout(timer); timer = 0; soon(); } }, b.on);
  const themed = () => { requestAnimationFrame(theme); };       // once the new style sheet is in force
  const themes = new MutationObserver(themed);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  const size = new ResizeObserver(() => {       // at render() the element is not in the page yet: no width, no colours
    const now = root.clientWidth ? `${root.clientWidth}` : "";     // none: a notebook takes cells out that are scrolled away
    if (now && me.panel) /** @type {HTMLElement} */ (me.panel).style.minHeight = `${root.offsetHeight}px`;
    if (now === sized) return;
    const first = !sized;
    sized = now;
    if (!sized) return;
    if (first) { succeed(store, me, false); late = window.setTimeout(() => succeed(store, me, true), 2000); }
    theme();
    soon();
    if (first && store.focus && (!document.activeElement || document.activeElement === document.body)) /** @type {HTMLElement | null} */ (Array.from(root.querySelectorAll("*")).find((x) => mark(x) === store.focus))?.focus({ preventScroll: true });
  });
  size.observe(root);
  model.on("msg:custom", take);
  for (const t of TRAITS) model.on(`change:${t}`, traits);
  model.on("comm_live_update", lost);      // told when the kernel restarts; a comm that has gone does not come back
  let heard = -1;
  const silence = window.setInterval(() => {    // of a kernel that was killed nothing is told: it shows when a message cannot be sent
    if (model.get("state") === "running" && store.changes === heard) b.tell({ ack: store.painted });
    heard = store.changes;
  }, 2000);
  for (const p of panes) p.draw({ traits: true, data: true });     // all but the canvases, so that it has its height at once
  wait = window.setTimeout(() => { if (!store.answered) { root.dataset.waiting = "1"; traits(); } }, 1000);
  b.tell({ hello: 1 });
  function stop() {
    end.abort(); themes.disconnect(); size.disconnect(); cancelAnimationFrame(raf);
    for (const t of [timer, receipt, wait, late, silence]) clearTimeout(t);
    model.off("msg:custom", take); model.off("comm_live_update", lost);
    for (const t of TRAITS) model.off(`change:${t}`, traits);
    root.remove();
  }
  return leaving(store, me);
}
/** @typedef {{el: HTMLElement, panel: Element | null, stop: (() => void) | null}} View */
/** End a view, and cut the one way from it to its nodes. @param {View} view */
function halt(view) { view.stop?.(); view.stop = null; }
/** What render() returns. JupyterLab may keep it for good: so it is made here, out of sight of what render() holds.
 *  @param {Store} store @param {View} view */
function leaving(store, view) { return () => { halt(view); store.views = store.views.filter((v) => v !== view); }; }
/** A view takes the place of older ones in its output. When the saved picture is renewed, JupyterLab makes the view
 *  anew: it drops the old one's node but keeps its widget, which would listen for ever and fail when the output goes,
 *  looking for its node. So the old view is stopped, and its node put back, empty and unseen; `orphans`: also those
 *  that were dropped before they were ever shown.
 *  @param {Store} store @param {View} me @param {boolean} orphans */
function succeed(store, me, orphans) {
  if (!me.el.parentElement) return;
  me.panel = me.el.parentElement;
  for (const old of store.views) {
    if (old === me || old.el.isConnected || !(old.panel === me.panel || (orphans && !old.panel && !old.el.parentElement))) continue;
    halt(old);
    old.el.style.display = "none";
    me.panel.append(old.el);
  }
}
/** A name for an element that is the same in the next view. @param {Element} e */
const mark = (e) => e.getAttribute("data-do") || (e.closest("[data-knob]")?.getAttribute("data-knob") || "") + e.tagName + e.className;

export default { render };
