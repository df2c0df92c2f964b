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
      if (response.status === 401 && byId("parameters").hidden) {
        toggleParameters(true);
        form.key.focus();
      }
    }
  } catch {
    setState("unreachable", "bad");
  }
  setTimeout(pollStats, document.hidden ? 5 * STATS_EVERY_MS : STATS_EVERY_MS);
}

function scrollToEnd() {
  conversation.scrollTop = conversation.scrollHeight;
}

function addMessage(role, name, text) {
  byId("empty").hidden = true;
  const message = make("article", `message ${role}`, make("div", "body", text));
  message.setAttribute("aria-label", name);
  conversation.append(message);
  scrollToEnd();
  return message;
}

/* An answer being written. What has come is drawn once a frame. */

class Answer {
  constructor(prompt) {
    this.element = addMessage("assistant writing", "Answer", "");
    this.element.setAttribute("aria-busy", "true");
    this.body = this.element.querySelector(".body");
    this.isText = mode === "text";
    this.body.classList.toggle("plain", this.isText);
    this.figures = make("div", "figures");
    this.element.append(this.figures);
    this.prompt = prompt;
    this.text = "";
    this.reasoning = "";
    this.calls = [];
    this.numTokens = 0;
    this.startMs = performance.now();
    this.firstMs = null;
    this.lastMs = null;
    this.isDue = false;
  }

  take(chunk) {
    if (chunk.error) throw new Failure(chunk.error.code || "error", chunk.error.message);
    if (chunk.usage) this.numTokens = chunk.usage.completion_tokens;
    const choice = chunk.choices && chunk.choices[0];
    if (!choice) return;
    const delta = choice.delta || {};
    const text = choice.text || delta.content || "";
    const reasoning = delta.reasoning_content || delta.reasoning || "";
    for (const part of delta.tool_calls || []) this.takeCall(part);
    if (text || reasoning || delta.tool_calls) {
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

  takeCall(part) {
    const call = this.calls[part.index] ??= { id: part.id, type: "function", function: { name: "", arguments: "" } };
    call.function.name += part.function.name || "";
    call.function.arguments += part.function.arguments || "";
  }

  draw() {
    this.isDue = false;
    const isAtEnd = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 60;
    if (this.reasoning) this.drawReasoning();
    if (this.isText) this.body.replaceChildren(make("span", "continued", this.prompt), this.text);
    else showText(this.body, this.text);
    if (this.calls.length) this.drawCalls();
    this.showFigures();
    if (isAtEnd) scrollToEnd();
  }

  drawReasoning() {
    if (!this.thoughts) {
      this.thoughts = make("details", "reasoning", make("summary", "", "Reasoning"), make("div", ""));
      this.thoughts.open = true;
      this.element.prepend(this.thoughts);
    }
    this.thoughts.lastChild.textContent = this.reasoning;
    if (this.firstTextMs === undefined && this.text) {
      this.firstTextMs = performance.now();
      const seconds = (this.firstTextMs - this.firstMs) / 1000;
      this.thoughts.firstChild.textContent = `Reasoning, ${seconds.toFixed(1)} s`;
    }
  }

  drawCalls() {
    this.cards ??= this.figures.insertAdjacentElement("beforebegin", make("div", "calls"));
    this.cards.replaceChildren(...this.calls.map((call) => {
      const args = make("pre", "", setOut(call.function.arguments));
      args.tabIndex = 0;
      return make("section", "call", make("h3", "", make("span", "", "calls"), call.function.name), args);
    }));
  }

  showFigures(end = "") {
    if (this.firstMs === null) {
      this.figures.textContent = end;
      return;
    }
    const parts = [`first token ${Math.round(this.firstMs - this.startMs)} ms`];
    if (this.numTokens) parts.unshift(`${this.numTokens} tokens`);
    const seconds = (this.lastMs - this.firstMs) / 1000;
    if (this.numTokens > 1 && seconds > 0.01) parts.push(`${((this.numTokens - 1) / seconds).toFixed(1)} tokens per second`);
    if (end) parts.push(end);
    this.figures.textContent = parts.join(" · ");
  }

  finish(end) {
    this.draw();
    this.element.classList.remove("writing");
    this.element.removeAttribute("aria-busy");
    if (this.thoughts && this.text) this.thoughts.open = false;
    this.showFigures(end || (this.isCut ? "stopped at the most tokens" : ""));
    byId("announcer").textContent = end ? `Answer ${end}` : "Answer complete";
    if (this.calls.length && !end) this.askForResults();
    if (!this.text && !this.reasoning && !this.calls.length && !end) this.figures.textContent = "The model said nothing.";
  }

  /* What the tools say is the next turn: it is typed here. */
  askForResults() {
    const fields = this.calls.map((call) => make("textarea", ""));
    const labels = this.calls.map((call, i) => make("label", "", `Result of ${call.function.name}`, fields[i]));
    const button = make("button", "small", "Send results");
    const form = make("form", "results", ...labels, button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (running) return;
      form.remove();
      this.calls.forEach((call, i) => {
        messages.push({ role: "tool", tool_call_id: call.id, content: fields[i].value });
        addMessage("user", "Result", `${call.function.name} → ${fields[i].value}`);
      });
      ask("");
    });
    this.element.append(form);
    scrollToEnd();
  }

  fail(failure) {
    this.finish("failed");
    this.figures.remove();
    const again = make("button", "small", "Try again");
    again.type = "button";
    again.addEventListener("click", () => {
      if (running) return;
      this.element.remove();
      ask(this.prompt);
    });
    const card = make("div", "failure", make("b", "", failure.title || "failed"), make("p", "", failure.message), again);
    card.setAttribute("role", "alert");
    this.element.append(card);
    scrollToEnd();
  }
}

/* Requests */

class Failure extends Error {
  constructor(title, message) {
    super(message);
    this.title = title;
  }

  static async of(response) {
    const told = (await response.json().catch(() => ({}))).error || {};
    const after = response.headers.get("retry-after");
    const message = told.message || "The server says no more.";
    return new Failure(`${response.status} ${told.code || ""}`, after ? `${message}\nTry again in ${after} s.` : message);
  }
}

function request(text) {
  const body = { model: served.model, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"]) {
    if (form[name].value !== "") body[name] = Number(form[name].value);
  }
  const stop = form.stop.value.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (mode === "text") return ["v1/completions", { ...body, prompt: text }];
  const system = form.system.value.trim();
  if (form.tools.value.trim()) body.tools = readTools();
  return ["v1/chat/completions", {
    ...body, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
  }];
}

function readTools() {
  try {
    return JSON.parse(form.tools.value);
  } catch (error) {
    throw new Failure("Tools are no JSON", error.message);
  }
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

function send(text) {
  if (mode === "chat") {
    // A question that got no answer is asked no more.
    if (messages.length && messages.at(-1).role === "user") messages.pop();
    messages.push({ role: "user", content: text });
    addMessage("user", "You", text);
  }
  ask(text);
}

/* Asks for an answer to the conversation, or in text mode for what follows the text. */
async function ask(text) {
  const answer = new Answer(mode === "text" ? text : "");
  const conversationThen = messages;
  running = new AbortController();
  showRunning(true);
  try {
    const [path, body] = request(text);
    const response = await fetch(path, {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw await Failure.of(response);
    for await (const chunk of events(response)) answer.take(chunk);
    answer.finish("");
  } catch (error) {
    if (error.name === "AbortError") answer.finish("stopped");
    else answer.fail(error instanceof TypeError ? new Failure("The server cannot be reached", error.message) : error);
  }
  if (!answer.isText && (answer.text || answer.calls.length)) {
    const calls = answer.calls.length ? { tool_calls: answer.calls } : {};
    conversationThen.push({ role: "assistant", content: answer.text, ...calls });
  }
  running = null;
  showRunning(false);
  if (!answer.calls.length) input.focus({ preventScroll: true });
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
  if (show) byId("parameters").querySelector("input:checked, input").focus({ preventScroll: true });
  else input.focus({ preventScroll: true });
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
byId("close").addEventListener("click", () => toggleParameters(false));
byId("ideas").addEventListener("click", (event) => {
  if (event.target.tagName === "BUTTON" && !running) send(event.target.textContent);
});
input.addEventListener("input", fitInput);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (running) running.abort();
    else if (!byId("parameters").hidden) toggleParameters(false);
  }
  const shortcuts = { KeyN: startNew, KeyP: () => toggleParameters(), KeyT: toggleTheme };
  if (event.altKey && shortcuts[event.code]) { event.preventDefault(); shortcuts[event.code](); }
});
showOutputs();
drawSpark();
pollStats();
