"use strict";

// Tables: a click on a column's heading sorts by it, up, down, and as it was.
const ORDERS = { none: "ascending", ascending: "descending", descending: "none" };

function compare(a, b) {
  if ("value" in a.dataset && "value" in b.dataset) {
    return Number(a.dataset.value) - Number(b.dataset.value);
  }
  return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

function sortBy(table, rows, column, order) {
  const sign = order === "descending" ? -1 : 1;
  const missing = (row) => "missing" in row.cells[column].dataset;
  const sorted = order === "none" ? rows : [...rows].sort((a, b) =>
    missing(a) - missing(b) || sign * compare(a.cells[column], b.cells[column]));
  table.tBodies[0].append(...sorted);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  if (rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = ORDERS[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      sortBy(table, rows, column, order);
    });
  });
}

// Folded stages: all at once, and all when the page is printed.
const folded = [...document.querySelectorAll("details")];
const unfold = (open) => folded.forEach((part) => { part.open = open; });
addEventListener("beforeprint", () => unfold(true));
for (const section of document.querySelectorAll("main > section")) {
  if (!section.querySelector("details")) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "unfold";
  button.textContent = "Expand all";
  button.addEventListener("click", () => {
    const open = button.textContent === "Expand all";
    unfold(open);
    button.textContent = open ? "Collapse all" : "Expand all";
  });
  section.querySelector("h2").after(button);
}
