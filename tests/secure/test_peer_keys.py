"""Owners exchange the keys of their nodes: from the first round on a server cannot show others, nor invent clients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app
from zk0.errors import FederationError, SettingsError
from zk0.federation.network.node import NodeFolder
from zk0.federation.network.server import ServerFolder, ServerSettings
from zk0.secure.known_peers import KnownPeers
from zk0.secure.peer_keys import PeerKey, read_peer_keys


def lines(**keys: str) -> str:
    return "".join(PeerKey(client=name, key=key).model_dump_json() + "\n" for name, key in keys.items())


@pytest.fixture
def trusting(secure_group: Callable[..., Any]) -> tuple[Any, Any, KnownPeers]:
    """A group, what a server would put in place of its client c01, and the keys that c00 knows before the first round.

    The owner of c00 has got the key of c01.
    """
    group, other = secure_group(3), secure_group(3, folder="other")
    roster = group.roster()
    peers = KnownPeers(group.folder / "c00" / "peers.json")
    peers.trust({name: roster.advert(name).identity for name in ("c00", "c01")})
    return group, other.roster().advert("c01"), peers


def shared_with(group: Any, advert: Any) -> None:
    """Let c00 share its secrets with a roster that has another advert."""
    roster = group.roster()
    adverts = tuple(advert if one.client == advert.client else one for one in roster.adverts)
    group.client("c00").share(roster.model_copy(update={"adverts": adverts}))


def test_a_false_key_is_refused_in_the_first_round(trusting: tuple[Any, Any, KnownPeers]) -> None:
    group, false, peers = trusting
    known = peers.read()
    with pytest.raises(FederationError, match="another key of c01 than before"):
        shared_with(group, false)
    assert peers.read() == known
    shared_with(group, group.roster().advert("c02"))  # no owner has given its key: the first one shown is kept
    assert sorted(peers.read()) == ["c00", "c01", "c02"]


def test_with_only_a_client_that_no_owner_knows_is_refused(trusting: tuple[Any, Any, KnownPeers]) -> None:
    group, _, peers = trusting
    peers.trust({}, only=True)
    with pytest.raises(
        FederationError, match="the sum has c02, whose keys this client does not know; expected only c0"
    ):
        shared_with(group, group.roster().advert("c02"))
    assert sorted(peers.read()) == ["c00", "c01"]
    peers.trust({"c02": group.roster().advert("c02").identity})
    assert not peers.accepts_others
    shared_with(group, group.roster().advert("c02"))
    peers.trust({}, only=False)
    assert peers.accepts_others


def test_a_known_key_is_replaced_only_on_demand(tmp_path: Path) -> None:
    peers = KnownPeers(tmp_path / "peers.json")
    assert peers.trust({"a": "1" * 64, "b": "2" * 64}) == 2
    with pytest.raises(FederationError, match=r"another key of b: .* give --replace"):
        peers.trust({"b": "3" * 64, "c": "4" * 64})
    for keys in ({"c": "1" * 64}, {"c": "5" * 64, "a": "1" * 64, "d": "1" * 64}):
        with pytest.raises(FederationError, match=r"a, [cd] would have the same key"):
            peers.trust(keys)
    assert peers.read() == {"a": "1" * 64, "b": "2" * 64}
    assert peers.trust({"b": "3" * 64}, replace=True) == 1
    assert peers.read()["b"] == "3" * 64


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no key in it"),
        ("{}\nkey\n" + lines(a="1" * 64), "line 1 is no key of a client; line 2 is no key of a client; expected lines"),
        ('{"client": "a", "key": "1111"}', "line 1 is no key"),
        ('{"client": "../a", "key": "' + "1" * 64 + '"}', "line 1 is no key"),
        (lines(a="1" * 64) + lines(a="2" * 64), "line 2: another key of a"),
        ("x" * 4_000_001, "4000001 bytes, expected at most 4000000"),
    ],
)
def test_what_is_no_list_of_keys_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(SettingsError, match=fault):
        read_peer_keys(tmp_path / "keys")


def test_two_owners_exchange_their_keys(tmp_path: Path) -> None:
    """The key that is shown is the one that signs the journal; it is there before the first session."""
    server = ServerFolder(tmp_path / "server")
    server.init(ServerSettings(hosts=("127.0.0.1",)))
    nodes = {name: NodeFolder(tmp_path / name / "client") for name in ("arm-1", "arm-2")}
    for name, node in nodes.items():
        node.install_kit(server.enroll(name))

    def keys(name: str, *command: str) -> Any:
        return CliRunner().invoke(zk0bot_app, ["client", "keys", *command, "--home", str(tmp_path / name)])

    shown = {name: keys(name, "show").stdout for name in nodes}
    assert all(shown[name] == lines(**{name: node.public_key()}) for name, node in nodes.items())
    (tmp_path / "all").write_text("".join(shown.values()))
    done = keys("arm-1", "trust", str(tmp_path / "all"), "--only")
    assert (done.exit_code, done.stdout) == (0, "2 keys are known, 2 of them new; other clients are refused\n")
    assert keys("arm-1", "show", "--known").stdout == "".join(shown.values())
    (tmp_path / "false").write_text(lines(**{"arm-1": "1" * 64}))
    refused = keys("arm-1", "trust", str(tmp_path / "false"))
    assert (refused.exit_code, "as the key of arm-1, which is this node's" in " ".join(refused.output.split())) == (
        1,
        True,
    )
