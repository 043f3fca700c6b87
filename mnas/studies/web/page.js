"use strict";
(() => {
  // Tables: a click on a heading sorts by it, a second one the other way round.
  const number = (cell) => (cell.dataset.value === "" ? -Number.MAX_VALUE : Number(cell.dataset.value));
  const compare = (a, b) =>
    Number.isNaN(number(a)) || Number.isNaN(number(b))
      ? a.dataset.value.localeCompare(b.dataset.value)
      : number(a) - number(b);
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (down ? -1 : 1) * compare(a.cells[column], b.cells[column]));
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Charts take colours and font from the style sheet, anew when the scheme changes.
  function config() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const series = colour("--series").split(/\s+/);
    const ink = colour("--ink"), quiet = colour("--quiet"), line = colour("--line");
    return {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      view: { stroke: null },
      axis: {
        labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line,
        labelFontSize: 13, titleFontSize: 13, titleFontWeight: "normal", titlePadding: 8,
      },
      legend: {
        labelColor: ink, titleColor: ink, labelFontSize: 13, symbolSize: 90, symbolOpacity: 1,
      },
      text: { color: ink, fontSize: 13 },
      range: { category: series, symbol: ["circle", "diamond", "square", "triangle-up"] },
      point: { color: series[0] },
      rule: { color: series[0] },
      style: { reference: { color: quiet, stroke: quiet, strokeWidth: 1.2 } },
    };
  }
  async function draw() {
    for (const place of document.querySelectorAll(".chart")) {
      if (place.closest("[hidden]")) continue; // it has no width yet
      const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
      await vegaEmbed(place, spec, { actions: false, renderer: "svg", config: config() });
    }
    document.documentElement.dataset.drawn = String(1 + Number(document.documentElement.dataset.drawn || 0));
  }
  // A switch shows one of the views of a section.
  for (const button of document.querySelectorAll(".switch input")) {
    button.checked = button.defaultChecked; // a reload may have kept another
    button.addEventListener("change", () => {
      for (const other of document.getElementsByName(button.name)) {
        document.getElementById(other.value).hidden = !other.checked;
      }
      draw();
    });
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
