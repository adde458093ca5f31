"""Text that must be JSON of a given schema: which tokens may come next.

llguidance walks the schema's grammar beside the text and answers with a bit for every token, in about 50 µs.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onesitting.errors import UserError

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

# Written as `json.dumps` writes it, which is what the model learned; a small model that may add white space
# can go on with it for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class JsonGrammars:
    """Constraints for one tokenizer's texts. Raises UserError when the library is missing."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        try:
            import llguidance
        except ImportError:
            raise UserError(
                "JSON output needs llguidance; install it with: pip install 'onesitting[serve]'"
            ) from None
        self._library = llguidance
        # A complete text ends with the end of a message, where there is such a token.
        self._end = tokenizer.special_ids.get("<|im_end|>", tokenizer.eos_id)
        self._tokens = llguidance.LLTokenizer(
            _unspellable(tokenizer), n_vocab=tokenizer.vocab_size, eos_token=self._end
        )
        self._is_text = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
        self._is_text[[i for i in tokenizer.special_ids.values() if i != self._end]] = False

    def follow(self, schema: Mapping[str, Any]) -> "JsonConstraint":
        """A constraint for one text. Raises UserError for a schema that is wrong or not supported."""
        laid_out = {**schema, "x-guidance": _LAYOUT}
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(laid_out))
            matcher = self._library.LLMatcher(self._tokens, grammar)
        except (ValueError, RecursionError) as error:
            raise UserError(f"JSON schema: {error}") from None
        if matcher.get_error():
            raise UserError(f"JSON schema: {matcher.get_error().splitlines()[0]}")
        return JsonConstraint(matcher, self._is_text, self._end)


def _unspellable(tokenizer: "Tokenizer") -> str:
    """tokenizer.json with names for the control tokens that no JSON contains.

    Where a schema leaves one text only, llguidance allows one token only: of "<tool_call>" that would be the control
    token, which a reply may not have, and the reply would end in the middle of its JSON.
    """
    spec: dict[str, Any] = json.loads(tokenizer.tokenizer_json)
    names = {text: f"\0{token}" for text, token in tokenizer.special_ids.items()}
    spec["model"]["vocab"] = {names.get(text, text): id_ for text, id_ in spec["model"]["vocab"].items()}
    spec["post_processor"] = None  # it may name control tokens, and adds nothing to the text of a grammar
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return json.dumps(spec)


class JsonConstraint:
    """The state of one text under a schema."""

    def __init__(self, matcher: Any, is_text: Tensor, end: int) -> None:
        self._matcher, self._is_text, self._end = matcher, is_text, end

    def allowed(self) -> Tensor:
        """(V,) bool, the tokens that may come next; the end of the message where the text may end."""
        mask = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits = (mask[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1  # (V / 8, 8), lowest bit first
        allowed = bits.flatten()[: len(self._is_text)].bool() & self._is_text
        if not allowed.any():  # the grammar cannot go on, or met the library's limits: this text ends here
            allowed[self._end] = True
        return allowed

    def accept(self, token: int) -> bool:
        """Take the next token; True when the text is complete."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())
