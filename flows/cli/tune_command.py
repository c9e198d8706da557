"""`zk0 tune`: search for the settings of a session with the smallest loss."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.program_name import program_name
from flows.cli.session_run import parse_overrides, set_prefect_defaults
from zk0.errors import SettingsError
from zk0.storage.writable import check_writable
from zk0.tuning.trials import Objective

if TYPE_CHECKING:
    from zk0.tuning.trials import Dimension


def tune(
    config: Annotated[Path, typer.Argument(help="Session file, such as deployments/sessions/demo.toml.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; run again with the same folder to continue.")],
    trials: Annotated[int, typer.Option(min=1, help="Number of trials in the folder when the search ends.")] = 20,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TOML",
            help="Setting to search: training.lr='{low=1e-5, high=1e-3, log=true}' or training.local_steps='[20, 40]'; "
            "unset: learning rate, FedProx mu, local steps and scheduler, around the session's own.",
        ),
    ] = None,
    objective: Annotated[
        Objective, typer.Option(help="Loss to minimize: on clients' held-out episodes, or on the evaluation sets.")
    ] = "held_out",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting in every trial.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print log lines instead of a progress bar.")] = False,
) -> None:
    """Search for the settings of a session with the smallest loss; bad trials are stopped after early rounds.

    Writes results.json, and best.toml, a session file with the best settings. Several commands with the same folder
    search together.
    """
    with errors_to_exit_codes():
        overrides, dimensions = parse_overrides(settings or []), parse_space(space or [])
        check_writable(out, "--out")
        set_prefect_defaults()
        from flows.cli.terminal import line_on_interrupt, session_progress
        from flows.prefect_local.temporary_server import configured_or_temporary_server
        from flows.session_loading import load_session_to_run

        load_session_to_run(config, overrides)  # wrong input ends the command before a server is started
        hint = "; finished trials are kept: run the command again with the same --out"
        with (
            line_on_interrupt(lambda: hint),
            session_progress(quiet) as on_status,
            configured_or_temporary_server(Path.cwd(), on_status),
        ):
            from flows.hyperparameter_search import hyperparameter_search

            best = hyperparameter_search(
                config=str(config),
                overrides=overrides or None,
                space=dimensions or None,
                trials=trials,
                objective=objective,
                folder=str(out),
            )
        typer.echo(f"best settings of {trials} trials   {best}")
        typer.echo(f"run them with                 {program_name()} run {shlex.quote(str(best))}")


def parse_space(dimensions: list[str]) -> "dict[str, Dimension]":
    """Parse the settings to search; a value is a table with `low`, `high` and `log`, or an array of choices, in TOML.

    >>> parse_space(["training.lr={low=1e-5, high=1e-3, log=true}", "training.local_steps=[20, 40]"])["training.lr"]
    Dimension(low=1e-05, high=0.001, log=True, choices=())

    Raises:
        SettingsError: names the setting whose value is neither.
    """
    from pydantic import ValidationError

    from zk0.tuning.trials import Dimension

    found = {}
    for name, value in parse_overrides(dimensions).items():
        fields: Any = {"choices": value} if isinstance(value, list) else value
        try:
            found[name] = Dimension.model_validate(fields)
        except ValidationError as e:
            fault = e.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise SettingsError(
                f"--space {name}={value}: {fault}; expected such as {{low=1e-5, high=1e-3, log=true}} or [20, 40]"
            ) from e
    return found
