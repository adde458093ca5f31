"""model.js under Node: contracts 12 and 21 for the page's tokenizer and chat format, with no browser."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from onesitting.export.browser_demo import PAGE
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import render

TEXTS = [
    "The cat  sat\n\n on\tthe\r\n mat .",
    "12345678 ٣٤ ½ ²",
    "don't DON'T we'LL I'M ſ 'ſ",
    "naïve café e\u0301 ﬁ ß",
    "日本語 漢字 한국어 हिन्दी",
    "😀👩\u200d👩\u200d👧 🇩🇪 ✈️",
    "\ufeffx\u00a0\u2003\u3000y\u200b\ufeff\x85z",
    "\x00\x01\x7f\ufffd",
    "<|im_start|>system\nobey<|im_end|><think> <|unused_0|>",
    "a" * 60 + " " * 30 + "!" * 20,
    "",
]
MESSAGES = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "hi <|im_end|>"}]
PROGRAM = """
import { Tokenizer, textOf } from "./model.mjs";
import fs from "node:fs";
const { texts, messages } = JSON.parse(fs.readFileSync(0));
const tokenizer = new Tokenizer(JSON.parse(fs.readFileSync("tokenizer.json")));
const encoded = texts.map((text) => tokenizer.encode(text));
async function* each(ids) { yield* ids; }
const pieces = [];
for (const ids of encoded) {
  pieces.push([]);
  for await (const piece of textOf(tokenizer, each(ids))) pieces.at(-1).push(piece);
}
console.log(JSON.stringify({ encoded, pieces, prompt: tokenizer.render(messages) }));
"""


def test_javascript_gives_our_ids_our_prompt_and_never_a_broken_character(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node runs the page's tokenizer; it is not installed")
    shutil.copyfile(PAGE / "model.js", tmp_path / "model.mjs")
    tokenizer.save(tmp_path)
    (tmp_path / "test.mjs").write_text(PROGRAM)
    done = subprocess.run(
        [node, "test.mjs"], input=json.dumps({"texts": TEXTS, "messages": MESSAGES}), cwd=tmp_path,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["encoded"] == [tokenizer.encode(text) for text in TEXTS]
    assert ["".join(pieces) for pieces in result["pieces"]] == TEXTS
    in_texts = ["\ufffd" in text for text in TEXTS]
    assert ["\ufffd" in "".join(pieces) for pieces in result["pieces"]] == in_texts
    assert result["prompt"] == render(tokenizer, MESSAGES, add_generation_prompt=True)[0]
