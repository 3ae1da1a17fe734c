"use strict";
const report = JSON.parse(document.getElementById("report-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const status = document.getElementById("status");

// Data sets: columns, decoded once. Strings are stored as places in a list of levels.
const decoded = new Map();
function columnsOf(key) {
  if (!decoded.has(key)) {
    const columns = {};
    for (const [name, stored] of Object.entries(report.data[key])) {
      columns[name] = Array.isArray(stored)
        ? stored
        : stored.codes.map((code) => (code < 0 ? null : stored.levels[code]));
    }
    decoded.set(key, columns);
  }
  return decoded.get(key);
}

function recordsOf(key) {
  const columns = Object.entries(columnsOf(key));
  const length = columns.length ? columns[0][1].length : 0;
  return Array.from({ length }, (_, row) =>
    Object.fromEntries(columns.map(([name, values]) => [name, values[row]])));
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  status.textContent = `${name} is saved`;
}

function csv(key, order) {
  const columns = columnsOf(key);
  const names = Object.keys(columns);
  const cell = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const rows = (order ?? columns[names[0]].map((_, row) => row)).map((row) =>
    names.map((name) => cell(columns[name][row])).join(","));
  return [names.map(cell).join(","), ...rows].join("\n") + "\n";
}

// Figures: drawn when they come near the window, and again when light and dark change.
class Figure {
  constructor(element) {
    this.element = element;
    this.name = element.dataset.figure;
    this.place = element.querySelector(".view");
    const { data, spec } = report.figures[this.name];
    this.data = data;
    this.spec = spec;
    element.querySelector("[data-do=csv]").onclick = () =>
      save(`${this.name}.csv`, "text/csv", csv(data));
    element.querySelector("[data-do=svg]").onclick = async () => {
      await this.draw();
      save(`${this.name}.svg`, "image/svg+xml", await this.view.toSVG());
    };
  }

  whole(mode) {
    const spec = { ...this.spec, data: { values: recordsOf(this.data) }, config: report.themes[mode] };
    if (this.folded && spec.width === "container") spec.width = 640;
    return spec;
  }

  draw(again = false) {
    if (!this.drawing || again) {
      const mode = dark.matches ? "dark" : "light";
      this.folded = !this.place.clientWidth;
      const options = { actions: false, renderer: "svg", tooltip: { theme: mode } };
      this.drawing = vegaEmbed(this.place, this.whole(mode), options)
        .then(({ view }) => { this.view = view; this.element.dataset.drawn = mode; });
    }
    return this.drawing;
  }
}

const figures = [...document.querySelectorAll("[data-figure]")].map((e) => new Figure(e));
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting) {
      const figure = figures.find((figure) => figure.element === target);
      if (target.clientWidth) near.unobserve(target);
      figure.draw(figure.folded && target.clientWidth > 0);
    }
  }
}, { rootMargin: "400px" });
figures.forEach((figure) => near.observe(figure.element));
dark.addEventListener("change", () =>
  figures.filter((figure) => figure.drawing).forEach((figure) => figure.draw(true)));
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  figures.forEach((figure) => figure.draw());
});

// A link to a folded section unfolds it.
function unfold() {
  const section = location.hash && document.getElementById(location.hash.slice(1));
  const details = section?.querySelector?.("details");
  if (details) details.open = true;
  section?.scrollIntoView?.();
}
addEventListener("hashchange", unfold);
unfold();

// Printing cannot wait for drawing, so what is not yet drawn is drawn while nothing else happens.
async function drawAll() {
  const idle = window.requestIdleCallback ?? setTimeout;
  for (const figure of figures) {
    await new Promise((resume) => idle(resume));
    await figure.draw();
  }
}
addEventListener("load", drawAll);

// Tables: the rows of a page are in the document, all others only in the data.
class Table {
  constructor(element) {
    this.element = element;
    this.name = element.dataset.table;
    const { data, columns } = report.tables[this.name];
    this.data = data;
    this.columns = columns.map((column) => column.texts
      ? { ...column, texts: column.texts.codes.map((code) => column.texts.levels[code]) } : column);
    this.values = columnsOf(data);
    this.all = this.values[columns[0].name].map((_, row) => row);
    this.body = element.querySelector("tbody");
    this.heads = [...element.querySelectorAll("th[aria-sort]")];
    this.page = 0;
    this.sorted = null;
    this.heads.forEach((head, k) => { head.firstElementChild.onclick = () => this.sort(k); });
    element.querySelectorAll("[data-filter], [data-search]").forEach((input) => {
      input.oninput = () => { this.page = 0; this.show(); };
    });
    element.querySelectorAll("[data-page]").forEach((button) => {
      button.onclick = () => { this.page += Number(button.dataset.page); this.show(); };
    });
    element.querySelector("[data-do=csv]").onclick = () =>
      save(`${this.name}.csv`, "text/csv", csv(data, this.order()));
  }

  text(column, row) {
    return column.texts ? column.texts[row] : String(this.values[column.name][row] ?? "–");
  }

  sort(k) {
    const numeric = this.columns[k].numeric;
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const way = this.heads[k].getAttribute("aria-sort") === first ? second : first;
    this.heads.forEach((head, j) => head.setAttribute("aria-sort", j === k ? way : "none"));
    this.sorted = { name: this.columns[k].name, sign: way === "ascending" ? 1 : -1, numeric };
    this.page = 0;
    this.show();
  }

  // The rows that pass the filters, sorted; rows without a value come last.
  order() {
    const filters = [...this.element.querySelectorAll("[data-filter]")]
      .filter((select) => select.value !== "");
    const search = this.element.querySelector("[data-search]")?.value.toLowerCase() ?? "";
    const rows = this.all.filter((row) =>
      filters.every((select) => String(this.values[select.dataset.filter][row]) === select.value)
      && (!search || this.columns.some((c) => this.text(c, row).toLowerCase().includes(search))));
    if (this.sorted) {
      const { name, sign, numeric } = this.sorted;
      const values = this.values[name];
      const missing = (row) => values[row] === null;
      rows.sort((a, b) => missing(a) - missing(b) || sign * (numeric
        ? values[a] - values[b]
        : String(values[a]).localeCompare(String(values[b]))));
    }
    return rows;
  }

  show() {
    const rows = this.order();
    const pages = Math.max(1, Math.ceil(rows.length / report.rows));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const start = this.page * report.rows;
    this.body.replaceChildren(...rows.slice(start, start + report.rows).map((row) => this.line(row)));
    const count = this.element.querySelector("[data-count]");
    const end = Math.min(start + report.rows, rows.length);
    const said = `${rows.length ? start + 1 : 0} to ${end} of ${rows.length} rows`;
    if (count) count.textContent = said;
    status.textContent = said;
    this.element.querySelectorAll("[data-page]").forEach((button) => {
      button.disabled = Number(button.dataset.page) < 0 ? this.page === 0 : this.page === pages - 1;
    });
  }

  line(row) {
    const line = document.createElement("tr");
    this.columns.forEach((column, k) => {
      const cell = document.createElement(k ? "td" : "th");
      if (!k) cell.scope = "row";
      if (column.numeric || column.wide) cell.className = column.numeric ? "number" : "wide";
      const text = this.text(column, row);
      if (text.startsWith("https://")) {
        const link = document.createElement("a");
        link.href = link.textContent = text;
        cell.append(link);
      } else {
        cell.textContent = text;
      }
      line.append(cell);
    });
    return line;
  }
}

document.querySelectorAll("[data-table]").forEach((element) => new Table(element));
document.documentElement.dataset.ready = "";
