"""FedAvg: the mean of the clients' weights."""

from zk0.aggregation.strategy import Strategy


class FedAvg(Strategy):
    """The mean, weighted by training frames (arXiv 1602.05629, algorithm 1).

    With `training.proximal_mu` above 0 it is FedProx (arXiv 1812.06127), whose extra term concerns the clients only.
    """

    name = "fedavg"
    is_mean_of_all = True
