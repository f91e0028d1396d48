// The page: one job at a time, followed at its events. The history lies in the browser's own database.

const at = (id) => document.getElementById(id);
const MOST_KEPT = 100;
let job = null; // the one that is painted: { id, stop }

// --- The server ------------------------------------------------------------------------------------------------------

function headers(more = {}) {
  const key = at("key").value.trim();
  return key ? { authorization: `Bearer ${key}`, ...more } : more;
}

async function call(method, path, body) {
  const init = { method, headers: headers(body ? { "content-type": "application/json" } : {}) };
  if (body) init.body = JSON.stringify(body);
  const answer = await fetch(path, init);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error?.message ?? `the server answers ${answer.status}`);
  return said;
}

// Server-sent events, by fetch: EventSource cannot send a key.
async function* events(path, signal) {
  const answer = await fetch(path, { headers: headers(), signal });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      const name = /^event: (.*)$/m.exec(part)?.[1];
      if (data) yield { name, data: JSON.parse(data) };
    }
  }
}

// --- Painting --------------------------------------------------------------------------------------------------------

function asked() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  const side = (id) => number(id) ?? at(id).placeholder;
  const size = number("width") || number("height") ? `${side("width")}x${side("height")}` : undefined;
  return {
    prompt: at("prompt").value,
    model: at("model").value || undefined,
    size,
    num_inference_steps: number("steps"),
    guidance_scale: number("guidance"),
    seed: number("seed"),
    negative_prompt: at("negative").value || undefined,
    partial_images: 3,
  };
}

async function paint() {
  if (job) return;
  const wish = asked();
  const stop = new AbortController();
  job = { id: null, stop };
  busy(true);
  show("Sending ...");
  try {
    const made = await call("POST", "v1/jobs", wish);
    job.id = made.id;
    if (stop.signal.aborted) await call("POST", `v1/jobs/${made.id}/cancel`);
    for await (const event of events(`v1/jobs/${made.id}/events`, null)) await hear(event, wish);
  } catch (error) {
    fail(error.message);
  } finally {
    job = null;
    busy(false);
  }
}

async function hear({ name, data }, wish) {
  if (name === "job.status") tell(data);
  else if (name === "error") fail(data.error.message);
  else if (name.endsWith(".partial_image")) draw(data, true);
  else if (name.endsWith(".completed")) {
    draw(data, false);
    await keep({ wish: { ...wish, seed: data.seed, size: data.size }, data: data.b64_json, form: data.output_format });
  } else if (name === "job.done") show("Done.");
  else if (name === "job.cancelled") show("Cancelled.");
}

function tell({ status, queue_position: position, estimated_seconds: seconds, progress, notes = [] }) {
  const bar = at("progress");
  at("notes").textContent = notes.join(" ");
  at("notes").hidden = notes.length === 0;
  bar.hidden = status !== "running" && status !== "queued";
  if (status === "queued") {
    show(`Waiting, ${position ?? 0} ahead${seconds ? `, about ${Math.ceil(seconds)} s` : ""} ...`);
    bar.removeAttribute("value");
  } else if (status === "running" && progress) {
    show(`Step ${progress.done} of ${progress.total}, ${progress.width} x ${progress.height} px`);
    bar.value = progress.done / progress.total;
  }
}

function draw(data, preview) {
  const picture = at("picture");
  picture.src = `data:image/${data.output_format};base64,${data.b64_json}`;
  picture.classList.toggle("preview", preview);
  picture.alt = preview ? "A preview of the picture" : at("prompt").value;
  at("caption").textContent = preview ? `A preview, ${data.size} px` : `${data.size} px, seed ${data.seed}`;
  at("canvas").hidden = false;
}

async function cancel() {
  if (!job) return;
  job.stop.abort();
  if (job.id) await call("POST", `v1/jobs/${job.id}/cancel`).catch((error) => fail(error.message));
}

function busy(yes) {
  at("paint").disabled = yes;
  at("cancel").disabled = !yes;
  if (!yes) at("progress").hidden = true;
  if (yes) at("error").hidden = true;
}

function show(text) {
  at("status").textContent = text;
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = false;
  show("");
}

// --- History ---------------------------------------------------------------------------------------------------------

const database = new Promise((resolve) => {
  const asked = indexedDB.open("lssgen", 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
  asked.onsuccess = () => resolve(asked.result);
  asked.onerror = () => resolve(null); // a private window: nothing is kept
});

async function stored(mode, work) {
  const opened = await database;
  if (!opened) return [];
  return new Promise((resolve, reject) => {
    const wish = work(opened.transaction("pictures", mode).objectStore("pictures"));
    wish.onsuccess = () => resolve(wish.result);
    wish.onerror = () => reject(wish.error);
  });
}

async function keep(entry) {
  await stored("readwrite", (store) => store.add({ ...entry, at: Date.now() }));
  const kept = await stored("readonly", (store) => store.getAllKeys());
  for (const old of kept.slice(0, Math.max(0, kept.length - MOST_KEPT))) await stored("readwrite", (store) => store.delete(old));
  await list();
}

async function list() {
  const kept = await stored("readonly", (store) => store.getAll());
  at("history").replaceChildren(...kept.reverse().map(card));
  at("clear").disabled = kept.length === 0;
}

function card({ id, wish, data, form }) {
  const source = `data:image/${form};base64,${data}`;
  const name = `lssgen-${wish.seed}`;
  const settings = URL.createObjectURL(new Blob([JSON.stringify(wish, null, 2)], { type: "application/json" }));
  const item = document.createElement("li");
  const image = Object.assign(document.createElement("img"), { src: source, alt: wish.prompt });
  const prompt = Object.assign(document.createElement("span"), { className: "prompt", textContent: wish.prompt });
  const row = document.createElement("div");
  row.className = "row";
  row.append(link("Picture", source, `${name}.${form}`), link("Settings", settings, `${name}.json`));
  row.append(press("Again", () => fill(wish)), press("Remove", () => remove(id)));
  item.append(image, prompt, row);
  return item;
}

function link(text, href, download) {
  return Object.assign(document.createElement("a"), { textContent: text, href, download });
}

function press(text, work) {
  const button = Object.assign(document.createElement("button"), { textContent: text, type: "button" });
  button.addEventListener("click", work);
  return button;
}

async function remove(id) {
  await stored("readwrite", (store) => store.delete(id));
  await list();
}

function fill(wish) {
  const [width, height] = (wish.size ?? "x").split("x");
  const values = { prompt: wish.prompt, width, height, steps: wish.num_inference_steps, guidance: wish.guidance_scale };
  for (const [id, value] of Object.entries({ ...values, seed: wish.seed, negative: wish.negative_prompt })) at(id).value = value ?? "";
  if (wish.model) at("model").value = wish.model;
  at("prompt").focus();
}

// --- Beginning -------------------------------------------------------------------------------------------------------

async function models() {
  try {
    const { data } = await call("GET", "v1/models");
    at("model").replaceChildren(...data.map((one) => new Option(one.id, one.id)));
    const size = () => {
      const model = data.find((one) => one.id === at("model").value);
      for (const side of ["width", "height"]) Object.assign(at(side), { placeholder: model[side], step: model.multiple, min: model.multiple });
    };
    at("model").addEventListener("change", size);
    size();
    at("error").hidden = true;
  } catch (error) {
    fail(error.message);
  }
}

at("key").value = sessionStorage.getItem("key") ?? "";
at("key").addEventListener("change", () => {
  sessionStorage.setItem("key", at("key").value);
  models();
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  paint();
});
at("cancel").addEventListener("click", cancel);
at("clear").addEventListener("click", async () => {
  await stored("readwrite", (store) => store.clear());
  await list();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
  if (event.key === "Escape") cancel();
});
models();
list();
