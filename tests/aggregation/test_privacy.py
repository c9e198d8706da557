"""Clipping as in Flower, noise of the documented standard deviation, and epsilon beside other computations of it."""

from math import exp, sqrt
from pathlib import Path

import numpy as np
import pytest
from flwr.supercore.differential_privacy import compute_clip_model_update, compute_stdv
from scipy.stats import norm

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.privacy import noise_std, privacy_spent, session_secret
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.errors import CheckpointError, SettingsError
from zk0.records import PrivacySpent
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.settings.loading import parse_session
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

PRIVATE = AggregationSettings(clip_norm=2.0, noise_multiplier=0.5, quarantine_factor=0)


def start(tmp_path: Path, size: int = 50) -> dict[str, np.ndarray]:
    weights = {n: np.random.default_rng(i).normal(size=(size, 40)).astype(np.float32) for i, n in enumerate("uv")}
    save_weights(tmp_path / "global", weights)
    return weights


def test_clipped_as_flower_clips(tmp_path, saved):
    old = start(tmp_path)
    rng = np.random.default_rng(9)
    clients = [
        {n: (w + rng.normal(0, scale, w.shape)).astype(np.float32) for n, w in old.items()} for scale in (0.1, 0.01, 1)
    ]
    updates = [saved(f"c{i}", weights, n) for i, (weights, n) in enumerate(zip(clients, (5, 50, 1), strict=True))]
    result = aggregate(
        updates, tmp_path / "global", tmp_path / "new", AggregationTerms(AggregationSettings(clip_norm=2.0))
    )
    clipped = []
    for weights in clients:
        theirs = list(weights.values())
        compute_clip_model_update(theirs, list(old.values()), 2.0)
        clipped.append(theirs)
    new = load_weights(tmp_path / "new")
    for i, name in enumerate(old):
        expected = np.average([c[i].astype(float) for c in clipped], axis=0, weights=[5, 50, 1])
        np.testing.assert_allclose(new[name], expected, rtol=1e-5, atol=1e-6)
    assert [c.scale < 1 for c in result.contributions] == [True, False, True]
    assert result.contributions[0].scale == pytest.approx(2.0 / result.contributions[0].update_norm)


def test_noise_has_its_standard_deviation_and_every_client_has_the_same_weight(tmp_path, saved):
    old = start(tmp_path, size=5000)
    shift = np.float32(1e-3)
    updates = [saved("a", {n: w + shift for n, w in old.items()}, 1), saved("b", old, 900)]
    terms = AggregationTerms(PRIVATE, secret=b"s" * 32)
    aggregate(updates, tmp_path / "global", tmp_path / "new", terms, threads=3)
    new = load_weights(tmp_path / "new")
    noise = np.concatenate([(new[n].astype(float) - old[n] - shift / 2).ravel() for n in old])
    assert noise_std(PRIVATE, 2) == 0.5 == compute_stdv(0.5, 2.0, 2)
    assert noise.std() == pytest.approx(0.5, rel=0.01)
    assert abs(noise.mean()) < 5 * 0.5 / sqrt(noise.size)
    assert abs(np.corrcoef(noise[: noise.size // 2], noise[noise.size // 2 :])[0, 1]) < 0.02  # of the two tensors


def test_noise_depends_on_the_secret_and_the_updates_alone(tmp_path, saved):
    old = start(tmp_path)
    updates = [saved(c, old) for c in "ab"]

    def digest(of, secret, threads=1):
        terms = AggregationTerms(PRIVATE, secret=secret)
        return aggregate(of, tmp_path / "global", tmp_path / "new", terms, threads).digest

    first = digest(updates, b"s" * 32)
    assert digest(updates[::-1], b"s" * 32, threads=3) == first
    assert digest(updates, b"t" * 32) != first
    other = [updates[0], updates[1].model_copy(update={"round": 2})]
    assert digest(other, b"s" * 32) != first


def test_secret_is_created_once_and_readable_by_its_owner_only(tmp_path):
    path = tmp_path / "privacy.key"
    assert session_secret(path, AggregationSettings()) == b""
    assert not path.exists()
    secret = session_secret(path, PRIVATE)
    assert len(secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert session_secret(path, PRIVATE) == secret
    assert session_secret(tmp_path / "other", PRIVATE) != secret
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="5 bytes, expected 32"):
        session_secret(path, PRIVATE)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
def test_epsilon_is_that_of_the_gaussian_mechanism(multiplier):
    """delta(epsilon) of arXiv 1805.06530, theorem 8, for three rounds, each a Gaussian of the same multiplier."""
    settings = PRIVATE.model_copy(update={"noise_multiplier": multiplier, "privacy_delta": 1e-6})
    found: PrivacySpent | None = None
    for _ in range(3):
        found = privacy_spent(settings, 7, found)
    assert found is not None
    assert (found.rounds, found.clients, found.delta) == (3, 7, 1e-6)
    assert found.noise_std == multiplier * 2.0 / 7
    mu, epsilon = sqrt(3) / multiplier, found.epsilon
    delta = norm.cdf(mu / 2 - epsilon / mu) - exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-6, rel=1e-3)


def test_epsilon_is_no_more_than_that_of_the_accountant():
    """Beside dp_accounting's composition by privacy loss distributions, which needs no closed form."""
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    found = privacy_spent(PRIVATE, 4, privacy_spent(PRIVATE, 4, None))
    theirs = PLDAccountant().compose(GaussianDpEvent(0.5), 2).get_epsilon(1e-5)
    assert found is not None
    assert found.epsilon == pytest.approx(theirs, rel=2e-3)
    assert privacy_spent(AggregationSettings(clip_norm=1.0), 4, None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_multiplier": 1.0}, "needs clip_norm"),
        ({"noise_multiplier": 1.0, "clip_norm": 1.0}, "needs quarantine_factor = 0"),
    ],
)
def test_noise_without_a_privacy_guarantee_is_refused(settings, message):
    values = {
        "clients": [{"name": n, "dataset": "sim:lift_cube"} for n in "ab"],
        "evaluation": {"datasets": [{"dataset": "sim:lift_cube"}]},
        "aggregation": settings,
    }
    with pytest.raises(SettingsError, match=message):
        parse_session(values, "here")
