"""Evaluation of policies: losses on held-out and unseen data, closed-loop rollouts, episode videos, session setup."""
