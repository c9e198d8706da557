"""Pure functions between rounds: learning rate and mu, participation, release."""
