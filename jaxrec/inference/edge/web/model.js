// The reader of a directory of `jaxrec export`, as examples/edge.py, with ONNX Runtime Web.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that static servers rarely send
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

const MASKED = -1e30;
const UNKNOWN = -1; // a time that is not known

const integers = (...values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [values.length]);
const floats = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);

export class EdgeModel {
  /** Load the programs and tables beside the page. */
  static async load() {
    const model = new EdgeModel();
    let bytes = 0;
    const read = async (name) => {
      const answer = await fetch(name);
      if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
      const content = new Uint8Array(await answer.arrayBuffer());
      bytes += content.length;
      return content;
    };
    const json = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));
    const names = ["update.onnx", "recommend.onnx", "item_vectors.npy"];
    const [manifest, items, update, recommend, vectors] = await Promise.all([
      json("manifest.json"), json("items.json"), ...names.map(read),
    ]);
    const neighbours = await Promise.all(manifest.neighbours.map(async (options) => ({
      ...options,
      rowsOf: (await Promise.all([options.items, options.amounts].map(read))).map((file) => rowReader(file)),
    })));
    const externalData = [{ path: names[2], data: vectors }];
    Object.assign(model, {
      manifest,
      bytes,
      ids: items.item_id,
      titles: items.title ?? items.item_id,
      number: new Map(items.item_id.map((id, number) => [id, number])),
      vectorOf: rowReader(vectors, manifest.vector_unit),
      neighbours,
      update: await ort.InferenceSession.create(update),
      ranking: await ort.InferenceSession.create(recommend, { externalData }),
    });
    return model;
  }

  /** All that is kept of a user without events; it survives JSON. */
  newShopper() {
    const { model, initial_state: state } = this.manifest;
    return { model, state, lastTime: UNKNOWN, recent: [], masked: [], events: [] };
  }

  /** The shopper after an event; an item that the model lacks is item 0. Time is in seconds. */
  async read(shopper, event) {
    const item = this.number.get(event.item) ?? 0;
    const type = this.manifest.event_types.indexOf(event.type);
    const { new_state: state } = await this.update.run({
      state: floats(shopper.state, [1, this.manifest.state_size]),
      item_vector: floats(this.vectorOf(item), [1, this.manifest.vector_width]),
      event_type: integers(type),
      gap: integers(this.secondsSince(shopper, event.time)),
    });
    const ages = this.manifest.repeat_bias[0][0].length;
    const hides = item && this.manifest.masked_event_types.includes(type);
    return {
      model: shopper.model,
      state: Array.from(state.data),
      lastTime: event.time,
      recent: [[item, type], ...shopper.recent].slice(0, ages),
      masked: hides ? [...new Set([...shopper.masked, item])] : shopper.masked,
      events: [event, ...shopper.events].slice(0, 1000),
    };
  }

  /** The k best items, as {id, title, score}. Without `now`, the time since the last event is unknown. */
  async recommend(shopper, k, now = null) {
    const target = this.manifest.target_event_type;
    const bias = this.manifest.repeat_bias[target + 1];
    const adjusted = [
      ...shopper.recent.map(([item, type], age) => [item, bias[type][age]]),
      ...this.neighbours.flatMap((options) => raised(shopper, options)),
      ...shopper.masked.map((item) => [item, MASKED]),
    ];
    const { items, scores } = await this.ranking.run({
      state: floats(shopper.state, [1, this.manifest.state_size]),
      target_event_type: integers(target),
      time_since_last: integers(now === null ? UNKNOWN : this.secondsSince(shopper, now)),
      adjusted_items: integers(...adjusted.map(([item]) => item)),
      adjustments: floats(adjusted.map(([, amount]) => amount), [adjusted.length]),
      k: integers(Math.min(k, this.ids.length - 1)),
    });
    return Array.from(items.data, (number, place) => ({
      id: this.ids[number],
      title: this.titles[number] ?? this.ids[number],
      score: scores.data[place],
    })).filter(({ score }) => score > MASKED / 2);
  }

  secondsSince(shopper, time) {
    const known = this.manifest.has_time && shopper.lastTime !== UNKNOWN;
    return known ? Math.max(time - shopper.lastTime, 0) : UNKNOWN;
  }
}

/** What the newest events of a shopper add to the scores of the neighbours of their items. */
function raised(shopper, options) {
  return options.weights.flatMap((weight, age) => {
    const [item, type] = shopper.recent[age] ?? [];
    if (!options.event_types.includes(type)) return [];
    const [items, amounts] = options.rowsOf.map((rowOf) => rowOf(item));
    return items.map((other, place) => [other, weight * amounts[place]]);
  });
}

/** Rows of a NumPy file of float32, int32, int16 or uint16 numbers, times a unit. */
function rowReader(file, unit = 1) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const start = 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(file.subarray(10, start));
  const width = Number(header.match(/'shape': \(\d+, (\d+)\)/)[1]);
  const [size, number] = {
    "<f4": [4, (place) => view.getFloat32(place, true)],
    "<i4": [4, (place) => view.getInt32(place, true)],
    "<i2": [2, (place) => view.getInt16(place, true)],
    "<u2": [2, (place) => view.getUint16(place, true)],
  }[header.match(/'descr': '(...)'/)[1]];
  return (row) => Array.from({ length: width }, (_, n) => unit * number(start + (row * width + n) * size));
}
