"""A client on its own machine: its private dataset, its trained updates, its evaluations, its joining report."""
