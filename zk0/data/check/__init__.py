"""The data check: finds every broken rule of a dataset from its files, before LeRobot reads them.

Where a rule belongs:

- `format_rules.py`: version, features, columns and their types
- `file_rules.py`: which files are in the folder
- `count_rules.py`: counts, numbering, order, timestamps
- `value_rules.py`: values of states and actions: dimensions, names, units, motion, copies
- `motion_rules.py`: how the arm moves, episode by episode
- `statistics_rules.py`: meta/stats.json
- `camera_rules.py`: cameras and video containers; `decoded_video_rules.py`: what the videos show
- `task_rules.py`: task texts
- `lost_episode_rules.py`: whatever costs an episode
- `contract_rules.py`: what the federation requires
- `reading_rules.py`: files that the check itself cannot read

CONTRIBUTING.md ("A data-check rule") says how to add one.
"""

from zk0.data.check.check_dataset import check_dataset
from zk0.data.check.contract_rules import check_contract, check_same_rate

__all__ = ["check_contract", "check_dataset", "check_same_rate"]
