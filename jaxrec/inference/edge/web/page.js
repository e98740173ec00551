// Shows the lists of a shopper whose state this browser keeps.
import { EdgeModel } from "./model.js";

const KEY = "jaxrec shopper";
const byId = (id) => document.getElementById(id);
const seconds = () => Math.floor(Date.now() / 1000);

async function start() {
  const begin = performance.now();
  const model = await EdgeModel.load();
  let shopper = await restored(model);
  const figures = { started: performance.now() - begin };

  // one change at a time: a state follows from the one before
  let changes = Promise.resolve();
  function change(make) {
    changes = changes.then(make).catch(failed);
    return changes;
  }

  async function record(item, type) {
    const before = performance.now();
    shopper = await model.read(shopper, { item, type, time: seconds() });
    figures.event = performance.now() - before;
    localStorage.setItem(KEY, JSON.stringify(shopper));
    await show();
  }

  function row({ id, title }) {
    const line = document.createElement("li");
    line.dataset.item = id;
    const name = document.createElement("span");
    name.textContent = title;
    line.append(name, ...model.manifest.event_types.map((type) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = type;
      button.setAttribute("aria-label", `${type} ${title}`);
      button.addEventListener("click", () => change(() => record(id, type)));
      return button;
    }));
    return line;
  }

  async function show() {
    const before = performance.now();
    const items = await model.recommend(shopper, 10, seconds());
    figures.list = performance.now() - before;
    byId("list").replaceChildren(...items.map(row));
    byId("events").replaceChildren(...shopper.events.slice(0, 20).map(({ item, type }) => {
      const line = document.createElement("li");
      line.textContent = `${type} ${model.titles[model.number.get(item) ?? 0] ?? item}`;
      return line;
    }));
    byId("none").hidden = shopper.events.length > 0;
    byId("status").textContent = statusLine(model, figures);
  }

  function search() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const numbers = words.length ? [...model.ids.keys()].slice(1) : [];
    const text = (number) => `${model.ids[number]} ${model.titles[number] ?? ""}`.toLowerCase();
    const found = numbers.filter((number) => words.every((word) => text(number).includes(word)));
    byId("found").replaceChildren(...found.slice(0, 10).map((number) =>
      row({ id: model.ids[number], title: model.titles[number] ?? model.ids[number] })));
  }

  byId("search").addEventListener("input", search);
  byId("forget").addEventListener("click", () => change(() => {
    localStorage.removeItem(KEY);
    shopper = model.newShopper();
    return show();
  }));
  await show();
  search(); // for words that were typed while the model was loading
}

/** The shopper of the last visit. A state of another model is computed anew from the events. */
async function restored(model) {
  let shopper = model.newShopper();
  const kept = JSON.parse(localStorage.getItem(KEY) ?? "null");
  if (!kept) return shopper;
  if (kept.model === shopper.model) return kept;
  const known = kept.events.filter(({ type }) => model.manifest.event_types.includes(type));
  for (const event of known.reverse()) shopper = await model.read(shopper, event);
  return shopper;
}

function statusLine(model, { started, event, list }) {
  const parts = [
    `${(model.ids.length - 1).toLocaleString("en")} items`,
    `${(model.bytes / 1e6).toFixed(1)} MB beside the runtime`,
    `started in ${(started / 1000).toFixed(1)} s`,
    ...(event === undefined ? [] : [`event ${event.toFixed(1)} ms`]),
    `list ${list.toFixed(1)} ms`,
  ];
  return parts.join(" · ");
}

function failed(error) {
  byId("status").textContent = `The page does not work here: ${error.message}`;
}

start().catch(failed);
