import pytest

from onesitting.data.world import lexicon as lx
from onesitting.data.world.state import state

WORLD = state(0)


def test_a_world_is_a_function_of_its_seed() -> None:
    state.cache_clear()
    again = state(0)
    assert again.people == WORLD.people
    assert again.prices == WORLD.prices
    assert state(1).people != WORLD.people


def test_there_are_at_least_100_people_with_unique_names() -> None:
    assert len(WORLD.people) >= 100
    assert all(person.name == name for name, person in WORLD.people.items())


def test_families_agree_with_each_other() -> None:
    for child in WORLD.children:
        for parent in (WORLD.person(child.mother), WORLD.person(child.father)):
            assert child.name in parent.children
            assert parent.age - child.age >= 18
            assert (parent.town, parent.street, parent.family_name) == (
                child.town,
                child.street,
                child.family_name,
            )
    for person in WORLD.people.values():
        assert person.friend in WORLD.people
        assert person.friend != person.name
        assert not person.partner or WORLD.person(person.partner).partner == person.name


def test_a_job_has_one_holder_in_a_town_who_lives_there() -> None:
    for town in WORLD.towns.values():
        for job in town.jobs:
            holder = WORLD.holder(town.name, job)
            assert holder is not None
            assert (holder.job, holder.town) == (job, town.name)
        assert WORLD.holder(town.name, "baker") is not None
    assert WORLD.holder("Millbrook", "astronaut") is None


def test_pronouns_follow_the_name_lists() -> None:
    for person in WORLD.people.values():
        assert person.girl == (person.name in lx.GIRLS)
        assert (person.he, person.him, person.his) == (
            ("she", "her", "her") if person.girl else ("he", "him", "his")
        )


def test_prices_lie_in_the_range_of_their_kind() -> None:
    for kind in [*lx.OBJECTS.values(), *lx.FOODS.values()]:
        assert kind.price[0] <= WORLD.price(kind.name) <= kind.price[1]


def test_every_fact_has_one_value() -> None:
    keys = [fact.key for fact in WORLD.facts]
    assert len(keys) == len(set(keys)) >= 1500
    assert all(fact.value for fact in WORLD.facts)


def test_the_calendar_has_365_days_and_runs_in_weeks() -> None:
    assert WORLD.date(0) == ("January", 1)
    assert WORLD.date(364) == ("December", 31)
    for day in range(364):
        today, tomorrow = WORLD.weekday(*WORLD.date(day)), WORLD.weekday(*WORLD.date(day + 1))
        assert lx.WEEKDAYS.index(tomorrow) == (lx.WEEKDAYS.index(today) + 1) % 7
    with pytest.raises(ValueError, match="365"):
        WORLD.date(365)


@pytest.mark.parametrize(
    ("phrase", "article"),
    [("apple", "an"), ("old kite", "an"), ("kite", "a"), ("hour", "an"), ("useful box", "a")],
)
def test_articles_follow_the_sound(phrase: str, article: str) -> None:
    assert lx.with_article(phrase) == f"{article} {phrase}"
