"""Tables for papers: LaTeX with booktabs, and escaping of text."""

import re

from zk0.report.tables.table import Table

_SPECIAL = re.compile(r"([\\&%$#_{}~^<>])")
_NAMED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_MATH = {"<": r"\textless{}", ">": r"\textgreater{}"}
_CHARACTERS = {"−": "$-$", "±": r"$\pm$", "–": "--", "\u00a0": "~", "\u202f": r"\,"}


def escape_latex(text: str) -> str:
    r"""One line of text, escaped so that LaTeX prints it literally.

    >>> print(escape_latex("mu_1 = 5 % {a}"))
    mu\_1 = 5 \% \{a\}
    """
    line = "".join(c if c.isprintable() or c in _CHARACTERS else " " for c in text)
    escaped = _SPECIAL.sub(lambda m: (_NAMED | _MATH).get(m[1], rf"\{m[1]}"), line)
    return "".join(_CHARACTERS.get(c, c) for c in escaped)


def latex_table(table: Table) -> str:
    """The table as a LaTeX `table`; the document needs the package booktabs."""
    headings, rows = table.as_text()
    align = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [" & ".join(map(escape_latex, cells)) + r" \\" for cells in (headings, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape_latex(table.caption)}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
