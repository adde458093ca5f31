"""The text that a run's tokenizer is trained on."""

from collections.abc import Iterator

from onesitting.config import RunConfig
from onesitting.data.problems import Problems
from onesitting.data.sources import read_conversations, sample_texts
from onesitting.tokenizer.chat import conversation_text


def text_sample(cfg: RunConfig) -> Iterator[str]:
    """About `tokenizer.train_mb` megabytes that the tokenizer is trained on: of the data, a share of each file, and of
    the conversations, if some stage reads them, `tokenizer.chat_fraction`."""
    reads_chat = "sft" in cfg.stages or cfg.pretrain.chat_fraction > 0
    chat_mb = cfg.tokenizer.train_mb * cfg.tokenizer.chat_fraction if reads_chat else 0.0
    yield from sample_texts(cfg.data, cfg.corpus, cfg.tokenizer.train_mb - chat_mb, cfg.seed)
    left = chat_mb * 1e6
    for conversation in read_conversations(cfg.chat, cfg.corpus, Problems(1.0), cfg.seed):
        if left <= 0:
            return
        text = conversation_text(conversation.messages, conversation.tools)
        left -= len(text.encode())
        yield text
