import json
from dataclasses import replace

from onesitting.config import CorpusConfig, RunConfig, TokenizerConfig
from onesitting.data.text_sample import text_sample
from onesitting.data.world.tools import TOOLS
from onesitting.tokenizer.bpe import train_tokenizer

CFG = RunConfig(corpus=CorpusConfig(world_mb=1.0), tokenizer=TokenizerConfig(train_mb=0.4))


def test_a_quarter_of_the_tokenizers_text_are_conversations() -> None:
    without = replace(CFG, stages=("pretrain",))
    documents = sum(
        len(text.encode()) for text in text_sample(replace(without, tokenizer=TokenizerConfig(train_mb=0.3)))
    )
    everything = sum(len(text.encode()) for text in text_sample(CFG))
    assert 0.2 < (everything - documents) / everything < 0.3


def test_a_run_without_conversations_trains_its_tokenizer_on_documents_alone() -> None:
    texts = list(text_sample(replace(CFG, stages=("pretrain",))))
    assert not any('"arguments"' in text for text in texts)
    assert any('"arguments"' in text for text in text_sample(CFG))


def test_conversations_in_the_sample_make_tool_schemas_short() -> None:
    schema = json.dumps(TOOLS[0])
    lengths = [
        len(train_tokenizer(text_sample(replace(CFG, stages=stages)), 1024).encode(schema))
        for stages in (("pretrain",), ("pretrain", "sft"))
    ]
    assert lengths[1] < 0.6 * lengths[0]


def test_text_of_a_conversation_has_no_control_tokens() -> None:
    assert not any("<|im_" in text or "<tool_call>" in text for text in text_sample(CFG))
