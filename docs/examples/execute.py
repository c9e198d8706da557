"""Execute a notebook in this process and store it with its outputs, without Jupyter.

    python docs/examples/execute.py docs/examples/session.ipynb

Text of stdout, the value of a cell's last expression (as HTML where it has such a form) and figures are stored.
"""

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def execute_notebook(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook with the outputs of its code cells, which share one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell = cell | {"execution_count": count, "outputs": _outputs("".join(cell["source"]), namespace, count)}
        cells.append(cell)
    return notebook | {"cells": cells}


def _outputs(source: str, namespace: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tree, last = ast.parse(source), None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), namespace)
        value = eval(compile(last, f"cell {count}", "eval"), namespace) if last else None
    found = []
    if text := printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        result = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": _forms(value)}
        found.append(result)
    return found


def _forms(value: Any) -> dict[str, Any]:
    """Return a value as a notebook shows it: text, HTML, and a figure as PNG."""
    forms: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if html := hasattr(value, "_repr_html_") and value._repr_html_():
        forms["text/html"] = html.splitlines(keepends=True)
    if hasattr(value, "savefig"):
        png = io.BytesIO()
        value.savefig(png, format="png", dpi=80)
        forms["image/png"] = base64.b64encode(png.getvalue()).decode()
    return forms


if __name__ == "__main__":
    path = Path(sys.argv[1])
    done = execute_notebook(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
