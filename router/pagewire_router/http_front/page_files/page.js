"use strict";

const STATS_EVERY_MS = 1000;
const NUM_POINTS = 60;
const byId = (id) => document.getElementById(id);
const form = byId("form").elements;
const input = byId("input");
const conversation = byId("conversation");

/* Settings live in this browser alone; the key only as long as the tab. */
const saved = JSON.parse(localStorage.getItem("pagewire") || "{}");
for (const [name, value] of Object.entries(saved)) if (form[name] && name !== "mode") form[name].value = value;
form.key.value = sessionStorage.getItem("pagewire-key") || "";
let mode = saved.mode;
let served = { model: "", chat: true };
let messages = [];
let running = null;

function headers() {
  const key = form.key.value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

function saveSettings() {
  const values = {};
  for (const field of form) if (field.name && !["key", "mode"].includes(field.name)) values[field.name] = field.value;
  localStorage.setItem("pagewire", JSON.stringify({ ...values, mode, theme: document.documentElement.dataset.theme }));
  sessionStorage.setItem("pagewire-key", form.key.value);
}

function showOutputs() {
  for (const range of document.querySelectorAll("input[type=range]")) {
    range.parentElement.querySelector("output").textContent = Number(range.value).toFixed(2);
  }
}

function setMode(value) {
  mode = value;
  form.mode.value = value;
  document.body.classList.toggle("text-mode", value === "text");
  input.placeholder = value === "chat" ? "Message" : "Text to continue";
}

/* Tiles */

let before = null;
const points = [];

function setState(text, kind) {
  const state = byId("state");
  state.textContent = text;
  state.className = `state ${kind}`;
}

const compact = (number) => (number >= 10000 ? `${(number / 1000).toFixed(1)}k` : String(Math.round(number)));

function drawSpark() {
  const top = Math.max(1, ...points);
  const at = (value, index) => `${(index * 60) / (NUM_POINTS - 1)},${(19 - (value / top) * 17).toFixed(2)}`;
  const shown = Array(NUM_POINTS - points.length).fill(0).concat(points).map(at).join(" L");
  byId("spark").querySelector(".line").setAttribute("d", `M${shown}`);
  byId("spark").querySelector(".area").setAttribute("d", `M0,20 L${shown} L60,20 Z`);
}

function showTiles(stats) {
  const seconds = before ? stats.time_s - before.time_s : 0;
  const generated = (groups) => new Map(groups.map((group) => [group.id, group.tokens_generated]));
  const earlier = before ? generated(before.groups) : new Map();
  const rates = stats.groups.map((group) => {
    const last = earlier.get(group.id);
    return seconds > 0 && last !== undefined ? Math.max(0, group.tokens_generated - last) / seconds : 0;
  });
  const total = rates.reduce((sum, rate) => sum + rate, 0);
  if (before) {
    points.push(total);
    if (points.length > NUM_POINTS) points.shift();
  }
  before = stats;
  byId("tile-running").textContent = stats.requests_running;
  byId("tile-queued").textContent = stats.requests_queued;
  byId("tile-cache").textContent = `${(100 * stats.kv_cache_usage).toFixed(1)} %`;
  byId("bar-cache").style.width = `${100 * stats.kv_cache_usage}%`;
  byId("tile-rate").textContent = compact(total);
  drawSpark();
  byId("groups").replaceChildren(...stats.groups.map((group, index) => {
    const line = document.createElement("span");
    const name = document.createElement("b");
    name.textContent = `group ${group.id}`;
    line.className = group.serving ? "" : "down";
    line.append(name, group.serving
      ? ` ${compact(rates[index])} tokens/s · ${group.requests_running} running · ${group.requests_queued} waiting · ${(100 * group.kv_cache_usage).toFixed(1)} % cache`
      : " not serving");
    return line;
  }));
  const serves = stats.groups.some((group) => group.serving);
  setState(serves ? "serving" : "no shards", serves ? "good" : "bad");
}

async function pollStats() {
  try {
    const response = await fetch("page/stats", { headers: headers(), cache: "no-store" });
    if (response.ok) {
      const stats = await response.json();
      if (!served.model) {
        served = { model: stats.model, chat: stats.supports_chat };
        byId("model").textContent = stats.model;
        document.title = `${stats.model} · pagewire`;
        setMode(mode || (served.chat ? "chat" : "text"));
      }
      showTiles(stats);
    } else {
      setState(response.status === 401 ? "needs an API key" : "starting", "bad");
      if (response.status === 401) toggleParameters(true);
    }
  } catch {
    setState("unreachable", "bad");
  }
  setTimeout(pollStats, document.hidden ? 5 * STATS_EVERY_MS : STATS_EVERY_MS);
}

/* Text: fences and inline code; everything else as it is. */

function showText(element, text) {
  const parts = text.split(/^```[^\n]*\n?/m);
  element.replaceChildren(...parts.flatMap((part, index) => {
    if (index % 2) {
      const block = document.createElement("pre");
      block.textContent = part.replace(/\n$/, "");
      return [block];
    }
    return part.split(/(`[^`\n]+`)/).map((piece) => {
      if (!/^`[^`\n]+`$/.test(piece)) return piece;
      const code = document.createElement("code");
      code.textContent = piece.slice(1, -1);
      return code;
    });
  }));
}

function addMessage(role, text) {
  byId("empty").hidden = true;
  const message = document.createElement("article");
  message.className = `message ${role}`;
  const body = document.createElement("div");
  body.className = "body";
  body.textContent = text;
  message.append(body);
  conversation.append(message);
  conversation.scrollTop = conversation.scrollHeight;
  return message;
}

/* An answer being written. What has come is drawn once a frame. */

class Answer {
  constructor(prompt) {
    this.element = addMessage("assistant writing", "");
    this.body = this.element.querySelector(".body");
    this.figures = document.createElement("div");
    this.figures.className = "figures";
    this.element.append(this.figures);
    this.prompt = prompt;
    this.text = "";
    this.reasoning = "";
    this.numTokens = 0;
    this.startMs = performance.now();
    this.firstMs = null;
    this.lastMs = null;
    this.isDue = false;
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) this.numTokens = chunk.usage.completion_tokens;
    const choice = chunk.choices && chunk.choices[0];
    if (!choice) return;
    const delta = choice.delta || {};
    const text = choice.text || delta.content || "";
    const reasoning = delta.reasoning_content || delta.reasoning || "";
    if (text || reasoning) {
      this.lastMs = performance.now();
      this.firstMs ??= this.lastMs;
    }
    this.text += text;
    this.reasoning += reasoning;
    if (choice.finish_reason === "length") this.isCut = true;
    if (!this.isDue) {
      this.isDue = true;
      requestAnimationFrame(() => this.draw());
    }
  }

  draw() {
    this.isDue = false;
    const isAtEnd = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 60;
    if (this.reasoning) {
      if (!this.thoughts) {
        this.thoughts = document.createElement("details");
        this.thoughts.className = "reasoning";
        this.thoughts.open = true;
        this.thoughts.append(document.createElement("summary"), document.createElement("div"));
        this.thoughts.firstChild.textContent = "Reasoning";
        this.element.prepend(this.thoughts);
      }
      this.thoughts.lastChild.textContent = this.reasoning;
    }
    showText(this.body, this.text);
    if (this.prompt) {
      const given = document.createElement("span");
      given.className = "continued";
      given.textContent = this.prompt;
      this.body.prepend(given);
    }
    this.showFigures();
    if (isAtEnd) conversation.scrollTop = conversation.scrollHeight;
  }

  showFigures(end = "") {
    if (this.firstMs === null) {
      this.figures.textContent = end;
      return;
    }
    const parts = [`first token ${Math.round(this.firstMs - this.startMs)} ms`];
    if (this.numTokens) parts.unshift(`${this.numTokens} tokens`);
    const seconds = (this.lastMs - this.firstMs) / 1000;
    if (this.numTokens > 1 && seconds > 0) parts.push(`${((this.numTokens - 1) / seconds).toFixed(1)} tokens per second`);
    if (end) parts.push(end);
    this.figures.textContent = parts.join(" · ");
  }

  finish(end) {
    this.draw();
    this.element.classList.remove("writing");
    if (this.thoughts && this.text) this.thoughts.open = false;
    this.showFigures(end || (this.isCut ? "stopped at the most tokens" : ""));
  }

  fail(message) {
    this.finish("");
    this.figures.classList.add("error");
    this.figures.textContent = message;
  }
}

/* Requests */

function request(text) {
  const body = { model: served.model, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"]) {
    if (form[name].value !== "") body[name] = Number(form[name].value);
  }
  const stop = form.stop.value.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (mode === "text") return ["v1/completions", { ...body, prompt: text }];
  const system = form.system.value.trim();
  return ["v1/chat/completions", {
    ...body, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
  }];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function send(text) {
  if (mode === "chat") {
    messages.push({ role: "user", content: text });
    addMessage("user", text);
  }
  const [path, body] = request(text);
  const answer = new Answer(mode === "text" ? text : "");
  running = new AbortController();
  showRunning(true);
  try {
    const response = await fetch(path, {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) {
      const told = await response.json().catch(() => ({}));
      throw new Error((told.error && told.error.message) || `the server says ${response.status}`);
    }
    for await (const chunk of events(response)) answer.take(chunk);
    answer.finish("");
  } catch (error) {
    if (error.name === "AbortError") answer.finish("stopped");
    else answer.fail(error.message);
  }
  if (mode === "chat") {
    if (answer.text) messages.push({ role: "assistant", content: answer.text });
    else messages.pop();
  }
  running = null;
  showRunning(false);
  input.focus();
}

function showRunning(isRunning) {
  byId("stop").hidden = !isRunning;
  byId("send").hidden = isRunning;
}

/* Keys and buttons */

function fitInput() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function submit() {
  const text = mode === "text" ? input.value : input.value.trim();
  if (!text || running) return;
  input.value = "";
  fitInput();
  send(text);
}

function startNew() {
  if (running) running.abort();
  messages = [];
  for (const message of conversation.querySelectorAll(".message")) message.remove();
  byId("empty").hidden = false;
  input.focus();
}

function toggleParameters(show = byId("parameters").hidden) {
  byId("parameters").hidden = !show;
  byId("settings").setAttribute("aria-expanded", String(show));
}

function toggleTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  saveSettings();
}

if (saved.theme) document.documentElement.dataset.theme = saved.theme;
byId("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
byId("form").addEventListener("submit", (event) => event.preventDefault());
byId("form").addEventListener("input", () => { setMode(form.mode.value || mode); showOutputs(); saveSettings(); });
byId("stop").addEventListener("click", () => running && running.abort());
byId("new").addEventListener("click", startNew);
byId("theme").addEventListener("click", toggleTheme);
byId("settings").addEventListener("click", () => toggleParameters());
input.addEventListener("input", fitInput);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
  const shortcuts = { KeyN: startNew, KeyP: () => toggleParameters(), KeyT: toggleTheme };
  if (event.altKey && shortcuts[event.code]) { event.preventDefault(); shortcuts[event.code](); }
});
showOutputs();
drawSpark();
pollStats();
