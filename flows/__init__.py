"""The Prefect flows: each is the order of its steps. The command lines `zk0` and `zk0bot` are in `cli` and `bot`."""

from zk0.processes import collect_garbage_less_often, search_packages_once

collect_garbage_less_often()
search_packages_once()
