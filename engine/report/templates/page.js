"use strict";
const report = JSON.parse(document.getElementById("report-data").textContent);
const figures = [...document.querySelectorAll("[data-figure]")];

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function draw(figure) {
  const options = { actions: false, renderer: "svg", config: report.config };
  const spec = report.figures[figure.dataset.figure];
  const { view } = await vegaEmbed(figure.querySelector(".view"), spec, options);
  return view;
}

// The page has a drawing of each, which this replaces, from the top, while nothing else happens.
async function drawAll() {
  const idle = window.requestIdleCallback ?? setTimeout;
  for (const figure of figures) {
    await new Promise((resume) => idle(resume));
    await draw(figure);
  }
}

for (const figure of figures) {
  const name = figure.dataset.figure;
  figure.querySelector("[data-do=csv]").onclick = () =>
    save(`${name}.csv`, "text/csv", report.figures[name].data.values);
  figure.querySelector("[data-do=svg]").onclick = async () =>
    save(`${name}.svg`, "image/svg+xml", await (await draw(figure)).toSVG());
}
addEventListener("load", drawAll);
// A figure takes the width of its place anew when the window's changes, or its section unfolds.
document.addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);
addEventListener("beforeprint", () =>
  document.querySelectorAll("details").forEach((details) => { details.open = true; }));

// A link to a folded section unfolds it.
const unfold = () => document.querySelector("section:target details")?.setAttribute("open", "");
addEventListener("hashchange", unfold);
unfold();

// Tables: the first rows are in the document, and all of them in the data.
for (const element of document.querySelectorAll("[data-table]")) {
  const { rows, numeric, csv } = report.tables[element.dataset.table];
  const heads = [...element.querySelectorAll("thead th")];
  const filters = [...element.querySelectorAll("select")];
  const search = element.querySelector("[type=search]");
  const more = element.querySelector("[data-do=more]");
  let shown = report.shown;
  let order = () => 0;

  const number = (text) => parseFloat(text.replace("−", "-").replace(/[<,]/g, ""));
  const line = (texts) => {
    const row = document.createElement("tr");
    texts.forEach((text, k) => {
      const cell = document.createElement(k ? "td" : "th");
      if (!k) cell.scope = "row";
      if (numeric[k]) cell.className = "number";
      const link = { href: text, textContent: text };
      if (text.startsWith("https://")) cell.append(Object.assign(document.createElement("a"), link));
      else cell.textContent = text;
      row.append(cell);
    });
    return row;
  };
  const show = () => {
    const word = search?.value.toLowerCase() ?? "";
    const found = rows.filter((row) =>
      filters.every(({ value, dataset }) => !value || row[dataset.column] === value)
      && row.some((text) => text.toLowerCase().includes(word))).sort(order);
    element.querySelector("tbody").replaceChildren(...found.slice(0, shown).map(line));
    if (!more) return;
    more.hidden = found.length <= shown;
    more.previousElementSibling.textContent =
      `${Math.min(shown, found.length)} of ${found.length} rows`;
  };

  heads.forEach((head, k) => {
    head.firstElementChild.onclick = () => {
      const first = numeric[k] ? "descending" : "ascending";
      const second = numeric[k] ? "ascending" : "descending";
      const way = head.ariaSort === first ? second : first;
      heads.forEach((other) => { other.ariaSort = other === head ? way : "none"; });
      const sign = way === "ascending" ? 1 : -1;
      const compare = numeric[k] ? (a, b) => number(a) - number(b) : (a, b) => a.localeCompare(b);
      order = ({ [k]: a }, { [k]: b }) => (a === "–") - (b === "–") || sign * compare(a, b);
      show();
    };
  });
  element.querySelectorAll("select, input").forEach((input) => { input.oninput = show; });
  if (more) more.onclick = () => { shown *= 4; show(); };
  element.querySelector("[data-do=csv]").onclick = () =>
    save(`${element.dataset.table}.csv`, "text/csv", csv);
}
