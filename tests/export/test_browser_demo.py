"""The page of the onnx target in Chromium: contracts 12 and 21 in JavaScript.

It needs npm, Playwright and a Chromium, and is skipped where one of them is missing.
"""

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium

from onesitting.checkpoint import load_model
from onesitting.export.browser_demo import write_onnx_folder
from onesitting.export.source import Source
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.tokenizer.chat import render

MakeSource = Callable[[str], Source]

ODD_TEXTS = [
    "The cat  sat\n\n on\tthe\r\n mat .", "12345678 ٣٤ ½", "don't DON'T we'LL ſ",
    "naïve café e\u0301 日本語 😀👩\u200d👧",
    "\u00a0\u2003\u3000x\u200b\ufeff\x85y", "<|im_start|>system\nobey<|im_end|><think> <|unused_0|>",
    "a" * 60 + " " * 30,
]  # fmt: skip
SCRIPT = """
async (texts) => {
  const { Model, Tokenizer, textOf } = await import("./model.js");
  const [model, tokenizer] = await Promise.all([Model.load(), Tokenizer.load()]);
  const messages = [{ role: "system", content: " Be brief. " }, { role: "user", content: "hi <|im_end|>" }];
  const prompt = tokenizer.render(messages);
  const ids = [];
  for await (const id of model.generate(prompt, { temperature: 0, maxTokens: 60 })) ids.push(id);
  const pieces = [];
  for await (const piece of textOf(tokenizer, ids)) pieces.push(piece);
  return { encoded: texts.map((text) => tokenizer.encode(text)), prompt, ids, pieces };
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def page(make_source: MakeSource, tmp_path: Path) -> Iterator[Any]:
    """The page of an exported model, open in Chromium."""
    folder = write_onnx_folder(make_source("qwen3"), tmp_path / "out")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    done = subprocess.run(
        [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, capture_output=True
    )
    if done.returncode:
        pytest.skip("npm cannot install onnxruntime-web here")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(240_000)
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        yield page
    server.shutdown()
    server.server_close()


def test_page_gives_our_ids_our_greedy_text_and_answers_a_message(page: Any, make_source: MakeSource) -> None:
    source = make_source("qwen3")
    tokenizer = source.tokenizer
    result = page.evaluate(SCRIPT, ODD_TEXTS)
    assert result["encoded"] == [tokenizer.encode(text) for text in ODD_TEXTS]
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "hi <|im_end|>"}]
    prompt, _ = render(tokenizer, messages, add_generation_prompt=True)
    assert result["prompt"] == prompt
    ours = generate(load_model(source.folder), tokenizer, [prompt], Sampling(temperature=0, max_tokens=60))[0]
    assert result["ids"] == ours.ids
    assert "".join(result["pieces"]) == ours.text
    page.wait_for_selector("body[data-ready=yes]")
    page.fill("#temperature", "0")
    page.fill("#prompt", "hi")
    page.click("#send")
    page.wait_for_selector("#status:has-text('a second')")
    ids, _ = render(tokenizer, [{"role": "user", "content": "hi"}], add_generation_prompt=True)
    shown = generate(load_model(source.folder), tokenizer, [ids], Sampling(temperature=0, max_tokens=200))[0]
    assert page.text_content(".assistant") == shown.text
    page.fill("#prompt", "and now")  # the context of 160 tokens is full
    page.click("#send")
    page.wait_for_selector("#status:has-text('are forgotten')")
    ids, _ = render(tokenizer, [{"role": "user", "content": "and now"}], add_generation_prompt=True)
    shown = generate(load_model(source.folder), tokenizer, [ids], Sampling(temperature=0, max_tokens=200))[0]
    assert page.text_content(".assistant:last-child") == shown.text
    page.fill("#prompt", "0123456789" * 20)
    page.click("#send")
    page.wait_for_selector("#status:has-text('reads at most 80 before a reply')")
