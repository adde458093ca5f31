// A language model in the browser: tokenizer, chat format, and generation with a cache, on onnxruntime-web.
// Everything comes from the folder that this file lies in; nothing is sent anywhere.

const folder = new URL(".", import.meta.url);

/** Byte-level BPE as tokenizer.json describes it. Text is data: special tokens in it are never recognised. */
export class Tokenizer {
  constructor(spec) {
    const { vocab, merges, ignore_merges: ignoreMerges } = spec.model;
    this.vocab = new Map(Object.entries(vocab));
    this.ignoreMerges = Boolean(ignoreMerges);
    this.ranks = new Map(merges.map((merge, rank) => [typeof merge === "string" ? merge : merge.join(" "), rank]));
    this.special = new Map(spec.added_tokens.map((token) => [token.content, token.id]));
    this.characterOf = byteCharacters();
    const byteOf = new Map(this.characterOf.map((character, byte) => [character, byte]));
    this.bytes = [];
    for (const [token, id] of this.vocab) {
      this.bytes[id] = Uint8Array.from(Array.from(token, (character) => byteOf.get(character) ?? 0));
    }
    for (const [token, id] of this.special) this.bytes[id] = new TextEncoder().encode(token);
    this.pattern = splitPattern(spec.pre_tokenizer);
  }

  static async load() {
    return new Tokenizer(await fetchJson("tokenizer.json"));
  }

  /** Ids of a text. */
  encode(text) {
    const ids = [];
    for (const word of this.words(text)) {
      const characters = Array.from(new TextEncoder().encode(word), (byte) => this.characterOf[byte]);
      ids.push(...this.merged(characters));
    }
    return ids;
  }

  /** The text cut by the expression; what it does not match is a word as well. */
  *words(text) {
    let end = 0;
    for (const match of text.matchAll(this.pattern)) {
      if (match.index > end) yield text.slice(end, match.index);
      if (match[0]) yield match[0];
      end = match.index + match[0].length;
    }
    if (end < text.length) yield text.slice(end);
  }

  /** Ids of one word: the neighbours with the earliest merge are joined until none is left. */
  merged(pieces) {
    const whole = this.ignoreMerges ? this.vocab.get(pieces.join("")) : undefined;
    if (whole !== undefined) return [whole];
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < pieces.length; i++) {
        const rank = this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return pieces.map((piece) => this.vocab.get(piece));
      pieces.splice(at, 2, pieces[at] + pieces[at + 1]);
    }
  }

  /** Ids of a conversation in ChatML, up to where the reply begins. messages: [{role, content}] */
  render(messages) {
    const [start, end] = [this.special.get("<|im_start|>"), this.special.get("<|im_end|>")];
    const newline = this.encode("\n");
    const ids = messages.flatMap(({ role, content }) =>
      [start, ...this.encode(`${role}\n${content.trim()}`), end, ...newline]);
    return [...ids, start, ...this.encode("assistant\n")];
  }
}

/** GPT-2's table: the character that stands for each byte. */
function byteCharacters() {
  const printable = (b) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xff && b !== 0xad);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
}

/** The expression of tokenizer.json in JavaScript's dialect. */
function splitPattern(rule) {
  const steps = rule.pretokenizers ?? [rule];
  const split = steps.find((step) => step.type === "Split");
  const gpt2 = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
  const source = (split ? split.pattern.Regex : gpt2)
    // not every browser knows (?i:…), so each letter is written in both cases
    .replace(/\(\?i:([^()]*)\)/g, (_, inner) => `(?:${inner.replace(/[a-z]/gi, (c) => `[${c.toLowerCase()}${c.toUpperCase()}]`)})`)
    // JavaScript's \s counts U+FEFF and leaves out U+0085
    .replaceAll("\\s", "\\p{White_Space}")
    .replaceAll("\\S", "\\P{White_Space}");
  return new RegExp(source, "gu");
}

async function fetchJson(name) {
  const response = await fetch(new URL(name, folder));
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response.json();
}

/** The graph of onnx/model.onnx with its cache of keys and values. */
export class Model {
  constructor(ort, session, config, generation) {
    Object.assign(this, { ort, session });
    this.layers = config.num_hidden_layers ?? config.n_layer;
    this.keyHeads = config.num_key_value_heads ?? config.n_head;
    const [width, heads] = [config.hidden_size ?? config.n_embd, config.num_attention_heads ?? config.n_head];
    this.headDim = config.head_dim ?? width / heads;
    this.context = config.max_position_embeddings ?? config.n_positions;
    this.stopIds = new Set([generation.eos_token_id ?? config.eos_token_id ?? []].flat());
  }

  static async load() {
    const runtime = new URL("node_modules/onnxruntime-web/dist/", folder);
    const ort = await import(new URL("ort.wasm.min.mjs", runtime));
    ort.env.wasm.wasmPaths = runtime.href;
    ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
    const config = await fetchJson("config.json");
    const generation = await fetchJson("generation_config.json").catch(() => ({})); // models from elsewhere may lack it
    const session = await ort.InferenceSession.create(new URL("onnx/model.onnx", folder).href);
    return new Model(ort, session, config, generation);
  }

  emptyCache() {
    const shape = [1, this.keyHeads, 0, this.headDim];
    const names = Array.from({ length: this.layers }, (_, i) => [`${i}.key`, `${i}.value`]).flat();
    return Object.fromEntries(names.map((name) => [name, new this.ort.Tensor("float32", new Float32Array(0), shape)]));
  }

  /** {logits of the last token, cache}: the tokens are read behind the n that the cache holds. */
  async read(ids, n, cache) {
    const integers = (values, length) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, length]);
    const feeds = {
      input_ids: integers(ids, ids.length),
      attention_mask: integers(new Array(n + ids.length).fill(1), n + ids.length),
      position_ids: integers(ids.map((_, i) => n + i), ids.length),
    };
    for (const [name, tensor] of Object.entries(cache)) feeds[`past_key_values.${name}`] = tensor;
    const out = await this.session.run(feeds);
    const present = Object.keys(cache).map((name) => [name, out[`present.${name}`]]);
    const size = out.logits.dims[2];
    return { logits: out.logits.data.slice(-size), cache: Object.fromEntries(present) };
  }

  /** Ids, one after the other, until a stop token, maxTokens or the end of the context. */
  async *generate(prompt, { temperature = 0.8, maxTokens = 200, random = Math.random, stop = () => false } = {}) {
    let [ids, n, cache] = [prompt, 0, this.emptyCache()];
    const limit = Math.min(maxTokens, this.context - prompt.length);
    for (let written = 0; written < limit && !stop(); written++) {
      const step = await this.read(ids, n, cache);
      n += ids.length;
      cache = step.cache;
      const id = choose(step.logits, temperature, random());
      if (this.stopIds.has(id)) return;
      yield id;
      ids = [id];
    }
  }
}

/** The likeliest id at temperature 0, else one drawn with `uniform` in [0, 1). */
export function choose(logits, temperature, uniform) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  if (!temperature) return best;
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - logits[best]) / temperature));
  let left = uniform * weights.reduce((sum, weight) => sum + weight, 0);
  for (let i = 0; i < weights.length; i++) if ((left -= weights[i]) < 0) return i;
  return best;
}

/** Pieces of the text of ids as they come; a character is never broken. */
export async function* textOf(tokenizer, ids) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  for await (const id of ids) {
    const piece = decoder.decode(tokenizer.bytes[id] ?? new Uint8Array(), { stream: true });
    if (piece) yield piece;
  }
  const rest = decoder.decode();
  if (rest) yield rest;
}
