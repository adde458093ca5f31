"use strict";
// The chat page: no library, no build, nothing from elsewhere. All text reaches the page as text, never as markup.

const $ = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const KNOBS = ["temperature", "top_p", "min_p"];
const NUMBERS = ["top_k", "repetition_penalty", "max_tokens", "seed"];
const FALLBACK = { temperature: 0.8, top_p: 1, min_p: 0 };
const STARTERS = ["Hello! Who are you?", "Tell me a short story.", "What is 17 + 25?"];

const state = {
  models: [],   // as /v1/models gives them
  turns: [],    // {text, replies: Map(model id -> {messages, note, element})}
  running: new Set(), // AbortControllers of replies that are being written
};

/* ---------- the server ---------- */

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function failure(answer) {
  let message = `${answer.status} ${answer.statusText}`;
  try { message = (await answer.json()).error.message; } catch { /* no JSON: the status says enough */ }
  const retry = answer.headers.get("Retry-After");
  return new Error(retry ? `${message} (in ${retry} s)` : message);
}

/** The objects of a stream of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function loadModels() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (!answer.ok) {
    $("about").textContent = (await failure(answer)).message;
    if (answer.status === 401) { openSettings(true); $("key").focus(); }
    return;
  }
  state.models = (await answer.json()).data;
  $("models").replaceChildren(...state.models.map((model, index) =>
    make("label", {}, make("input", { type: "checkbox", value: model.id, checked: index === 0 }), model.id)));
  const longest = Math.max(...state.models.map((model) => model.context_length));
  $("about").textContent = `${state.models.length === 1 ? state.models[0].id : state.models.length + " models"}, ` +
    `up to ${longest.toLocaleString("en")} tokens of conversation, on this server alone.`;
  useDefaults();
}

const chosen = () => [...$("models").querySelectorAll("input:checked")].map((input) => input.value);

/* ---------- settings ---------- */

function useDefaults() {
  const own = state.models[0]?.defaults ?? {};
  for (const name of KNOBS) { $(name).value = own[name] ?? FALLBACK[name]; showKnob(name); }
  for (const name of NUMBERS) $(name).value = own[name] ?? "";
  $("stop").value = "";
}

function showKnob(name) {
  document.querySelector(`output[for="${name}"]`).textContent = Number($(name).value).toFixed(2);
}

function readTools() {
  $("tools-error").textContent = "";
  const text = $("tools").value.trim();
  if (!text) return undefined;
  try {
    const tools = JSON.parse(text);
    if (!Array.isArray(tools)) throw new Error("a list is expected");
    return tools.map((tool) => (tool.type === "function" ? tool : { type: "function", function: tool }));
  } catch (error) {
    $("tools-error").textContent = `Tools: ${error.message}`;
    openSettings(true);
    throw error;
  }
}

function request(model, messages, tools) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of [...KNOBS, ...NUMBERS]) if ($(name).value !== "") body[name] = Number($(name).value);
  if ($("stop").value) body.stop = [$("stop").value];
  if ($("thinking").value) body.thinking = $("thinking").value === "on";
  if ($("thinking_budget").value !== "") body.thinking_budget = Number($("thinking_budget").value);
  if ($("probabilities").checked) { body.logprobs = true; body.top_logprobs = 5; }
  if (tools) body.tools = tools;
  return body;
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("settings-toggle").setAttribute("aria-expanded", String(open));
}

/* ---------- a conversation ---------- */

/** What a model has been told so far: shared questions, its own answers. */
function history(model) {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of state.turns) {
    if (!turn.replies.has(model)) continue;
    messages.push({ role: "user", content: turn.text });
    for (const { role, content, reasoning_content, tool_calls, tool_call_id } of turn.replies.get(model).messages)
      messages.push({ role, content, reasoning_content, tool_calls, tool_call_id });
  }
  return messages;
}

async function say(text) {
  const models = chosen();
  if (!models.length) { announce("Choose a model first"); return; }
  const tools = readTools();
  $("welcome").hidden = true;
  const replies = make("div", { className: "replies" });
  const turn = { text, replies: new Map() };
  state.turns.push(turn);
  $("log").append(make("section", { className: models.length > 1 ? "turn wide" : "turn" },
    make("div", { className: "mine" }, text), replies));
  for (const model of models) {
    const element = make("article", { className: "reply", "aria-label": `Reply of ${model}` });
    turn.replies.set(model, { messages: [], note: "", element });
    replies.append(element);
  }
  $("log").scrollTop = $("log").scrollHeight;
  await Promise.all(models.map((model) => write(model, turn.replies.get(model), tools)));
}

async function write(model, reply, tools) {
  const controller = new AbortController();
  const message = { role: "assistant", content: "", tokens: [], waiting: true };
  const body = request(model, history(model), tools);
  reply.messages.push(message);
  state.running.add(controller);
  showRunning();
  const started = performance.now();
  let first = 0, reason = "";
  draw(model, reply);
  try {
    const answer = await fetch("v1/chat/completions",
      { method: "POST", headers: headers(), body: JSON.stringify(body), signal: controller.signal });
    if (!answer.ok) throw await failure(answer);
    for await (const chunk of events(answer.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      first ||= performance.now();
      const choice = chunk.choices[0];
      if (choice) { take(message, choice); reason = choice.finish_reason ?? reason; }
      if (chunk.usage) reply.note = facts(chunk.usage, started, first, reason);
      drawSoon(model, reply);
    }
    announce(`${model} has answered`);
  } catch (error) {
    const stopped = error.name === "AbortError";
    reply.note = stopped ? "stopped" : "";
    message.error = stopped ? "" : error.message;
    announce(stopped ? "Stopped" : `Error: ${error.message}`);
  }
  message.waiting = false;
  state.running.delete(controller);
  showRunning();
  draw(model, reply);
}

function take(message, choice) {
  const { content, reasoning_content, tool_calls } = choice.delta;
  if (content) message.content += content;
  if (reasoning_content) message.reasoning_content = (message.reasoning_content ?? "") + reasoning_content;
  for (const { index, id, type, function: called } of tool_calls ?? []) {
    message.tool_calls ??= [];
    message.tool_calls[index] ??= { id, type, function: { name: called.name, arguments: "" } };
    message.tool_calls[index].function.arguments += called.arguments ?? "";
  }
  message.tokens.push(...(choice.logprobs?.content ?? []));
}

function facts(usage, started, first, reason) {
  const seconds = Math.max((performance.now() - first) / 1000, 1e-3);
  const speed = usage.completion_tokens > 1 ? ` · ${Math.round((usage.completion_tokens - 1) / seconds)} tokens/s` : "";
  const wait = ` · first after ${((first - started) / 1000).toFixed(2)} s`;
  return `${usage.completion_tokens} tokens${speed}${wait}${reason === "length" ? " · cut at its longest" : ""}`;
}

function stopAll() { for (const controller of state.running) controller.abort(); }

function showRunning() {
  const running = state.running.size > 0;
  $("send").textContent = running ? "Stop" : "Send";
  $("send").classList.toggle("primary", !running);
}

const announce = (text) => { $("status").textContent = text; };

/* ---------- drawing ---------- */

const due = new Map();

/** Draw at most once a frame, however many tokens arrive. */
function drawSoon(model, reply) {
  if (due.has(reply)) return;
  due.set(reply, requestAnimationFrame(() => { due.delete(reply); draw(model, reply); }));
}

function draw(model, reply) {
  const log = $("log");
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const opened = [...reply.element.querySelectorAll("details")].map((one) => one.open);
  const parts = reply.messages.flatMap((message) => message.role === "tool"
    ? [make("div", { className: "result" }, `→ ${message.content}`)]
    : drawMessage(model, reply, message));
  reply.element.replaceChildren(make("div", { className: "who" }, model), ...parts,
    ...(reply.note ? [make("div", { className: "facts" }, reply.note)] : []));
  reply.element.querySelectorAll("details").forEach((one, index) => { if (index in opened) one.open = opened[index]; });
  if (following) log.scrollTop = log.scrollHeight;
}

function drawMessage(model, reply, message) {
  const parts = [];
  const thinks = message.waiting && !message.content;
  if (message.reasoning_content)
    parts.push(make("details", { className: "thought", open: thinks },
      make("summary", {}, thinks ? "Thinking…" : "Thought"), make("div", {}, message.reasoning_content)));
  if (message.tokens.length && $("probabilities").checked) parts.push(drawTokens(message.tokens));
  else if (message.content || message.waiting) parts.push(drawWords(message));
  for (const call of message.tool_calls ?? []) parts.push(drawCall(model, reply, message, call));
  if (message.error) parts.push(make("p", { className: "error", role: "alert" }, message.error));
  return parts;
}

/** Text with ``` blocks and `code`; everything else stays as it was written. */
function drawWords(message) {
  const words = make("div", { className: message.waiting ? "words waiting" : "words" });
  message.content.split(/```[^\n]*\n?/).forEach((part, index) => {
    if (index % 2) {
      const copy = make("button", { type: "button", onclick: () => navigator.clipboard.writeText(part) }, "Copy");
      words.append(make("div", { className: "block" }, make("pre", {}, make("code", {}, part)), copy));
    } else {
      part.split("`").forEach((piece, number, all) => {
        const isCode = number % 2 === 1 && number < all.length - 1;
        words.append(isCode ? make("code", {}, piece) : number % 2 ? "`" + piece : piece);
      });
    }
  });
  return words;
}

function drawCall(model, reply, message, call) {
  const card = make("div", { className: "call" }, "calls ", make("strong", {}, call.function.name),
    make("pre", {}, call.function.arguments));
  const answered = reply.messages.some((one) => one.tool_call_id === call.id);
  if (!answered && !message.waiting) {
    const input = make("input", { type: "text", "aria-label": `Result of ${call.function.name}`, placeholder: "result" });
    const form = make("form", {}, input, make("button", { type: "submit" }, "Give result"));
    form.addEventListener("submit", (event) => { event.preventDefault(); giveResult(model, reply, message, call, input.value); });
    card.append(form);
  }
  return card;
}

function giveResult(model, reply, message, call, content) {
  reply.messages.push({ role: "tool", content, tool_call_id: call.id });
  const results = new Set(reply.messages.map((one) => one.tool_call_id));
  if (message.tool_calls.every((one) => results.has(one.id))) write(model, reply, readTools());
  else draw(model, reply);
}

/* ---------- token probabilities ---------- */

const percent = (logprob) => Math.exp(logprob) * 100;

function drawTokens(tokens) {
  const box = make("div", { className: "tokens", role: "group", "aria-label": "Tokens with their probabilities" });
  tokens.forEach((token, index) => {
    const isControl = token.bytes.length === 0;
    const span = make("span", { className: isControl ? "token control" : "token", tabIndex: index ? -1 : 0 }, token.token);
    span.style.backgroundColor = `rgb(var(--heat) / ${(0.55 * (1 - Math.exp(token.logprob))).toFixed(2)})`;
    span.setAttribute("aria-label", `${token.token.trim() || "space"}, ${percent(token.logprob).toFixed(0)} percent`);
    span.addEventListener("pointerenter", () => showLikely(span, token));
    span.addEventListener("pointerleave", hideLikely);
    span.addEventListener("focus", () => showLikely(span, token));
    span.addEventListener("blur", hideLikely);
    box.append(span);
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && document.activeElement[step];
    if (!next) return;
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return box;
}

function showLikely(span, token) {
  const rows = token.top_logprobs.slice();
  if (!rows.some((row) => row.token === token.token)) rows.push(token);
  $("likely").replaceChildren(...rows.map((row) => {
    const fill = make("i");
    fill.style.width = `${percent(row.logprob)}%`;
    return make("div", { className: row.token === token.token ? "chosen" : "" },
      make("span", {}, JSON.stringify(row.token).slice(1, -1).replaceAll(" ", "␣")),
      make("span", { className: "bar" }, fill), make("span", {}, `${percent(row.logprob).toFixed(1)}%`));
  }));
  $("likely").hidden = false;
  const at = span.getBoundingClientRect(), box = $("likely").getBoundingClientRect();
  $("likely").style.left = `${Math.max(8, Math.min(at.left, innerWidth - box.width - 8))}px`;
  const below = at.bottom + 6;
  $("likely").style.top = `${below + box.height > innerHeight ? at.top - box.height - 6 : below}px`;
}

function hideLikely() { $("likely").hidden = true; }

/* ---------- export ---------- */

function download(name, type, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
  $("export").open = false;
}

function asJson() {
  const models = [...new Set(state.turns.flatMap((turn) => [...turn.replies.keys()]))];
  return JSON.stringify({ conversations: models.map((model) => ({ model, messages: history(model) })) }, null, 2);
}

function asMarkdown() {
  const lines = ["# Conversation", ""];
  for (const turn of state.turns) {
    lines.push("## You", "", turn.text, "");
    for (const [model, reply] of turn.replies) {
      lines.push(`## ${model}`, "");
      for (const message of reply.messages) {
        if (message.reasoning_content) lines.push(...message.reasoning_content.split("\n").map((line) => `> ${line}`), "");
        if (message.content) lines.push(message.role === "tool" ? `Result: ${message.content}` : message.content, "");
        for (const call of message.tool_calls ?? []) lines.push(`Call: \`${call.function.name}(${call.function.arguments})\``, "");
      }
    }
  }
  return lines.join("\n");
}

/* ---------- what the person does ---------- */

function send() {
  const text = $("message").value.trim();
  if (state.running.size) { stopAll(); return; }
  if (!text) return;
  $("message").value = "";
  fitMessage();
  say(text).catch((error) => announce(error.message));
}

function fitMessage() {
  $("message").style.height = "auto";
  $("message").style.height = `${$("message").scrollHeight + 2}px`;
}

function newChat() {
  stopAll();
  state.turns = [];
  document.querySelectorAll(".turn").forEach((turn) => turn.remove());
  $("welcome").hidden = false;
  $("message").focus();
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

function start() {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("message").addEventListener("input", fitMessage);
  $("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (state.running.size) stopAll();
    else if ($("export").open) $("export").open = false;
    else if (!$("settings").hidden) { openSettings(false); $("settings-toggle").focus(); }
  });
  document.addEventListener("click", (event) => { if (!$("export").contains(event.target)) $("export").open = false; });
  $("new").addEventListener("click", newChat);
  $("theme").addEventListener("click", switchTheme);
  $("settings-toggle").addEventListener("click", () => openSettings($("settings").hidden));
  $("export-json").addEventListener("click", () => download("conversation.json", "application/json", asJson()));
  $("export-markdown").addEventListener("click", () => download("conversation.md", "text/markdown", asMarkdown()));
  $("reset").addEventListener("click", useDefaults);
  $("key").addEventListener("change", loadModels);
  for (const name of KNOBS) $(name).addEventListener("input", () => showKnob(name));
  $("probabilities").addEventListener("change", () => {
    for (const turn of state.turns) for (const [model, reply] of turn.replies) draw(model, reply);
  });
  $("starters").append(...STARTERS.map((text) =>
    make("button", { type: "button", onclick: () => { if (!state.running.size) say(text).catch((error) => announce(error.message)); } }, text)));
  loadModels().catch(() => { $("about").textContent = "The server does not answer."; });
}

start();
