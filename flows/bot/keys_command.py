"""`zk0bot client keys`: exchange the keys by which nodes know each other in secure aggregation."""

from pathlib import Path
from typing import Annotated

import typer

from flows.bot.client_command import node_folder
from flows.bot.server_command import DEFAULT_HOME, HomeOption
from flows.cli.command_group import command_group
from flows.cli.errors_to_exit_codes import errors_to_exit_codes

keys_app = command_group(
    "keys",
    "Exchange keys with the owners of other nodes, so that the server cannot stand between you.",
)


@keys_app.command("show")
def show_keys(
    known: Annotated[
        bool, typer.Option("--known", help="The keys of other clients that this node knows, in the same form.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print the public key of this node as a line for `zk0bot client keys trust` on other nodes."""
    with errors_to_exit_codes():
        from zk0.secure.known_peers import PEERS_FILE, KnownPeers
        from zk0.secure.peer_keys import PeerKey

        node = node_folder(home)
        if not known:
            typer.echo(PeerKey(client=node.read_kit().name, key=node.public_key()).model_dump_json())
            return
        peers = KnownPeers(node.scratch / PEERS_FILE)
        for name, key in sorted(peers.read().items()):
            typer.echo(PeerKey(client=name, key=key).model_dump_json())
        others = "accepted, and their keys kept" if peers.accepts_others else "refused"
        typer.echo(f"clients whose keys are not in this list are {others}", err=True)


@keys_app.command("trust")
def trust_keys(
    file: Annotated[Path, typer.Argument(help="Lines of `keys show` of other nodes, as their owners sent them.")],
    only: Annotated[
        bool | None,
        typer.Option("--only/--others", help="Refuse sums with clients whose keys are not known. Default: as before."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also where another key of a client is known.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Keep the keys of other nodes: a sum in which the server shows another key of one of them is refused."""
    with errors_to_exit_codes():
        from zk0.errors import FederationError
        from zk0.secure.known_peers import PEERS_FILE, KnownPeers
        from zk0.secure.peer_keys import read_peer_keys

        node, keys = node_folder(home), read_peer_keys(file)
        name, own = node.read_kit().name, node.public_key()
        if keys.get(name, own) != own:
            raise FederationError(f"{file}: does not have {own[:16]} as the key of {name}, which is this node's")
        peers = KnownPeers(node.scratch / PEERS_FILE)
        new = peers.trust({name: own} | keys, replace=replace, only=only)
        others = "accepted" if peers.accepts_others else "refused"
        typer.echo(f"{len(peers.read())} keys are known, {new} of them new; other clients are {others}")
