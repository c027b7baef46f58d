"""The leaderboard as one page that needs nothing else: no network, no library, sorted and filtered where it is read.

Everything that came from a run travels as JSON and becomes text nodes, so no name of a run can become markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import Template

from hero_platform.report.leaderboard import Group, Line, commit, cost, number, over_seeds, price, short, state

COLUMNS = (  # title, whether the order is that of the second number of a cell
    *(("rank", True), ("run", False), ("value", True), ("delta", True), ("mean +- sd (seeds)", True), ("seed", True)),
    *(("state", False), ("cost", True), ("price", True), ("commit", False), ("ended", True)),
    *(("sweep", False), ("searched", False), ("recipe", False), ("experiment", False)),
)


def page(groups: Sequence[Group], address: str, asked_ms: int) -> str:
    """HTML of all groups.

    Args:
        groups: what to show.
        address: of MLflow, without credentials.
        asked_ms: wall clock when MLflow was last asked.
    """
    data = {
        "address": address,
        "asked": asked_ms,
        "columns": COLUMNS,
        "groups": [{"title": group.title, "rows": [_cells(line) for line in group.lines]} for group in groups],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # nothing in a script element may look like its end, or like markup
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _PAGE.substitute(data=text)


def _cells(line: Line) -> list[object]:
    """What `COLUMNS` says: a text, or a text with the number that it is sorted by; null goes last."""
    row = line.row
    others = f" and {line.runs - 1} more" if line.runs > 1 else ""
    hours = (row.gpu_hours or 0) + (row.cpu_hours or 0)
    return [
        ["-" if line.rank is None else str(line.rank), line.rank],
        row.name + others,
        [number(line.value), line.value],
        [number(line.delta, "+"), line.delta],
        [over_seeds(line), line.mean if line.sd is not None else None],
        [row.seed, int(row.seed) if row.seed.isdigit() else None],
        state(row),
        [cost(row), hours or None],
        ["" if row.price is None else price(row), row.price],
        commit(row),
        ["", row.end_ms],
        row.sweep,
        " ".join(f"{name}={short(value)}" for name, value in row.searched.items()),
        row.recipe,
        row.experiment,
    ]


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Leaderboard</title>
<style>
:root { --ink: #1f2328; --quiet: #6b7280; --line: #e5e7eb; --paper: #ffffff; --shade: #f7f8fa; --mark: #2457a6; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 14px/1.45 system-ui, sans-serif; }
header { padding: 20px 24px 12px; }
h1 { margin: 0 0 2px; font-size: 20px; font-weight: 600; }
p { margin: 0; color: var(--quiet); }
form { display: flex; flex-wrap: wrap; gap: 10px; padding: 0 24px 14px; align-items: center; }
select, input, button.more { font: inherit; color: inherit; padding: 6px 10px; border: 1px solid var(--line);
  border-radius: 6px; background: var(--paper); max-width: 100%; }
input { width: 260px; }
select:focus-visible, input:focus-visible, button:focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
main { overflow-x: auto; padding: 0 24px 32px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 1px solid #c9ced6; padding: 0; }
th button { all: unset; cursor: pointer; padding: 7px 12px; font-weight: 600; white-space: nowrap; display: block;
  width: 100%; box-sizing: border-box; }
th button:focus-visible { outline: 2px solid var(--mark); outline-offset: -2px; }
th button::after { content: "\\2195"; color: #c9ced6; margin-left: 6px; font-weight: 400; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--mark); }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--mark); }
td { padding: 5px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; max-width: 420px; overflow: hidden;
  text-overflow: ellipsis; }
tbody tr:hover { background: var(--shade); }
.number, th.number button { text-align: right; }
tr.first td { font-weight: 600; }
.failed { color: #a33; } .pruned, .killed { color: var(--quiet); } .running { color: var(--mark); }
.more { margin: 14px 0 0; cursor: pointer; }
</style>
</head>
<body>
<header><h1>Leaderboard</h1><p id="source"></p></header>
<form><select id="group" aria-label="which runs"></select>
<input id="filter" type="search" placeholder="Filter: every word must occur" aria-label="filter">
<span id="count" role="status"></span></form>
<main><table><thead><tr id="head"></tr></thead><tbody id="body"></tbody></table>
<button class="more" id="more" hidden></button><noscript>This page needs JavaScript to show its table.</noscript></main>
<script type="application/json" id="data">$data</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const columns = data.columns.map(([title, numeric]) => ({ title, numeric }));
const ENDED = columns.findIndex((column) => column.title === "ended");
const SPARE = new Set(["price", "sweep", "searched", "recipe", "experiment"]);  // left out where none has it
const STATE = columns.findIndex((column) => column.title === "state");
const local = (ms) => {
  const here = new Date(ms - new Date(ms).getTimezoneOffset() * 60000);
  return here.toISOString().slice(0, 16).replace("T", " ");
};
const count = (number) => number.toLocaleString("en");
const groups = data.groups.map((group) => ({ title: group.title, rows: group.rows.map((cells) => {
  const texts = cells.map((cell) => (Array.isArray(cell) ? cell[0] : cell));
  texts[ENDED] = cells[ENDED][1] === null ? "-" : local(cells[ENDED][1]);
  const keys = cells.map((cell) => (Array.isArray(cell) ? cell[1] : cell));
  return { texts, keys, all: texts.join(" ").toLowerCase() };
}) }));
const FIRST = 500;
let sorted = { column: 0, down: false }, most = FIRST;

function order(a, b) {
  const x = a.keys[sorted.column], y = b.keys[sorted.column];
  const none = (key) => key === null || key === "" || key === "-";
  if (none(x) || none(y)) return none(x) - none(y);
  const less = columns[sorted.column].numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
  return sorted.down ? -less : less;
}

function show() {
  const group = groups[at("group").selectedIndex] || { rows: [] };
  const words = at("filter").value.toLowerCase().split(/\\s+/).filter(Boolean);
  const rows = group.rows.filter((row) => words.every((word) => row.all.includes(word))).sort(order);
  const used = columns.map((column, i) => !SPARE.has(column.title) || group.rows.some((row) => row.texts[i]));
  at("head").replaceChildren(...columns.map((column, i) => {
    const cell = document.createElement("th"), button = document.createElement("button");
    button.textContent = column.title;
    button.type = "button";
    button.onclick = () => {
      sorted = { column: i, down: sorted.column === i && !sorted.down };
      show();
      at("head").children[i].firstChild.focus();
    };
    cell.hidden = !used[i];
    cell.scope = "col";
    if (column.numeric) cell.className = "number";
    if (sorted.column === i) cell.ariaSort = sorted.down ? "descending" : "ascending";
    cell.append(button);
    return cell;
  }));
  at("body").replaceChildren(...rows.slice(0, most).map((row) => {
    const line = document.createElement("tr");
    if (row.keys[0] === 1) line.className = "first";
    row.texts.forEach((text, i) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      cell.hidden = !used[i];
      if (text.length > 50) cell.title = text;
      if (columns[i].numeric) cell.className = "number";
      if (i === STATE && /^[a-z]+$$/.test(text)) cell.className = text;
      line.append(cell);
    });
    return line;
  }));
  at("count").textContent = count(rows.length) + " of " + count(group.rows.length) + " lines";
  at("more").hidden = rows.length <= most;
  at("more").textContent = "Show all " + count(rows.length);
}

at("source").textContent = "MLflow at " + data.address + ", asked " + local(data.asked);
at("group").append(...groups.map((group) => new Option(group.title + " (" + count(group.rows.length) + ")")));
at("group").onchange = () => { sorted = { column: 0, down: false }; most = FIRST; show(); };
at("filter").oninput = () => { most = FIRST; show(); };
at("more").onclick = () => { most = Infinity; show(); };
document.forms[0].onsubmit = () => false;
show();
</script>
</body>
</html>
""")
