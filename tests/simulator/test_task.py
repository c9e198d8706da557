import subprocess
import sys

import pytest

from zk0.errors import SimulatorError
from zk0.simulator.task import TASKS, find_task


def test_every_task_is_found_by_its_name_and_has_a_text_of_its_own() -> None:
    assert {
        "place-red-blue",
        "place-yellow-green",
        "place-purple-white",
        "lift-red",
        "lift-green",
        "stack-red-blue",
    } <= set(TASKS)
    assert all(find_task(name).name == name for name in TASKS)
    texts = [task.text for task in TASKS.values()]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 30
    assert find_task("lift-red").text == "Pick up the red cube"


def test_an_unknown_task_is_told_the_known_ones() -> None:
    with pytest.raises(SimulatorError, match=r"'lift-rad'.*lift-red.*stack-red-blue"):
        find_task("lift-rad")


def test_naming_a_task_opens_no_simulator() -> None:
    code = (
        "import sys; from zk0.simulator.task import TASKS; from zk0.simulator.demonstrate import demonstration_key;"
        "from zk0.session import SimulatorSettings; demonstration_key('lift-red', SimulatorSettings());"
        "print(sorted({'mujoco', 'gymnasium', 'so101_nexus'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
