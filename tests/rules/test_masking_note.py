"""What a secure session says of its clients and their neighbors, against the rosters that decide it."""

import re

import pytest

from zk0.rules.masking_note import graph_sentences
from zk0.secure.messages import KeyAdvert, Roster, SecureRound
from zk0.settings.plans import SecureRules


def roster(clients: int, neighbors: int | None) -> Roster:
    keys = dict.fromkeys(("identity", "channel_key", "mask_key", "self_mask_digest"), "0" * 64)
    adverts = [KeyAdvert(client=f"c{n:03d}", frames=1, signature="0" * 128, **keys) for n in range(clients)]
    rules = SecureRules(bits=16, neighbors=neighbors, limit=0.01, max_share_factor=3.0)
    common = SecureRound(session="s", round=1, global_digest="g", seed=42, rules=rules)
    return Roster(common=common, adverts=tuple(adverts))


@pytest.mark.parametrize(
    ("clients", "neighbors"), [(3, None), (100, None), (3, 10), (11, 10), (12, 10), (20, 10), (50, 20), (100, 4)]
)
def test_the_numbers_are_those_of_the_roster(clients: int, neighbors: int | None) -> None:
    found, (first, *_) = roster(clients, neighbors), roster(clients, neighbors).names
    numbers = [int(number) for number in re.findall(r"\d+", graph_sentences(clients, neighbors))]
    others, needed = len(found.neighbors[first]), found.least_survivors
    if others == clients - 1:
        assert found.share_threshold(first) == needed
        assert numbers == [clients, others, needed, needed]
    else:
        assert numbers == [clients, others, needed, found.share_threshold(first), found.share_threshold(first)]
