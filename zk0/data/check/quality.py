"""The quality of a dataset in a few words, for reports and cards."""

from zk0.records import DatasetReport


def describe_quality(report: DatasetReport) -> str:
    """Return the quality tag of a dataset, its repairs, and the rules of its warnings with their episodes.

    >>> describe_quality(DatasetReport(dataset="x", root="", repairs=("recount",)))
    'repaired (recount)'
    """
    text = f"{report.quality} ({', '.join(report.repairs)})" if report.repairs else str(report.quality)
    episodes: dict[str, set[int]] = {}
    for finding in report.findings:
        episodes.setdefault(finding.rule, set()).update(finding.episodes)
    parts = [f"{rule} in {_count(len(found))}" if found else rule for rule, found in episodes.items()]
    return f"{text}: {', '.join(parts)}" if parts else text


def _count(episodes: int) -> str:
    return f"{episodes} episode{'s' if episodes != 1 else ''}"
