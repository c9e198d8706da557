import subprocess
import sys

import pytest

from zk0.errors import SimulatorError
from zk0.simulator.tasks import TASKS, find_task


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


def test_the_error_of_an_unknown_task_lists_all_tasks() -> None:
    with pytest.raises(SimulatorError, match=r"'lift-rad'.*lift-red.*stack-red-blue"):
        find_task("lift-rad")


def test_naming_a_task_does_not_import_the_simulator() -> None:
    code = (
        "import sys; from zk0.simulator.tasks import TASKS; from zk0.simulator.demonstrations import demonstration_key;"
        "from zk0.settings.session import SimulatorSettings; demonstration_key('lift-red', SimulatorSettings());"
        "print(sorted({'mujoco', 'gymnasium', 'so101_nexus'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
