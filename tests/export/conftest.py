"""Small models with a trained tokenizer, as folders on disk; the command line in this process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import SHAPES, TEXTS, Done, random_model

from onesitting.checkpoint import save_model
from onesitting.cli import main
from onesitting.export.source import Source, open_source
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 20, 384)


@pytest.fixture(scope="session")
def make_source(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """shape -> an exported model's source, written once."""
    made: dict[str, Source] = {}

    def make(shape: str) -> Source:
        if shape not in made:
            folder: Path = tmp_path_factory.mktemp("models") / shape
            model = random_model(replace(SHAPES[shape], vocab_size=tokenizer.vocab_size))
            save_model(folder, model, tokenizer)
            made[shape] = open_source(str(folder))
        return made[shape]

    return make


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The command line in this process and an empty folder: importing torch anew for each would take seconds."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(list(arguments))
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return call
