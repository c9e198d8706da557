"""The model card's section on groups: with which statistics the policy is loaded for which arm."""

from collections.abc import Sequence

from zk0.records import StatisticsGroup
from zk0.report.tables.group_tables import group_table
from zk0.report.tables.markdown import markdown_table

_LOADING = """The policy loads with the statistics of **{default}**. For an arm of another group (here {other}), copy
that group's processors over the default ones before any command of LeRobot:

```bash
cp statistics/{other}/policy_* .
```

or load them in Python:

```python
preprocess, postprocess = make_pre_post_processors(policy.config, f"{{folder}}/statistics/{other}")
```

Another calibration means other zero positions: with the wrong group the arm moves to wrong places."""


def group_section(groups: Sequence[StatisticsGroup]) -> str:
    """Section of the card with all groups, the default first, and how to load the others; empty for one group."""
    if len(groups) < 2:
        return ""
    table = markdown_table(*group_table(groups).as_text())
    text = "States and actions of a group have the same joints and units, and were normalized with its own statistics."
    loading = _LOADING.format(default=groups[0].name, other=groups[1].name)
    return f"## Groups\n\n{text}\n\n{table}\n\n{loading}"
