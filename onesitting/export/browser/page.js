import { Model, Tokenizer, textOf } from "./model.js";

const byId = (id) => document.getElementById(id);
const [form, prompt, log, status, send] = ["form", "prompt", "log", "status", "send"].map(byId);
const REPLY_TOKENS = 128; // kept free for a reply, or half the context where that is less
const history = [];
let stopped = false;
let running = false;

function add(role, text) {
  const block = document.createElement("div");
  block.className = role;
  block.textContent = text;
  log.append(block);
  block.scrollIntoView({ block: "end" });
  return block;
}

async function answer(model, tokenizer, text) {
  const chats = tokenizer.special.has("<|im_start|>");
  add("user", text);
  history.push({ role: "user", content: text });
  const encode = () => (chats ? tokenizer.render(history) : tokenizer.encode(text));
  const most = model.context - Math.min(REPLY_TOKENS, model.context >> 1);
  let ids = encode();
  let forgotten = "";
  while (ids.length > most && history.length > 2) {
    history.splice(0, 2); // the oldest question with its reply
    forgotten = "; the oldest messages no longer fit and are forgotten";
    ids = encode();
  }
  if (ids.length > most) {
    history.pop();
    status.textContent = `The message has ${ids.length} tokens; this model reads at most ${most} before a reply.`;
    return;
  }
  const block = add("assistant", "");
  const started = performance.now();
  let count = 0;
  async function* counted(source) {
    for await (const id of source) { count += 1; yield id; }
  }
  const options = { temperature: Number(byId("temperature").value), stop: () => stopped };
  for await (const piece of textOf(tokenizer, counted(model.generate(ids, options)))) {
    block.textContent += piece;
    await new Promise((done) => setTimeout(done)); // let the page be drawn
  }
  history.push({ role: "assistant", content: block.textContent });
  const seconds = (performance.now() - started) / 1000;
  status.textContent = `${count} tokens, ${Math.round(count / seconds)} a second${forgotten}`;
}

async function start() {
  const [model, tokenizer] = await Promise.all([Model.load(), Tokenizer.load()]);
  status.textContent = "Ready. The model runs in this page; nothing leaves it.";
  send.disabled = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) { stopped = true; return; }
    const text = prompt.value.trim();
    if (!text) return;
    prompt.value = "";
    [running, stopped, send.textContent] = [true, false, "Stop"];
    try {
      await answer(model, tokenizer, text);
    } finally {
      [running, send.textContent] = [false, "Send"];
      prompt.focus();
    }
  });
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  status.textContent = `The model cannot be loaded: ${error.message}. Was \`npm install\` run in this folder?`;
});
