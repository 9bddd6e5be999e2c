"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const images = JSON.parse(document.getElementById("images").textContent);
  const tip = document.getElementById("tip");
  // On a touch screen, dragging scrolls the page instead of zooming into the chart.
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const options = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    // The default bar has a button that uploads the chart to a server.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  const plots = [];

  for (const [name, figure] of Object.entries(charts)) {
    const plot = document.getElementById("chart-" + name);
    if (touch) figure.layout.dragmode = false;
    Plotly.newPlot(plot, figure.data, figure.layout, options);
    plots.push(plot);
  }

  function show(event) {
    const number = event.points[0].customdata;
    const truth = images.classes[images.label[number]];
    const predicted = images.classes[images.predicted[number]];
    const mark = truth === predicted ? "\u2713" : "\u2717";
    tip.querySelector("img").src = "data:image/jpeg;base64," + images.jpegs[number];
    tip.querySelector("p").textContent =
      truth + "\n" + mark + " predicted " + predicted + "\n" + images.names[number];
    tip.hidden = false;
    const gap = 14;
    const touches = event.event.changedTouches;
    const { clientX: x, clientY: y } = touches && touches.length ? touches[0] : event.event;
    const right = x + gap + tip.offsetWidth > document.documentElement.clientWidth;
    const below = y + gap + tip.offsetHeight > window.innerHeight;
    tip.style.left = Math.max(4, right ? x - gap - tip.offsetWidth : x + gap) + "px";
    tip.style.top = Math.max(4, below ? y - gap - tip.offsetHeight : y + gap) + "px";
  }

  const hide = () => { tip.hidden = true; };
  const map = document.getElementById("chart-map");
  if (map && images) {
    map.on("plotly_hover", show);
    map.on("plotly_click", show); // touch screens have no hover
    map.on("plotly_unhover", hide);
    window.addEventListener("scroll", hide, { passive: true });
  }

  // Plots do not adapt to the width of paper by themselves: A4 without margins is 688 pixels wide.
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((item) => { item.open = true; });
    plots.forEach((plot) => {
      Plotly.relayout(plot, { width: plot.closest(".charts") ? 330 : 670 });
    });
  });
  window.addEventListener("afterprint", () => {
    plots.forEach((plot) => Plotly.relayout(plot, { width: null, autosize: true }));
  });
})();
