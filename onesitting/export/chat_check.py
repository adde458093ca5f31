"""Whether a foreign model's own chat template writes the conversations that `render` writes."""

from pathlib import Path
from typing import Any

from onesitting.errors import UserError
from onesitting.export.source import need
from onesitting.model.hf import read_json
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import render

CHAT_TOKENS = {"<|im_start|>", "<|im_end|>"}

_USER = {"role": "user", "content": "Hello there."}
_REPLY = {"role": "assistant", "content": "Hello."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one message": [_USER],
    "a system message": [{"role": "system", "content": "Be brief."}, _USER],
    "several turns": [_USER, _REPLY, _USER],
}
"""What a template is tried on. Tools are not: each family has its own words for them."""


def own_template(folder: Path) -> str | None:
    """The chat template of a Hugging Face folder, from its own file or tokenizer_config.json; None without one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    template = read_json(settings).get("chat_template") if settings.is_file() else None
    if isinstance(template, list):  # several by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def chat_findings(folder: Path, tokenizer: Tokenizer) -> tuple[bool, str]:
    """(whether the model is a chat model whose format is ours, one sentence about what that means)."""
    template = own_template(folder)
    if not tokenizer.special_ids.keys() >= CHAT_TOKENS:
        reason = "its own chat format is another" if template else "it has no chat format"
        return (
            False,
            f"chat: not as it is, {reason} (no <|im_start|> token); `onesitting generate` continues texts",
        )
    if template is None:
        return (
            False,
            "chat: the tokens are there, but the model has no chat template; fine-tune it on conversations",
        )
    differing = [name for name, messages in CONVERSATIONS.items() if not _same(template, tokenizer, messages)]
    if differing:
        return True, (
            "chat: in ChatML as onesitting writes it; the model's own template writes "
            f"{', '.join(differing)} otherwise, so replies may be worse than in its home software"
        )
    return True, "chat: same format as the model's own template; tools are described in onesitting's words"


def _same(template: str, tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> bool:
    ids, _ = render(tokenizer, messages, add_generation_prompt=True)
    try:
        return render_template(template, messages) == tokenizer.decode(ids, skip_special=False)
    except UserError:
        return False


def render_template(template: str, messages: list[dict[str, Any]]) -> str:
    """The text that a Jinja template makes of messages, where a reply begins. Raises UserError when it cannot.

    The sandbox is the one of transformers: a template is a program from a stranger.
    """
    sandbox, jinja2 = need("jinja2.sandbox"), need("jinja2")

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda _: "1 January 2026"}
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"the model's chat template cannot be rendered: {error}") from None
