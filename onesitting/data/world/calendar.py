"""Days of the week and how far apart they are."""

from onesitting.data.world.lexicon import WEEKDAYS


def weekday_after(day: str, days: int) -> str:
    """The weekday `days` days after `day` (before it, if negative). Raises ValueError on an unknown day."""
    names = [name.lower() for name in WEEKDAYS]
    if day.lower() not in names:
        raise ValueError(f"'{day}' is not a day of the week")
    return WEEKDAYS[(names.index(day.lower()) + days) % 7]


def counted_days(day: str, days: int) -> list[str]:
    """The weekdays passed on the way from `day`, one a day, without `day` itself."""
    step = 1 if days >= 0 else -1
    return [weekday_after(day, step * i) for i in range(1, abs(days) + 1)]
