"use strict";

/* Tables: a click on a heading sorts by it, again turns it round; empty cells stay last. */
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value ?? "";
    const order = button.dataset.kind === "number" ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b);
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return ascending ? order(x, y) : order(y, x);
    });
    body.append(...rows);
  });
}

/* Pictures: a click or Enter enlarges, arrows go on, Escape or a click next to the picture closes. */
const zoom = document.getElementById("zoom");
const pictures = [...document.querySelectorAll("button.zoom")];
let shown = 0;
function enlarge(index) {
  shown = (index + pictures.length) % pictures.length;
  const image = pictures[shown].querySelector("img:not([hidden])"), large = zoom.querySelector("img");
  large.src = image.currentSrc || image.src;
  large.alt = image.alt;
  large.className = image.className;
  const room = Math.min(.88 * innerWidth, 1056, .76 * innerHeight * image.naturalWidth / image.naturalHeight);
  const factor = Math.floor(room / image.naturalWidth);
  large.style.width = factor && image.className ? factor * image.naturalWidth + "px" : "";
  zoom.querySelector("figcaption").textContent =
    pictures[shown].closest("figure").querySelector("figcaption").textContent.trim().replace(/\s+/g, " ");
  if (!zoom.open) zoom.showModal();
}
pictures.forEach((button, index) => button.addEventListener("click", () => enlarge(index)));
zoom.querySelector(".previous").addEventListener("click", () => enlarge(shown - 1));
zoom.querySelector(".next").addEventListener("click", () => enlarge(shown + 1));
zoom.querySelector(".close").addEventListener("click", () => zoom.close());
zoom.addEventListener("click", event => { if (event.target === zoom) zoom.close(); });
zoom.addEventListener("close", () => pictures[shown].focus());
zoom.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") enlarge(shown - 1);
  if (event.key === "ArrowRight") enlarge(shown + 1);
});

/* Training: one slider for all runs; each shows its last grid up to the chosen step. Nothing moves by itself. */
const player = document.querySelector(".player");
if (player) {
  const runs = [...document.querySelectorAll(".evolution")];
  const frames = run => [...run.querySelectorAll("img")];
  const steps = [...new Set(runs.flatMap(run => frames(run).map(image => Number(image.dataset.step))))].sort((a, b) => a - b);
  const slider = player.querySelector("input"), output = player.querySelector("output"), play = player.querySelector("button");
  slider.max = steps.length - 1;
  slider.value = steps.length - 1;
  const show = () => {
    const step = steps[Number(slider.value)];
    output.textContent = "step " + step.toLocaleString("en");
    slider.setAttribute("aria-valuetext", output.textContent);
    for (const run of runs) {
      const images = frames(run);
      const chosen = images.filter(image => Number(image.dataset.step) <= step).pop() ?? images[0];
      for (const image of images) image.hidden = image !== chosen;
      run.querySelector(".at").textContent = "step " + Number(chosen.dataset.step).toLocaleString("en");
    }
  };
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === steps.length - 1) slider.value = 0;
    show();
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === steps.length - 1) stop();
    }, 700);
  });
  slider.addEventListener("input", () => { stop(); show(); });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) play.hidden = true;
  player.hidden = false;
  show();
}

/* The numbers, for other programs. */
const save = document.getElementById("save");
save.hidden = false;
save.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("comparison").textContent], {type: "application/json"}));
  link.download = "compare.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
