// The playground's page: what is typed, shown and drawn. The models run in a worker, models.js.

const HERE = new URL("./", import.meta.url).href;
const MODULUS = 7;
const TOKENS = ["0", "1", "2", "3", "4", "5", "6", "START", "EQ", "PAD"];
const NAMES = { mod7: "window of two", "mod7-doubling": "doubling window" };
const MOST_LOOPS = { mod7: 64, "mod7-doubling": 16, published: 64 };
const AT_ONCE = 50; // chains of one run; the next answer waits for it
const PUBLISHED_LOOPS = [1, 2, 4, 8, 16];
const LENGTHS = [4, 8, 12, 16, 24, 32, 48, 64],
  DRAWN = [4, 8, 16];
const COLUMNS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64];
const STYLES = [
  ["var(--s0)", "", "circle"],
  ["var(--s1)", "7 3", "square"],
  ["var(--s2)", "7 3 2 3", "up"],
  ["var(--s3)", "2 3", "diamond"],
  ["var(--s4)", "12 3", "down"],
  ["var(--s5)", "7 3 2 3 2 3", "circle"],
  ["var(--s6)", "1 3", "square"],
  ["var(--s7)", "4 4", "up"],
];
const ENTRY = 180; // width of one entry of the legend
const DESCRIBED = "Accuracy against loops, one line for each length; the same numbers are in the table below.";
const PUBLISHED_STYLE = ["var(--published)", "3 4", "cross"];

const $ = (id) => document.getElementById(id);
const range = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => from + i);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const sumsOf = (digits) => digits.reduce((sums, d) => [...sums, ((sums.at(-1) ?? 0) + d) % MODULUS], []);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------- models

const worker = new Worker(`${HERE}models.js`, { type: "module" });
const waiting = new Map(); // number of a request → what to do with what comes back
let requests = 0;
worker.addEventListener("message", ({ data }) => waiting.get(data.id)?.(data));
worker.addEventListener("error", (event) => fail(event));

/** What the worker finds, one by one: [loops, tokens], for each of the loop counts. */
async function* request(work) {
  const id = ++requests;
  const arrived = [];
  let wake;
  waiting.set(id, (message) => {
    arrived.push(message);
    wake?.();
  });
  worker.postMessage({ id, ...work });
  try {
    for (;;) {
      while (!arrived.length) await new Promise((resolve) => (wake = resolve));
      const { value, done, error } = arrived.shift();
      if (error) throw new Error(error);
      if (done) return;
      yield value;
    }
  } finally {
    waiting.delete(id);
    worker.postMessage({ stop: id });
  }
}

// ---------------------------------------------------------------- what is typed

/** The digits of a text, or an Error that says in words what is wrong with it. */
function parse(text) {
  const digits = [];
  for (const [i, character] of [...text].entries()) {
    if (/[\s,]/u.test(character)) continue;
    if (/[0-6]/.test(character)) {
      digits.push(Number(character));
      continue;
    }
    const what = /[7-9]/.test(character)
      ? "is too large a digit: the model knows 0 to 6"
      : "is not a digit from 0 to 6";
    throw new Error(`“${character}”, character ${i + 1}, ${what}. Accepted are the digits 0 to 6, spaces and commas.`);
  }
  if (digits.length === 0) throw new Error(`There is no digit yet. Type 2 to ${facts.longest} digits from 0 to 6.`);
  if (digits.length === 1) throw new Error(`One digit is too short a chain: 2 to ${facts.longest} are accepted.`);
  if (digits.length > facts.longest) {
    throw new Error(`${digits.length} digits are too many: 2 to ${facts.longest} are accepted.`);
  }
  return digits;
}

const randomChain = (length) => range(1, length).map(() => Math.floor(Math.random() * MODULUS));

// ---------------------------------------------------------------- one chain

let facts; // models.json
let asked = { digits: [], rows: new Map(), name: "mod7" }; // the chain, and what was read after each loop
let published = { loops: 0, answer: null };

const readsDigits = (name) => name !== "mod7";
/** Loops that a cell of the grid needs, by its column; the last column's are the chain's. */
function neededAt(name, n, column) {
  return facts[name].needed[readsDigits(name) && column < n ? column : Math.min(column + 1, n)];
}
const neededFor = (name, n) => facts[name].needed[n];
const word = (token) => TOKENS[token] ?? `token ${token}`;

function truth(digits) {
  const total = digits.reduce((a, b) => a + b, 0);
  return { total, answer: total % MODULUS, text: `${total} mod ${MODULUS} = ${total % MODULUS}` };
}

/** Read the form, and ask for the running sums after each loop if chain or model are new. */
async function ask() {
  const name = document.querySelector("input[name=model]:checked").value;
  let digits;
  try {
    digits = parse($("chain").value);
    $("fault").textContent = "";
    $("chain").removeAttribute("aria-invalid");
  } catch (error) {
    stop();
    $("fault").textContent = error.message;
    $("chain").setAttribute("aria-invalid", "true");
    asked = { digits: [], rows: new Map(), name };
    showNothing();
    return;
  }
  if (name === asked.name && digits.join() === asked.digits.join()) return show();
  stop();
  const mine = (asked = { digits, rows: new Map(), name });
  published = { loops: 0, answer: null };
  $("loops").max = MOST_LOOPS[name];
  $("count").textContent = $("loops").value;
  busy(true);
  startGrid();
  await trace(mine);
}

async function trace(mine) {
  const { name, digits } = mine;
  for await (const [loop, read] of request({ name, sums: digits, counts: range(1, MOST_LOOPS[name]) })) {
    if (mine !== asked) return; // another chain was typed
    mine.rows.set(loop, read);
    addRow(loop, read);
    if (loop === shownLoops()) show();
    else if (Math.abs(loop - neededFor(name, digits.length)) < 2) compare(); // which the table may ask for
    if (loop === shownLoops() && !$("time").textContent) {
      $("time").textContent = `First answer ${(performance.now() / 1000).toFixed(1)} s after the page was opened.`;
    }
  }
}

const busy = (is) => document.querySelector(".results").setAttribute("aria-busy", is);
const shownLoops = () => Number($("loops").value);

function showNothing() {
  busy(false);
  $("digit").textContent = "…";
  $("digit").className = "digit";
  $("answer").textContent = "No answer: the chain cannot be read.";
  $("needs").textContent = $("reading").textContent = "";
  for (const part of [$("comparison").tBodies[0], $("sums").tHead, $("sums").tBodies[0]]) part.replaceChildren();
}

/** Everything that depends on the slider. */
function show() {
  const { digits, rows, name } = asked,
    loops = shownLoops();
  $("count").textContent = loops;
  for (const row of $("sums").tBodies[0].rows) row.hidden = Number(row.dataset.loop) > loops;
  const read = rows.get(loops);
  busy(!read);
  if (!read) return; // it is being computed, and shows itself then
  const n = digits.length,
    needed = neededFor(name, n),
    { answer, text } = truth(digits),
    said = read.at(-1);
  const right = said === answer;
  $("digit").textContent = word(said);
  $("digit").className = right ? "digit right" : "digit";
  const verdict = right ? (loops < needed ? "Right, by luck" : "Right") : "Wrong";
  const needs = `${plural(n, "digit")} need ${plural(needed, "loop")}`;
  const why = loops < needed ? ` ${needs}: the first one has not arrived yet.` : "";
  const since = range(1, loops).findLast((loop) => rows.get(loop)?.at(-1) !== said);
  const stood = right && loops > needed ? ` The answer has stood since loop ${(since ?? 0) + 1}.` : "";
  const found = `After ${plural(loops, "loop")} the model answers ${word(said)}. ${verdict}: ${text}.`;
  $("answer").textContent = `${found}${why}${stood}`;
  compare();
}

/** The table of the same chain on the other side of the loops that it needs, and by the published model. */
function compare() {
  const { digits, rows, name } = asked,
    loops = shownLoops(),
    n = digits.length,
    needed = neededFor(name, n);
  const { answer, text } = truth(digits);
  const verdict = (said) => (said === undefined ? "" : said === answer ? "right" : "wrong");
  const lines = [["this loop", loops, rows.get(loops)?.at(-1)]];
  if (loops < needed) lines.push(["as many loops as needed", needed, rows.get(needed)?.at(-1)]);
  else if (needed > 1) lines.push(["one loop too few", needed - 1, rows.get(needed - 1)?.at(-1)]);
  const longest = facts.published.longest;
  if (n <= longest)
    lines.push(["as the tutorial published it", loops, published.loops === loops ? published.answer : undefined]);
  const made = lines.map(([who, count, said]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, who),
      element("td", {}, String(count)),
      element("td", {}, said === undefined ? "…" : word(said)),
      element("td", {}, verdict(said)),
    ),
  );
  if (n > longest) {
    made.push(
      element(
        "tr",
        {},
        element("th", { scope: "row" }, "as the tutorial published it"),
        element("td", { colspan: "3" }, `takes ${longest} digits at most`),
      ),
    );
  }
  made.push(
    element(
      "tr",
      {},
      element("th", { scope: "row" }, "the sum itself"),
      element("td"),
      element("td", {}, String(answer)),
      element("td", {}, text),
    ),
  );
  $("comparison").tBodies[0].replaceChildren(...made);
  if (n <= longest && published.loops !== loops) askPublished().catch(fail);
}

let askingPublished = false;
/** The published model's answer at the slider's loops, one run at a time, and the newest wish next. */
async function askPublished() {
  if (askingPublished || playing) return;
  askingPublished = true;
  try {
    const mine = asked,
      loops = shownLoops();
    for await (const [, [answer]] of request({ name: "published", answers: [mine.digits], counts: [loops] })) {
      if (mine === asked) published = { loops, answer };
    }
  } finally {
    askingPublished = false;
  }
  if (asked.digits.length) compare();
}

/** Head of the grid: the digits, and below them their true sums. */
function startGrid() {
  const { digits, name } = asked,
    n = digits.length,
    sums = sumsOf(digits),
    needed = neededFor(name, n);
  const rule = name === "mod7" ? "n − 2" : "⌈log₂(n + 1)⌉";
  $("needs").textContent = `${plural(n, "digit")} need ${plural(needed, "loop")} with this window (${rule}).`;
  $("reading").textContent = readsDigits(name)
    ? "Each digit reads out a sum at its own place, and EQ, at the end, reads out the answer. Sums double their reach " +
      "in every loop."
    : "What the model would answer if the chain ended at this digit. The news of a digit moves one place to the right " +
      "per loop; the last column is the answer.";
  const heads = digits.map((digit, i) => element("th", { scope: "col" }, hidden(`digit ${i + 1}: `), String(digit)));
  const truths = sums.map((sum) => element("th", { scope: "col" }, hidden("right sum "), String(sum)));
  if (readsDigits(name)) {
    heads.push(element("th", { scope: "col" }, "EQ"));
    truths.push(element("th", { scope: "col" }, hidden("right sum "), String(sums.at(-1))));
  }
  $("sums").tHead.replaceChildren(
    element("tr", {}, element("th", { scope: "row" }, "digits"), ...heads),
    element("tr", {}, element("th", { scope: "row" }, "sums mod 7"), ...truths),
  );
  $("sums").tBodies[0].replaceChildren();
}

const hidden = (text) => element("span", { class: "hidden" }, text);

function addRow(loop, read) {
  const { digits, name } = asked,
    n = digits.length,
    sums = sumsOf(digits);
  const cells = read.map((token, column) => {
    const right = token === sums[Math.min(column, n - 1)],
      needed = neededAt(name, n, column);
    const next = column + 1 < read.length ? neededAt(name, n, column + 1) : needed;
    const classes = [
      right ? "right" : "",
      loop === needed && needed > 1 ? "top" : "",
      loop >= needed && loop < next ? "side" : "",
    ];
    return element(
      "td",
      { class: classes.join(" ").trim() },
      token < MODULUS ? word(token) : "·",
      hidden(right ? " right" : " wrong"),
    );
  });
  const row = element(
    "tr",
    { "data-loop": loop, class: "fresh" },
    element("th", { scope: "row" }, hidden("after "), `loop ${loop}`),
    ...cells,
  );
  row.hidden = loop > shownLoops();
  $("sums").tBodies[0].append(row);
}

// ---------------------------------------------------------------- play

let playing = null;

function stop() {
  if (playing === null) return;
  clearTimeout(playing);
  playing = null;
  $("play").textContent = "Play";
  $("answer").setAttribute("aria-live", "polite");
  if (asked.digits.length) compare();
}

/** Move the slider from one loop to two more than needed. Only what it says at the end is read aloud. */
function play() {
  if (playing !== null) return stop();
  if (!asked.digits.length) return $("chain").focus();
  const end = Math.min(neededFor(asked.name, asked.digits.length) + 2, MOST_LOOPS[asked.name]);
  const pause = Math.max(80, Math.min(600, 5000 / end));
  $("play").textContent = "Stop";
  $("answer").setAttribute("aria-live", "off");
  const step = (loops) => {
    if (loops === end) stop();
    $("loops").value = loops;
    show();
    if (loops < end) playing = setTimeout(step, pause, loops + 1);
  };
  playing = 0;
  step(1);
}

// ---------------------------------------------------------------- accuracy against loops

let measuring = 0; // the number of the measurement that is wanted
let lines = []; // {label, digits, needed, style, points: [[loops, accuracy]], published}

async function measure() {
  const mine = ++measuring;
  const name = asked.name,
    count = Number($("chains").value);
  const lengths = [...document.querySelectorAll("input[name=length]:checked")].map((box) => Number(box.value));
  lines = lengths.map((digits) => ({
    label: plural(digits, "digit"),
    digits,
    needed: neededFor(name, digits),
    style: STYLES[LENGTHS.indexOf(digits)],
    name,
    counts: range(1, MOST_LOOPS[name]).filter((loop) => name === "mod7" || COLUMNS.includes(loop)),
    points: [],
  }));
  const short = lengths.find((digits) => digits <= facts.published.longest);
  if (short) {
    lines.push({
      label: `published, ${plural(short, "digit")}`,
      digits: short,
      needed: null,
      style: PUBLISHED_STYLE,
      name: "published",
      counts: PUBLISHED_LOOPS,
      points: [],
    });
  }
  drawAll();
  if (!lengths.length) {
    $("progress").textContent = "No length is chosen: tick one or more above.";
    return;
  }
  $("progress").textContent = `Answering ${plural(count, "random chain")} of each length…`;
  for (const line of lines) if (!(await measureLine(line, count, mine))) return;
  const good = lines.filter((line) => line.needed && from(line) !== null);
  const text = good.map((line) => {
    const loop = from(line);
    return `${line.label}: ${at(line, loop).toFixed(2)} from loop ${loop} on (needed: ${line.needed})`;
  });
  $("progress").textContent = `${plural(count, "random chain")} of each length. ${text.join("; ")}.`;
}

/** Fill a line's points; false if another measurement was begun meanwhile. */
async function measureLine(line, count, mine) {
  const chains = range(1, count).map(() => randomChain(line.digits)),
    right = new Map();
  for (let first = 0; first < count; first += AT_ONCE) {
    const some = chains.slice(first, first + AT_ONCE),
      sums = some.map((chain) => truth(chain).answer);
    for await (const [loops, answers] of request({ name: line.name, answers: some, counts: line.counts })) {
      if (mine !== measuring) return false;
      right.set(loops, (right.get(loops) ?? 0) + answers.filter((answer, i) => answer === sums[i]).length);
      line.points = [...right].map(([at, hits]) => [
        at,
        hits / Math.min(count, first + (at <= loops ? some.length : 0)),
      ]);
      if (loops % 4 === 0 || loops === line.counts.at(-1)) drawAll();
    }
  }
  return true;
}

const at = (line, loops) => line.points.find((point) => point[0] === loops)?.[1];
/** The first loop from which on the accuracy is as at the end, if that is far above chance. */
function from(line) {
  const last = line.points.at(-1)?.[1];
  if (!(last > 0.9)) return null;
  const below = line.points.findLastIndex((point) => point[1] < last - 1e-9);
  return line.points[below + 1][0];
}

function drawAll() {
  drawPlot();
  const name = asked.name,
    columns = COLUMNS.filter((loops) => loops <= MOST_LOOPS[name]);
  $("numbers").tHead.replaceChildren(
    element(
      "tr",
      {},
      element("th", { scope: "col" }, "loops"),
      element("th", { scope: "col" }, "needed"),
      ...columns.map((loops) => element("th", { scope: "col" }, String(loops))),
    ),
  );
  $("numbers").tBodies[0].replaceChildren(
    ...lines.map((line) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, line.label),
        element("td", {}, line.needed === null ? "" : String(line.needed)),
        ...columns.map((loops) => {
          const share = at(line, loops);
          return element("td", share === 1 ? { class: "one" } : {}, share === undefined ? "" : share.toFixed(2));
        }),
      ),
    ),
  );
}

function drawing(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function marker(shape, x, y, colour) {
  const s = 4.5,
    point = (...pairs) => pairs.map(([dx, dy]) => `${x + dx * s},${y + dy * s}`).join(" ");
  const shapes = {
    square: [
      [-1, -1],
      [1, -1],
      [1, 1],
      [-1, 1],
    ],
    up: [
      [0, -1.2],
      [1.1, 0.9],
      [-1.1, 0.9],
    ],
    down: [
      [0, 1.2],
      [1.1, -0.9],
      [-1.1, -0.9],
    ],
    diamond: [
      [0, -1.3],
      [1.3, 0],
      [0, 1.3],
      [-1.3, 0],
    ],
  };
  if (shape === "circle") return drawing("circle", { cx: x, cy: y, r: s, fill: colour });
  if (shape === "cross") {
    const d = `M${x - s},${y - s}L${x + s},${y + s}M${x - s},${y + s}L${x + s},${y - s}`;
    return drawing("path", { d, stroke: colour, "stroke-width": 2 });
  }
  return drawing("polygon", { points: point(...shapes[shape]), fill: colour });
}

/** Accuracy against loops, the latter on a logarithmic axis, as in the project's figures. */
function drawPlot() {
  const width = Math.max(300, $("plot").clientWidth),
    most = MOST_LOOPS[asked.name];
  const perRow = Math.max(1, Math.floor(width / ENTRY)),
    rows = Math.ceil((lines.length + 1) / perRow);
  const left = 38,
    right = 52,
    top = 10,
    bottom = 46,
    height = Math.min(340, 0.75 * width) + 22 * rows,
    base = height - bottom - 22 * rows;
  const x = (loops) => left + 8 + (Math.log2(loops) / Math.log2(most)) * (width - left - right - 8);
  const y = (share) => base - share * (base - top);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": DESCRIBED });
  const [low, high] = facts[asked.name].trained_loops;
  svg.append(
    drawing("rect", {
      class: "trained",
      x: x(low * 0.94),
      y: top,
      width: x(high * 1.06) - x(low * 0.94),
      height: base - top,
    }),
  );
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(drawing("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }));
    svg.append(drawing("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, share.toFixed(2)));
  }
  for (let loops = 1; loops <= most; loops *= 2) {
    svg.append(drawing("text", { x: x(loops), y: base + 18, "text-anchor": "middle" }, String(loops)));
  }
  svg.append(
    drawing("text", { x: (left + width - right) / 2, y: base + 38, "text-anchor": "middle" }, "loops (log scale)"),
  );
  svg.append(drawing("line", { class: "chance", x1: left, x2: width - right, y1: y(1 / MODULUS), y2: y(1 / MODULUS) }));
  svg.append(drawing("text", { class: "faint", x: width - right + 6, y: y(1 / MODULUS) + 4 }, "chance"));
  const entry = (i) => [left + (i % perRow) * ENTRY, base + 58 + 22 * Math.floor(i / perRow)];
  lines.forEach((line, i) => {
    const [colour, dashes, shape] = line.style,
      points = [...line.points].sort((a, b) => a[0] - b[0]);
    const d = points
      .map(([loops, share], k) => `${k ? "L" : "M"}${x(loops).toFixed(1)},${y(share).toFixed(1)}`)
      .join("");
    const stroke = { fill: "none", stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dashes };
    svg.append(drawing("path", { ...stroke, d, class: "curve", "data-label": line.label }));
    for (const [loops, share] of points) {
      if (Number.isInteger(Math.log2(loops)) || loops === line.needed)
        svg.append(marker(shape, x(loops), y(share), colour));
    }
    const [lx, ly] = entry(i);
    svg.append(drawing("path", { ...stroke, d: `M${lx},${ly - 4}h34` }), marker(shape, lx + 17, ly - 4, colour));
    svg.append(drawing("text", { x: lx + 42, y: ly }, line.label));
  });
  const [lx, ly] = entry(lines.length);
  svg.append(drawing("rect", { class: "trained", x: lx, y: ly - 11, width: 34, height: 14 }));
  svg.append(drawing("text", { x: lx + 42, y: ly }, "loops in training"));
  $("plot").replaceChildren(svg);
}

// ---------------------------------------------------------------- the page

function fillForms() {
  for (const [i, [name, label]] of Object.entries(NAMES).entries()) {
    const rule = name === "mod7" ? "n digits need n − 2 loops" : "n digits need ⌈log₂(n + 1)⌉ loops";
    const input = element("input", { type: "radio", name: "model", value: name, ...(i === 0 && { checked: "" }) });
    $("models").append(element("label", {}, input, ` ${label}: ${rule}`));
  }
  for (const length of [5, 8, 16, 32, 64]) {
    const button = element("button", { type: "button" }, hidden("random chain of "), `${length}`, hidden(" digits"));
    button.addEventListener("click", () => {
      $("chain").value = randomChain(length).join(" ");
      ask().catch(fail);
    });
    document.querySelector(".examples").append(button);
  }
  for (const length of LENGTHS) {
    const input = element("input", {
      type: "checkbox",
      name: "length",
      value: length,
      ...(DRAWN.includes(length) && { checked: "" }),
    });
    $("lengths")
      .querySelector("fieldset")
      .append(element("label", {}, input, ` ${length}`));
  }
}

function fillFacts() {
  const text = (name) => {
    const {
      parameters,
      trained_digits: [, digits],
      trained_loops: [, loops],
    } = facts[name];
    const size = parameters.toLocaleString("en");
    return `${size} parameters, trained on at most ${digits} digits with at most ${loops} loops`;
  };
  const [digits, loops] = [facts.mod7.trained_digits[1], facts.mod7.trained_loops[1]];
  $("trained").textContent = `In training it saw at most ${digits} digits, and ran for at most ${loops} loops.`;
  const card = (name) => element("a", { href: `../mythos_lite/checkpoints/${name}/MODEL_CARD.html` }, name);
  $("facts").append(
    element(
      "li",
      {},
      card("mod7"),
      `, the window of two: ${text("mod7")}. `,
      "A position sees itself and the one before it.",
    ),
    element(
      "li",
      {},
      card("mod7-doubling"),
      `, the doubling window: ${text("mod7-doubling")}. `,
      "A position sees itself and, in loop t, the one 2ᵗ⁻¹ back.",
    ),
    element(
      "li",
      {},
      `The published model: ${text("published")}, as the tutorial that the series began with trains it. `,
      "Its weights are rounded to 16 bits here. It sees all positions at once, so that nothing says how many loops it ",
      "needs.",
    ),
  );
}

function fail(error) {
  $("answer").textContent = `The model cannot be run here: ${error.message}`;
  $("digit").textContent = "…";
}

async function main() {
  const response = await fetch(`${HERE}models/models.json`);
  if (!response.ok) throw new Error(`models.json: ${response.status} ${response.statusText}`);
  facts = await response.json();
  fillForms();
  fillFacts();
  let typing;
  $("chain").addEventListener("input", () => {
    asked = { digits: [], rows: new Map(), name: asked.name }; // what is still being computed is of the old chain
    busy(true);
    clearTimeout(typing);
    typing = setTimeout(() => ask().catch(fail), 150);
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask().catch(fail);
  });
  $("models").addEventListener("change", () => ask().then(measure).catch(fail));
  $("loops").addEventListener("input", () => {
    stop();
    $("count").textContent = $("loops").value;
    if (asked.digits.length) show();
  });
  $("play").addEventListener("click", play);
  $("lengths").addEventListener("submit", (event) => {
    event.preventDefault();
    measure().catch(fail);
  });
  $("lengths").addEventListener("change", () => measure().catch(fail));
  new ResizeObserver(() => lines.length && drawPlot()).observe($("plot"));
  await ask();
  await measure();
}

main().catch(fail);
