"""When a node may work: a span of the day by its own clock."""

import re
from datetime import time
from typing import Self

from zk0.errors import SettingsError
from zk0.records import Record

_SPAN = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)")


class Hours(Record):
    """From `start` to `end`, every day; over midnight where `end` is the earlier one.

    >>> night, day = Hours.parse("22:00-06:00"), Hours.parse("9:00-17:30")
    >>> [night.hold(time(hour)) for hour in (21, 22, 0, 5, 6)]
    [False, True, True, True, False]
    >>> [day.hold(time(17, 29)), day.hold(time(17, 30))]
    [True, False]
    >>> str(day)
    '09:00-17:30'
    """

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Hours as they are typed.

        Raises:
            SettingsError: they are no hours.
        """
        if (found := _SPAN.fullmatch(text)) is None:
            raise SettingsError(f"--hours {text}: expected a span of the day such as 22:00-06:00")
        hour, minute, last_hour, last_minute = (int(part) for part in found.groups())
        hours = cls(start=time(hour, minute), end=time(last_hour, last_minute))
        if hours.start == hours.end:
            raise SettingsError(f"--hours {text}: begins as it ends; leave it out for a node that may always work")
        return hours

    def hold(self, now: time) -> bool:
        """Whether a time of the day lies within; the end itself does not."""
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"
