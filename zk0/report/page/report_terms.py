"""Meanings of the terms in column titles, which a report shows where the pointer rests on them or a finger taps."""

REPORT_TERMS = {
    "action error": "mean absolute difference between predicted and recorded actions, in the dataset's units "
    "(degrees), padding left out",
    "attempt": "one closed-loop run of a task in the simulator from one seed; a rollout is one or more attempts",
    "client": "one participant with one private dataset, and its name in charts",
    "cosine to mean": "cosine of the angle between an update's delta and the mean of the round's deltas: 1 is the same "
    "direction",
    "evaluation set": "a dataset, or its last episodes, that no client trains on; the server evaluates the global "
    "model on it",
    "gradient norm": "L2 norm of the gradient before clipping, mean over the optimizer steps",
    "held-out episodes": "the last episodes of a client's dataset; the client evaluates on them and does not train on "
    "them",
    "lr": "learning rate: the size of an optimizer step",
    "mu": "strength of FedProx's proximal term, which keeps a client's weights near the global ones; 0: FedAvg",
    "policy loss": "the policy's own training loss: for SmolVLA the flow-matching loss",
    "round": "one cycle of training on clients, aggregation and evaluation; round 0 is the start policy",
    "update norm": "L2 norm of an update's delta",
    "weight": "share of an update in the average of its round",
}
"""Term -> its meaning, as docs/glossary.md has it."""
_SAME = {"attempts": "attempt", "clients": "client", "held-out loss": "policy loss", "lr factor": "lr"}
"""Column title -> the term that it shows, where they differ."""


def report_term(title: str) -> str | None:
    """Return the term that a column's title stands for; None if it needs no explanation.

    >>> report_term("lr, first"), report_term("attempts"), report_term("seconds")
    ('lr', 'attempt', None)
    """
    name = title.partition(",")[0].strip()
    term = _SAME.get(name, name)
    return term if term in REPORT_TERMS else None


def term_id(term: str) -> str:
    """Return the id of a term's note on the page.

    >>> term_id("policy loss")
    'term-policy-loss'
    """
    return f"term-{term.replace(' ', '-')}"
