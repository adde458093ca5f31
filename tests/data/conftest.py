import pytest
from makers import story

from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer((story(i) for i in range(300)), 512)
