"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const images = JSON.parse(document.getElementById("images").textContent);
  const tip = document.getElementById("tip");
  // A finger that moves over a chart scrolls the page; it does not draw a box to zoom into.
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const options = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    // The default has a button that uploads the chart to a server.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  const places = [];

  for (const [name, figure] of Object.entries(charts)) {
    const place = document.getElementById("chart-" + name);
    if (touch) figure.layout.dragmode = false;
    Plotly.newPlot(place, figure.data, figure.layout, options);
    places.push(place);
  }

  function show(event) {
    const number = event.points[0].customdata;
    const truth = images.classes[images.label[number]];
    const taken = images.classes[images.taken[number]];
    const judged = truth === taken ? "\u2713 neighbors agree" : "\u2717 taken for " + taken;
    tip.querySelector("img").src = "data:image/jpeg;base64," + images.jpegs[number];
    tip.querySelector("p").textContent = truth + "\n" + judged + "\n" + images.names[number];
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
    map.on("plotly_click", show); // a finger does not hover
    map.on("plotly_unhover", hide);
    window.addEventListener("scroll", hide, { passive: true });
  }

  // Paper has another width than the screen, and a plot does not follow by itself: A4 less its
  // margins is 688 pixels wide.
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((item) => { item.open = true; });
    places.forEach((place) => {
      Plotly.relayout(place, { width: place.closest(".charts") ? 330 : 670 });
    });
  });
  window.addEventListener("afterprint", () => {
    places.forEach((place) => Plotly.relayout(place, { width: null, autosize: true }));
  });
})();
