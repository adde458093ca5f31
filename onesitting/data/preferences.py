"""Specs -> preferences, as a stream: the world's pairs, files of records, hub datasets."""

from collections.abc import Iterable, Iterator
from typing import Any

from onesitting.config import CorpusConfig
from onesitting.data.files import RECORD_SUFFIXES, format_of, read_records
from onesitting.data.preference_records import NoPreference, Preference, preference_of
from onesitting.data.problems import Problems
from onesitting.data.records import RecordError
from onesitting.data.sources import HUB, WORLD, expand, hub_numbered
from onesitting.errors import UserError

__all__ = ["Preference", "read_preferences"]


def read_preferences(
    specs: Iterable[str], corpus: CorpusConfig, problems: Problems, seed: int = 0
) -> Iterator[Preference]:
    """Preferences of the specs, in order. Raises UserError if too many records are bad."""
    for spec in specs:
        if spec == WORLD:
            yield from _world_preferences(corpus, problems, seed)
        elif spec.startswith(HUB):
            yield from _preferences_of(hub_numbered(spec, corpus, problems), spec, problems)
        else:
            for path in expand(spec):
                if format_of(path) not in RECORD_SUFFIXES:
                    raise UserError(f"'{path}' is no file of preferences; give {' '.join(RECORD_SUFFIXES)}")
                yield from _preferences_of(read_records(path, problems), str(path), problems)
    problems.raise_if_too_many()


def _world_preferences(corpus: CorpusConfig, problems: Problems, seed: int) -> Iterator[Preference]:
    from onesitting.data.world import World

    for number, record in enumerate(World(seed).preferences("train", corpus.world_pairs), 1):
        problems.count()
        yield preference_of(record, f"world:{number}")


def _preferences_of(
    records: Iterator[tuple[int, Any]], source: str, problems: Problems
) -> Iterator[Preference]:
    for line, record in records:
        where = f"{source}:{line}"
        if not isinstance(record, dict):
            problems.report_bad(where, "not a preference", type(record).__name__)
            continue
        try:
            yield preference_of(record, where)
        except NoPreference as error:
            problems.skip(str(error))
        except RecordError as error:
            problems.report_bad(where, str(error), f"fields: {', '.join(map(str, record))[:160]}")
