// Keeps which workload and which point are shown, and puts both into the plots' JSON, which the report's script draws.
window.sweep = (function () {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("sweep-figures"), template = read("sweep-widths"), points = read("sweep-points");
  let axis = 0, chosen = document.getElementById("sweep-points").dataset.chosen;

  function fill(key, figure) {
    document.getElementById("plot-" + key + "-data").textContent = JSON.stringify(figure);
  }
  function fillFront() {
    const figure = figures[axis];
    if (!figure) return;
    const ring = figure.data[figure.data.length - 1];
    ring.x = [];
    ring.y = [];
    for (const trace of figure.data) {
      const place = (trace.customdata || []).indexOf(chosen);
      if (place >= 0) {
        ring.x = [trace.x[place]];
        ring.y = [trace.y[place]];
      }
    }
    fill("front", figure);
  }
  function fillWidths() {
    // Traces of each of two panels: dense, kept, absent.
    [points[chosen].ffn, points[chosen].kv_groups].forEach((kept, panel) => {
      const [, bars, absent] = template.data.slice(3 * panel, 3 * panel + 3);
      const gone = bars.x.filter((_, place) => kept[place] === 0);
      bars.y = kept;
      absent.x = gone;
      absent.y = gone.map(() => 0);
      absent.showlegend = panel === 0 && gone.length > 0;
    });
    fill("widths", template);
  }
  function tell() {
    const point = points[chosen], facts = document.getElementById("point-facts");
    document.getElementById("point-label").textContent = point.label;
    const said = point.recipe ? [...point.facts, ["Recipe", point.recipe]] : point.facts;
    facts.replaceChildren(
      ...said.flatMap(([name, value]) => {
        const term = document.createElement("dt"), words = document.createElement("dd");
        term.textContent = name;
        words.textContent = value;
        return [term, words];
      }),
    );
    for (const row of document.querySelectorAll("tr.point")) row.setAttribute("aria-selected", String(row.dataset.name === chosen));
  }
  function show() {
    fillFront();
    fillWidths();
    tell();
    if (window.drawPlot) document.querySelectorAll(".plot").forEach(window.drawPlot);
  }
  function select(name) {
    chosen = name;
    show();
  }
  function selectAxis(number) {
    axis = number;
    for (const button of document.querySelectorAll(".axes button")) button.setAttribute("aria-pressed", String(+button.dataset.axis === axis));
    for (const sentence of document.querySelectorAll(".knee")) sentence.hidden = +sentence.dataset.axis !== axis;
    show();
  }
  function sort(heading) {
    const place = [...heading.parentNode.children].indexOf(heading);
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.children) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = heading.closest("table").tBodies[0];
    const value = (row) => row.children[place].dataset.value;
    const rows = [...body.rows].sort((a, b) => compared(value(a), value(b), up));
    body.append(...rows);
  }
  function compared(a, b, up) {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing stands last either way
    const numbers = [Number(a), Number(b)];
    const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
    return up ? order : -order;
  }
  function begin() {
    const front = document.getElementById("plot-front");
    if (front) front.on("plotly_click", (event) => event.points[0].customdata && select(event.points[0].customdata));
    for (const button of document.querySelectorAll(".axes button")) button.addEventListener("click", () => selectAxis(+button.dataset.axis));
    for (const heading of document.querySelectorAll("#points-table th")) heading.querySelector("button").addEventListener("click", () => sort(heading));
    for (const row of document.querySelectorAll("tr.point")) {
      row.addEventListener("click", () => select(row.dataset.name));
      row.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        select(row.dataset.name);
      });
    }
  }
  show();
  return { begin };
})();
