// The worker that runs the models: ONNX files, by ONNX Runtime as WebAssembly, on one thread.
//
// It is sent {id, name, sums: digits, counts} or {id, name, answers: chains, counts}, and sends {id, value} for each
// of the loop counts, {id, done} at the end, or {id, error}. {stop: id} ends it sooner. A single chain goes before many.

import * as ort from "./runtime/ort.wasm.min.mjs";

const HERE = new URL("./", import.meta.url).href;
ort.env.wasm.wasmPaths = `${HERE}runtime/`;
ort.env.wasm.numThreads = 1; // more would need headers that static hosts do not send

const START = 7;
const EQ = 8;

async function session(file) {
  const response = await fetch(`${HERE}models/${file}`);
  if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
  return ort.InferenceSession.create(await response.arrayBuffer());
}

/** Tokens (B, T) as a tensor. */
function tokenTensor(rows) {
  return new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
}

/** The likeliest token at some positions, counted through all rows of logits (B, T, V). */
function likeliest({ data, dims }, positions) {
  const width = dims[2];
  return positions.map((position) => {
    const logits = data.subarray(position * width, (position + 1) * width);
    return logits.reduce((best, logit, token) => (logit > logits[best] ? token : best), 0);
  });
}

/** The model with a window of two in three parts. The loop is here: the same block, again and again. */
class WindowLoop {
  static async load() {
    const model = new WindowLoop();
    [model.encode, model.turn, model.readOut] = await Promise.all(
      ["encode.onnx", "turn.onnx", "read_out.onnx"].map(session),
    );
    return model;
  }

  /**
   * After each loop: what the model would answer if the chain ended after its first digit, its second and so on.
   *
   * It answers at EQ, which sees itself and the digit before it, as a digit does. So each digit gets a row of three
   * tokens: the one before it, itself, and an EQ of its own. The first of them lacks what stands before it, and is
   * therefore taken from the row above, where it comes second, after every step.
   */
  async *sums(digits, counts) {
    const rows = digits.map((digit, i) => [i ? digits[i - 1] : START, digit, EQ]);
    const e = withNeighbours((await this.encode.run({ token_ids: tokenTensor(rows) })).out);
    const ends = digits.map((_, i) => 3 * i + 2);
    let h = e;
    for (let loop = 1; loop <= counts.at(-1); loop++) {
      h = withNeighbours((await this.turn.run({ h, e })).out);
      if (counts.includes(loop)) yield [loop, likeliest((await this.readOut.run({ h })).out, ends)];
    }
  }

  /** After each loop: the answers to chains of one length. */
  async *answers(chains, counts) {
    const e = (await this.encode.run({ token_ids: tokenTensor(chains.map((chain) => [START, ...chain, EQ])) })).out;
    const ends = chains.map((_, i) => 2 * i + 1);
    let h = e;
    for (let loop = 1; loop <= counts.at(-1); loop++) {
      h = (await this.turn.run({ h, e })).out;
      if (counts.includes(loop)) yield [loop, likeliest((await this.readOut.run({ h: lastTwo(h) })).out, ends)];
    }
  }
}

/** States (B, 3, D) in which each row's first vector is the second of the row before. */
function withNeighbours({ data, dims }) {
  const [rows, length, width] = dims;
  for (let row = 1; row < rows; row++) {
    const from = ((row - 1) * length + 1) * width;
    data.copyWithin(row * length * width, from, from + width);
  }
  return new ort.Tensor("float32", data, dims);
}

/** States (B, T, D) → those of the last two positions (B, 2, D): EQ, and the digit that it sees. */
function lastTwo({ data, dims }) {
  const [rows, length, width] = dims;
  const last = new Float32Array(rows * 2 * width);
  for (let row = 0; row < rows; row++) {
    const end = (row + 1) * length * width;
    last.set(data.subarray(end - 2 * width, end), row * 2 * width);
  }
  return new ort.Tensor("float32", last, [rows, 2, width]);
}

/** A whole model as one file, whose loop count is an input. */
class WholeModel {
  static async load(name) {
    const model = new WholeModel();
    model.session = await session(`${name}.onnx`);
    return model;
  }

  async logits(chains, loops) {
    const n_loops = new ort.Tensor("int64", BigInt64Array.of(BigInt(loops)), []);
    const token_ids = tokenTensor(chains.map((chain) => [START, ...chain, EQ]));
    return (await this.session.run({ token_ids, n_loops })).logits;
  }

  /** At each loop count: what is read out at each digit, and at EQ. */
  async *sums(digits, counts) {
    const positions = [...digits, EQ].map((_, i) => i + 1);
    for (const loops of counts) yield [loops, likeliest(await this.logits([digits], loops), positions)];
  }

  /** At each loop count: the answers to chains of one length. */
  async *answers(chains, counts) {
    const ends = chains.map((chain, i) => (i + 1) * (chain.length + 2) - 1);
    for (const loops of counts) yield [loops, likeliest(await this.logits(chains, loops), ends)];
  }
}

const loaded = {};
const load = (name) => (loaded[name] ??= name === "mod7" ? WindowLoop.load() : WholeModel.load(name));
load("mod7").catch(() => {}); // before anybody asks; who asks hears what went wrong

// ---------------------------------------------------------------- work

const jobs = new Map();

async function* steps({ name, sums, answers, counts }) {
  const model = await load(name);
  yield* sums ? model.sums(sums, counts) : model.answers(answers, counts);
}

/** Wait until messages that have come are read. */
function listen() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
}

let working = false;
/** One step of one job at a time, until there are none. */
async function work() {
  if (working) return;
  working = true;
  while (jobs.size) {
    const all = [...jobs];
    const [id, job] = all.find(([, { urgent }]) => urgent) ?? all[0];
    try {
      const { value, done } = await job.steps.next();
      if (done) jobs.delete(id);
      postMessage({ id, value, done });
    } catch (error) {
      jobs.delete(id);
      postMessage({ id, error: error.message });
    }
    await listen();
  }
  working = false;
}

addEventListener("message", ({ data }) => {
  if (data.stop) {
    jobs.delete(data.stop);
    return;
  }
  jobs.set(data.id, { steps: steps(data), urgent: data.sums || data.answers.length === 1 });
  work();
});
