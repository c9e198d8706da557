"""The order in which the answers of a buffered round arrived, on disk: a killed session goes on from there."""

from pathlib import Path

from zk0.records import Arrival
from zk0.storage.disk_space import translate_disk_full


class ArrivalLog:
    """`arrivals.jsonl` in the spool of a round: one line for each answer, written when the spool holds it.

    Args:
        spool: folder of the round's spool.
    """

    def __init__(self, spool: Path) -> None:
        self._file = spool / "arrivals.jsonl"

    def append(self, arrival: Arrival) -> None:
        """Append an arrival."""
        with translate_disk_full(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(arrival.model_dump_json() + "\n")

    def read(self) -> tuple[Arrival, ...]:
        """Return the arrivals so far; half a line, which a killed writer may leave, is removed."""
        if not self._file.is_file():
            return ()
        text = self._file.read_text(encoding="utf-8")
        lines = text.split("\n")
        if lines[-1]:
            self._file.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
        return tuple(Arrival.model_validate_json(line) for line in lines[:-1])
