"""What the number of clients and neighbors means for secure sums: who may drop out, and who could reveal an update."""

from zk0.rules.participation import sample_size
from zk0.secure.messages import threshold_of
from zk0.settings.session import Session


def masking_note(session: Session, clients: int) -> str:
    """Return with how many others each client masks its update, and what follows; empty without secure aggregation.

    Args:
        session: the settings.
        clients: members of the session.
    """
    settings = session.federation
    if not settings.secure:
        return ""
    return graph_sentences(sample_size(clients, settings.fraction_fit, settings.min_updates), settings.secure_neighbors)


def graph_sentences(clients: int, neighbors: int | None) -> str:
    """Return the limits of a sum of `clients`, each of which masks its update with `neighbors` others; None: with all.

    Shares of a client's secrets are with its neighbors and itself; two thirds of these give them
    (`zk0.secure.messages.Roster`).

    >>> print(graph_sentences(20, 10))
    Secure aggregation: each of 20 clients masks its update with 10 neighbors. A sum needs 14 clients, and 8 of each \
client and its neighbors; else the round is tried again. 8 neighbors of a client that give their shares to the server \
reveal its update.
    >>> print(graph_sentences(6, None))
    Secure aggregation: each of 6 clients masks its update with the 5 others. A sum needs 4 clients; else the round is \
tried again. 4 clients that give their shares to the server reveal the update of another one.
    """
    needed = threshold_of(clients)
    begin = f"Secure aggregation: each of {clients} clients masks its update with"
    needs = f"A sum needs {needed} clients"
    again = "else the round is tried again"
    if neighbors is None or clients <= neighbors + 1:
        return (
            f"{begin} the {clients - 1} others. {needs}; {again}. {needed} clients that give their shares to the "
            "server reveal the update of another one."
        )
    shares = threshold_of(neighbors + 1)
    return (
        f"{begin} {neighbors} neighbors. {needs}, and {shares} of each client and its neighbors; {again}. {shares} "
        "neighbors of a client that give their shares to the server reveal its update."
    )
