"""Options that `zk0bot watch` and `zk0bot serve` share: which session starts, and when."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_SESSION = Path("deployments/sessions/federation.toml")
ConfigArgument = Annotated[
    Path | None, typer.Argument(help=f"Session file; unset: {DEFAULT_SESSION}.", show_default=False)
]
MinNodesOption = Annotated[
    int,
    typer.Option(min=1, help="Number of nodes that must be connected; where the session names nodes, of these."),
]
CooldownOption = Annotated[
    float, typer.Option(min=0, help="Hours until the next session starts even without a new node.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set training.lr=3e-4."),
]
