// Draws every plot from the JSON beside it, in the page's own colours, and again when the reader changes light and dark.
(function () {
  const style = () => getComputedStyle(document.documentElement);
  function coloured(value) {
    if (typeof value === "string" && value.startsWith("var(")) return style().getPropertyValue(value.slice(4, -1)).trim();
    if (Array.isArray(value)) return value.map(coloured);
    if (value !== null && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    return value;
  }
  function draw(place) {
    const figure = coloured(JSON.parse(document.getElementById(place.id + "-data").textContent));
    figure.layout.font.family = getComputedStyle(document.body).fontFamily;
    const settings = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
    return Plotly.react(place, figure.data, figure.layout, settings);
  }
  window.drawPlot = draw; // for pages whose plots change
  const drawAll = () => document.querySelectorAll(".plot").forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
