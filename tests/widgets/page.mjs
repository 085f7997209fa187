// Tests of the page's logic, on the shipped file. Run by test_page.py, or: node --test tests/widgets/page.mjs
import { test } from "node:test";
import assert from "node:assert/strict";
import * as lab from "../../widgets/moe_lab_widgets/static/lab.js";

const { RESIDENT, LOADED, USED, SWAPPED, HEAD, VERSION, PALETTE } = lab;

function bytes(rows, cols, { version = VERSION, byte = 0, flags = 0, extra = 0 } = {}) {
  const buffer = new ArrayBuffer(HEAD + rows * cols + extra), v = new DataView(buffer);
  v.setUint8(0, version); v.setUint8(1, flags);
  v.setUint16(2, rows, true); v.setUint16(4, cols, true); v.setUint16(6, 16, true);
  v.setUint32(8, 7, true); v.setUint32(12, 42, true); v.setFloat64(16, 1.5e12, true);
  new Uint8Array(buffer, HEAD).fill(byte);
  return v;
}

test("a frame is read as frames.py writes it", () => {
  const f = lab.decode(bytes(3, 5, { byte: 65, flags: 1 }));
  assert.deepEqual([f.still, f.rows, f.cols, f.slots, f.seq, f.token, f.sent, f.cells.length, f.cells[0]], [true, 3, 5, 16, 7, 42, 1.5e12, 15, 65]);
});
test("a frame keeps a copy, not a view of the message", () => {
  const v = bytes(1, 2), f = lab.decode(v);
  new Uint8Array(v.buffer).fill(9);
  assert.deepEqual([...f.cells], [0, 0]);
});
test("truncated, overlong and foreign frames are refused", () => {
  assert.throws(() => lab.decode(new DataView(bytes(3, 5).buffer, 0, HEAD + 14)), RangeError);
  assert.throws(() => lab.decode(new DataView(new ArrayBuffer(8))), RangeError);
  assert.throws(() => lab.decode(bytes(3, 5, { extra: 1 })), RangeError);
  assert.throws(() => lab.decode(bytes(3, 5, { version: 9 })), /version 9/);
});

test("news is joined to what is kept", () => assert.deepEqual(lab.join(["a", "b"], 2, 2, ["c"], 10), ["a", "b", "c"]));
test("news that overlaps replaces its overlap", () => assert.deepEqual(lab.join(["a", "b"], 2, 1, ["B", "c"], 10), ["a", "B", "c"]));
test("a gap starts anew", () => assert.deepEqual(lab.join(["a"], 1, 5, ["f"], 10), ["f"]));
test("only the newest are kept", () => assert.deepEqual(lab.join(["a", "b"], 12, 12, ["c"], 2), ["b", "c"]));

for (const [theme, p] of Object.entries(PALETTE)) {
  const ramp = Array.from({ length: lab.LEVELS }, (_, i) => lab.place(p, RESIDENT | (i << 4)));
  test(`${theme}: a resident expert and one just loaded stand out 3:1 from one on disk`, () => {
    for (const c of [...ramp, p.loaded]) assert.ok(lab.contrast(c, p.disk) >= 3, `${c}: ${lab.contrast(c, p.disk).toFixed(2)}`);
  });
  test(`${theme}: the marks on a tile stand out 3:1`, () => {
    for (const c of [...ramp, p.loaded]) assert.ok(lab.contrast(c, p.mark) >= 3, `${c}: ${lab.contrast(c, p.mark).toFixed(2)}`);
  });
  test(`${theme}: lines and tiles stand out 3:1 from the paper`, () => {
    for (const c of [...ramp, p.loaded, p.swap, p.button]) assert.ok(lab.contrast(c, p.paper) >= 3, `${c}: ${lab.contrast(c, p.paper).toFixed(2)}`);
  });
  test(`${theme}: text on the strongest tint and on the button is read at 4.5:1`, () => {
    assert.ok(lab.contrast(p.ink, lab.mix(p.paper, p.loaded, lab.TINT)) >= 4.5);
    assert.ok(lab.contrast(p.buttonInk, p.button) >= 4.5);
  });
  test(`${theme}: the ramp goes one way only, towards more contrast with the paper`, () => {
    const c = ramp.map((x) => lab.contrast(x, p.paper));
    for (let i = 1; i < c.length; i++) assert.ok(c[i] > c[i - 1]);
  });
}

/** A canvas that remembers what was painted. */
function recorder() {
  const done = [];
  const note = (kind) => (...a) => done.push([kind, ...a]);
  return { done, fillStyle: "", clearRect: note("clear"), fillRect: note("fill"), beginPath() {}, arc: note("arc"), fill() {} };
}
const shape = (byte) => { const c = recorder(); lab.paintCell(c, PALETTE.light, byte, 0, 0, 14, 18, 1); return JSON.stringify(c.done); };
test("every place has a shape of its own, not only a colour", () => {
  const shapes = [0, RESIDENT, RESIDENT | LOADED, RESIDENT | USED, RESIDENT | USED | SWAPPED, RESIDENT | LOADED | USED].map(shape);
  assert.equal(new Set(shapes).size, shapes.length);
});
test("an expert on disk is a small square, a resident one a full tile", () => {
  const area = (byte) => { const c = recorder(); lab.paintCell(c, PALETTE.light, byte, 0, 0, 14, 18, 1); const f = c.done.find((d) => d[0] === "fill"); return f[3] * f[4]; };
  assert.equal(area(RESIDENT), 13 * 17);
  assert.ok(area(0) < 0.2 * area(RESIDENT));
});

for (const [width, rows, cols, dpr] of [[960, 6, 64, 1], [700, 24, 60, 2], [340, 48, 128, 1], [1140, 1, 4, 1.5], [200, 6, 64, 1]]) {
  const g = lab.geometry(width, rows, cols, dpr);
  test(`the map fits ${width} px with ${rows} x ${cols}`, () => {
    if (cols * dpr <= width * dpr - 30) assert.ok(g.width <= width * dpr + 1, `${g.width}`);
    assert.ok(g.w >= 1 && g.h >= 3);
    assert.ok(g.height <= 470 * dpr);
  });
  test(`every cell is found under its own middle, ${width} px ${rows} x ${cols}`, () => {
    for (let row = 0; row < rows; row++) for (let col = 0; col < cols; col++)
      assert.deepEqual(lab.cellAt(g, lab.columnAt(g, col) + g.w / 2 - 0.5, row * g.h + g.h / 2), { row, col });
  });
}
test("beside the map there is no cell", () => {
  const g = lab.geometry(960, 6, 64, 1);
  assert.equal(lab.cellAt(g, g.left - 1, 3), null);
  assert.equal(lab.cellAt(g, g.left + 3, g.height + 1), null);
  assert.equal(lab.cellAt(g, g.width + 40, 3), null);
});
test("arrows walk, Home and End run, edges stop", () => {
  const m = (row, col, key) => lab.move({ row, col }, key, 3, 5);
  assert.deepEqual(m(0, 0, "ArrowLeft"), { row: 0, col: 0 });
  assert.deepEqual(m(1, 1, "ArrowDown"), { row: 2, col: 1 });
  assert.deepEqual(m(0, 1, "End"), { row: 0, col: 4 });
  assert.deepEqual(m(2, 2, "PageUp"), { row: 0, col: 2 });
  assert.equal(m(0, 0, "a"), null);
});

test("numbers are shown with about three figures", () => {
  assert.deepEqual([0, 0.0123, 1.234, 12.34, 123.4, NaN].map(lab.figure), ["0", "0.01", "1.23", "12.3", "123", "–"]);
});
test("bytes are binary and have their unit", () => assert.deepEqual([12, 98304, 6442450944].map(lab.bytes), ["12 B", "96.0 KiB", "6.00 GiB"]));
test("a text that repeats itself is said to, and no other is", () => {
  assert.match(lab.repeats(0.12, 200), /^This text repeats itself: 12 % of its last 4-grams are distinct/);
  assert.deepEqual([lab.repeats(0.71, 200), lab.repeats(0.1, 8), lab.repeats(1, 0)], ["", "", ""]);
});

test("a cell is described in words", () => {
  const c = { layer: 2, expert: 17, number: 3, token: 9, resident: true, used: true, loaded: false, swapped: true, before: 12, after: 7, uses: 1, hits: 0, age: 0, bytes: 98304 };
  assert.deepEqual(lab.describe(c, 64), ["Layer 3, expert 17", "resident, used now in place of a better ranked one · 96.0 KiB", "rank 12 of 64 for the router, 7 after the policy · 1 use, 0 hits · last used by this token"]);
  assert.deepEqual(lab.describe({ ...c, token: 0, resident: false, used: false, before: 0, after: 0, uses: 0, age: -1 }, 64).slice(1), ["on disk · 96.0 KiB", "never used"]);
  assert.match(lab.describe({ ...c, used: false, after: 0, age: 5 }, 64).join(" · "), /resident, not used now · .* · rank 12 of 64 for the router, ruled out by the policy · .* · last used 5 tokens ago/);
});
test("an end has its reason", () => {
  assert.equal(lab.stateWord("finished", "length"), "finished (length reached)");
  assert.equal(lab.stateWord("running", ""), "running");
});

const parameter = (o) => ({ name: "p", default: 1, low: 0, high: 1, unit: "", doc: "", integer: false, open_ended: false, rare: false, words: {}, ...o });
test("a value with a word is shown as the word", () => {
  const q = parameter({ low: 0, high: 64, words: { running: 0, token: -1 } });
  assert.deepEqual([0, -1, "token", 12, "[0.1]"].map((v) => lab.wordOf(q, v)), ["running", "token", "token", "", ""]);
});
test("what differs by layer or token has a short name in its field", () => {
  assert.deepEqual([0.25, "[0.1, 0.2]", "Schedule({0: 0, 9: 1})", "token"].map(lab.inField), ["0.25", "by layer", "schedule", "token"]);
  assert.deepEqual([" 0.5 ", "1e2", "token ", "[1, 2]", ""].map(lab.fromField), [0.5, 100, "token", "[1, 2]", ""]);
});
test("a slider is logarithmic where the range spans two decades", () => {
  assert.ok(lab.isLog(parameter({ low: 1, high: 4096 })));
  assert.ok(!lab.isLog(parameter({})));
  assert.ok(!lab.isLog(parameter({ low: 1, high: 64 })));
});
test("place and value are inverse", () => {
  for (const p of [parameter({}), parameter({ low: 1, high: 4096 }), parameter({ low: 2, high: 8, integer: true })])
    for (const x of [0, 0.25, 0.5, 1]) { const v = lab.toValue(p, x); assert.ok(Math.abs(lab.toValue(p, lab.toPlace(p, v)) - v) < 0.02 * Math.abs(v) + 1e-9); }
});
test("a value above an open end stands at the end of the slider", () => assert.equal(lab.toPlace(parameter({ open_ended: true }), 7), 1));
test("whole numbers stay whole", () => assert.equal(lab.toValue(parameter({ low: 1, high: 8, integer: true }), 0.33), 3));
test("axes end at a round number", () => assert.deepEqual([0, 0.7, 1, 23, 26, 510].map(lab.roundUp), [1, 1, 1, 25, 50, 1000]));

test("one value that towers over all others does not flatten them", () => {
  assert.equal(lab.ceiling([...Array(99).fill(2), 2000]), 2.5);
  assert.equal(lab.ceiling([1, 2, 3, 4]), 4);
  assert.equal(lab.ceiling([...Array(99).fill(0), 5]), 5);
  assert.equal(lab.ceiling([]), 0);
});
test("many points are thinned to means of neighbours, few stay as they are", () => {
  const points = Array.from({ length: 1200 }, (_, i) => [i, 2 * i]);
  const thin = lab.thinned(points, 300);
  assert.equal(thin.length, 300);
  assert.deepEqual([thin[0], thin[299]], [[1.5, 3], [1197.5, 2395]]);
  assert.equal(lab.thinned(points.slice(0, 300), 300).length, 300);
});
test("a spark line holds ten seconds", () => {
  const points = Array.from({ length: 300 }, (_, i) => [i, i / 10]);
  assert.equal(lab.lately(points).length, 101);
});

const news = (o) => ({ k: "frame", run: 1, token: 1, cost: 0, text: [0, []], points: [0, []], numbers: [1, 0.5, 2, 0], ...o });
test("the store takes news in order and each only once", () => {
  const s = new lab.Store(), first = news({ text: [0, [["a", 0, 0]]] });
  assert.equal(s.take(first, [bytes(1, 2)]), true);
  assert.equal(s.take(first, [bytes(1, 2)]), false);
  s.take(news({ text: [1, [["b", 0, 0]]] }), [bytes(1, 2)]);
  assert.deepEqual(s.text.map((t) => t[0]), ["a", "b"]);
});
test("a new run empties the text and keeps the lines", () => {
  const s = new lab.Store();
  s.take(news({ text: [0, [["a", 0, 0]]], points: [0, [[1, 0, 0, 0, 0, 0, 0, 0, 0]]] }), [bytes(1, 2)]);
  s.take(news({ run: 2, text: [0, [["z", 0, 0]]], points: [1, []] }), [bytes(1, 2)]);
  assert.deepEqual([s.text.map((t) => t[0]), s.points.length], [["z"], 1]);
});
test("the prompt of a run is kept until the next run brings its own", () => {
  const s = new lab.Store();
  s.take(news({ prompt: "def f(" }), [bytes(1, 2)]);
  s.take(news({}), [bytes(1, 2)]);
  assert.equal(s.prompt, "def f(");
});
test("a full message replaces what was there", () => {
  const s = new lab.Store();
  s.take(news({ text: [0, [["a", 0, 0]]] }), [bytes(1, 2)]);
  s.take(news({ k: "full", text: [0, [["x", 0, 0], ["y", 0, 0]]] }), [bytes(1, 2)]);
  assert.deepEqual(s.text.map((t) => t[0]), ["x", "y"]);
  assert.ok(s.answered);
});
test("the table says what the map shows", () => {
  const f = lab.decode(bytes(1, 4));
  f.cells.set([0, RESIDENT, RESIDENT | USED, RESIDENT | USED | LOADED]);
  assert.deepEqual(lab.table(f, [5]), [["5", "3 of 4", "2", "3", "2 3"]]);
});
