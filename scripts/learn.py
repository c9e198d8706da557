"""Does federated training learn? Local only, federated, and all data in one place; same start, steps and samples.

    python scripts/learn.py deployments/sessions/demo.toml --set policy.path=base --seeds 9000-9009 --out outputs/learn

Every client of the session is also trained alone, and one more model on the union of their frames with batches as large
as all clients' together, so that optimizer steps and samples are equal. All models are normalised alike, judged on
every client's held-out episodes, and move the simulated arm from the same seeds. Results are kept in OUT/results.jsonl
as they are found: a model or rollout that is there already is not made again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zk0.aggregation.aggregate import aggregate
from zk0.interval import wilson
from zk0.records import CAMERA_PREFIX, Checkpoint
from zk0.robot.policy import make_processors, trained_weights
from zk0.robot.statistics import pool
from zk0.session import EvaluationPlan, RoundPlan, Session, load_session, terms_of
from zk0.simulator.rollout import Trajectory
from zk0.training.client import Client
from zk0.training.closed_loop import Actor, attempt_task
from zk0.training.examples import Examples
from zk0.training.fit import fit
from zk0.training.judge import Ground, policy_with, start_policy
from zk0.weights import save_weights


class Union:
    """The frames of several clients as those of one."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts = parts
        self.frames = sum(part.frames for part in parts)
        self.actions_counted = torch.cat([torch.as_tensor(part.actions_counted) for part in parts]).numpy()

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """Mean over all real actions of the batch, each part's loss weighted by those in it."""
        losses, first = [], 0
        counted = max(1, int(self.actions_counted[list(indices)].sum()))
        for part in self.parts:
            mine = [k for k, index in enumerate(indices) if first <= index < first + part.frames]
            own = [indices[k] - first for k in mine]
            if own:
                share = int(part.actions_counted[own].sum()) / counted
                losses.append(part.loss(policy, own, noise[mine], time[mine]) * share)
            first += part.frames
        return torch.stack(losses).sum()


class Bench:
    """Clients that have joined, the start they share, and where results go."""

    def __init__(self, session: Session, out: Path) -> None:
        self.session, self.out = session, out
        cache = Path(session.cache_dir)
        terms = terms_of(session, session.name)
        self.clients = {c.name: Client(c, terms, out / "clients" / c.name, cache) for c in session.members()}
        members = tuple(client.join() for client in self.clients.values())
        recipe, digest, size = start_policy(session, out / "start.safetensors")
        self.start = Checkpoint(round=0, path="start.safetensors", digest=digest, bytes=size)
        self.ground = Ground(recipe=recipe, members=members, sets=(), statistics=pool([m.statistics for m in members]))

    def trained(self, name: str) -> Checkpoint:
        """The model of this name after the last round: `federated`, `centralised`, or a client trained alone."""
        before = self.start
        for number in range(1, self.session.rounds + 1):
            kept = self.out / name / f"round_{number:03d}.json"
            if not kept.is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(self._round(name, number, before).model_dump_json(), encoding="utf-8")
            before = Checkpoint.model_validate_json(kept.read_text(encoding="utf-8"))
        return before

    def _round(self, name: str, number: int, before: Checkpoint) -> Checkpoint:
        target = self.out / name / f"round_{number:03d}.safetensors"
        names = list(self.clients) if name in ("federated", "centralised") else [name]
        plans = [self._plan(name, client, number, before) for client in names]
        if name == "centralised":
            digest, size = self._centralised(plans, before, target)
        else:
            updates = [self.clients[plan.client].train(plan, self.out / before.path) for plan in plans]
            found = aggregate(updates, self.out / before.path, target)
            digest, size = found.digest, found.bytes
        return Checkpoint(round=number, path=f"{name}/{target.name}", digest=digest, bytes=size)

    def _plan(self, name: str, client: str, number: int, before: Checkpoint) -> RoundPlan:
        session = self.session
        return RoundPlan(
            **{**self._told(client, before), "round": number},
            lr=session.training.lr,
            mu=session.training.proximal_mu,
            scheduler=session.scheduler,
        ).model_copy(update={"terms": terms_of(session, f"{session.name}-{name}")})

    def _told(self, client: str, model: Checkpoint) -> dict[str, Any]:
        return {
            "terms": terms_of(self.session, self.session.name),
            "client": client,
            "round": model.round,
            "recipe": self.ground.recipe,
            "global_digest": model.digest,
            "statistics": self.ground.statistics,
            "training": self.session.training,
        }

    def _centralised(self, plans: Sequence[RoundPlan], before: Checkpoint, target: Path) -> tuple[str, int]:
        policy = policy_with(self.session, self.ground.recipe, (self.out / before.path, before.digest))
        parts = [self.clients[plan.client]._examples(plan, policy) for plan in plans]
        many = {"batch_size": plans[0].training.batch_size * len(plans)}
        training = plans[0].training.model_copy(update=many)
        fit(policy, Union(parts), plans[0].model_copy(update={"client": "centralised", "training": training}))
        return save_weights(target, trained_weights(policy))

    def losses(self, model: Checkpoint) -> dict[str, float]:
        """Policy loss on each client's held-out episodes."""
        found = {}
        for name, client in self.clients.items():
            how = self.session.evaluation.model_dump(include={"times", "batch_size", "max_frames"})
            plan = EvaluationPlan(**self._told(name, model), **how)
            found[name] = client.evaluate(plan, self.out / model.path).score.policy_loss
        return found

    def attempts(self, model: Checkpoint, task: str, seeds: Sequence[int]) -> list[Trajectory]:
        """One closed-loop attempt a seed."""
        session = self.session
        policy = policy_with(session, self.ground.recipe, (self.out / model.path, model.digest))
        cameras = {camera: f"{CAMERA_PREFIX}{camera}" for camera in session.contract.cameras}
        actor = Actor(policy, *make_processors(policy, self.ground.statistics), cameras)
        settings = session.rollout.model_copy(update={"seeds": tuple(seeds)})
        return attempt_task(actor, task, session.simulator, settings, filmed=0)


def main() -> None:
    """Train what is not trained yet, judge it, let it move the arm, print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("session", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", default="9000-9009", help="first-last")
    parser.add_argument("--tasks", nargs="*", help="of the rollouts; none: those of the session")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    overrides = {name: _value(text) for name, _, text in (one.partition("=") for one in given.set)}
    session = load_session(given.session, overrides).at(Path.cwd())
    first, _, last = given.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    bench = Bench(session, given.out.resolve())
    found = _Results(given.out / "results.jsonl")
    for name in ("start", "federated", "centralised", *bench.clients):
        model = bench.start if name == "start" else bench.trained(name)
        if not found.of(name, "losses"):
            found.add({"model": name, "losses": bench.losses(model)})
        for task in given.tasks if given.tasks is not None else session.rollout.tasks:
            done = {r["seed"] for r in found.of(name, "seed") if r["task"] == task}
            if missing := [seed for seed in seeds if seed not in done]:
                for one in bench.attempts(model, task, missing):
                    row = {"task": task, "seed": one.seed, "success": one.success, "steps": one.steps}
                    found.add({"model": name} | row)
    sys.stdout.write(found.table(list(bench.clients)) + "\n")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class _Results:
    """Lines of results, kept as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def add(self, row: dict[str, Any]) -> None:
        """Keep one line."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, model: str, having: str) -> list[dict[str, Any]]:
        """The lines of one model that hold this field."""
        return [row for row in self.rows if row["model"] == model and having in row]

    def table(self, clients: Sequence[str]) -> str:
        """A line a model: loss on every client's held-out episodes, successes with Wilson's interval."""
        tasks = sorted({row["task"] for row in self.rows if "task" in row})
        lines = [["model", *(f"loss {c}" for c in clients), *tasks]]
        for model in dict.fromkeys(row["model"] for row in self.rows):
            losses = self.of(model, "losses")[0]["losses"]
            cells = [f"{losses[c]:.3f}" for c in clients]
            for task in tasks:
                won = [row["success"] for row in self.of(model, "seed") if row["task"] == task]
                low, high = wilson(sum(won), len(won)) if won else (0.0, 1.0)
                cells.append(f"{sum(won)}/{len(won)} ({low:.0%} to {high:.0%})")
            lines.append([model, *cells])
        lines.insert(1, ["---"] * len(lines[0]))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
