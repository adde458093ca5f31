import pytest
from sample_texts import some_texts

from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(some_texts(), 512)
