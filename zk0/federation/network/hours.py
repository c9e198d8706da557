"""Daily hours in which a node may work, by its own clock."""

import re
from datetime import time
from typing import Self

from zk0.errors import SettingsError
from zk0.records import Record

_SPAN = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)")


class DailyHours(Record):
    """The time from `start` to `end` of every day, across midnight where `end` is the earlier one.

    >>> night, day = DailyHours.parse("22:00-06:00"), DailyHours.parse("9:00-17:30")
    >>> [night.contains(time(hour)) for hour in (21, 22, 0, 5, 6)]
    [False, True, True, True, False]
    >>> [day.contains(time(17, 29)), day.contains(time(17, 30))]
    [True, False]
    >>> str(day)
    '09:00-17:30'
    """

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse hours such as 22:00-06:00.

        Raises:
            SettingsError: the text is not a span of the day, or the span is empty.
        """
        if (found := _SPAN.fullmatch(text)) is None:
            raise SettingsError(f"--hours {text}: expected a span of the day such as 22:00-06:00")
        hour, minute, last_hour, last_minute = (int(part) for part in found.groups())
        hours = cls(start=time(hour, minute), end=time(last_hour, last_minute))
        if hours.start == hours.end:
            raise SettingsError(f"--hours {text}: start equals end; omit the option for a node that may always work")
        return hours

    def contains(self, now: time) -> bool:
        """Return whether a time of day lies in the span, which includes `start` and excludes `end`."""
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"
