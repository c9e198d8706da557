for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const numbers = head.classList.contains("number");
    const rows = [...body.rows].sort((one, other) => {
      const a = one.cells[index].dataset.key, b = other.cells[index].dataset.key;
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
      return down ? -order : order;
    });
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  }));
}
