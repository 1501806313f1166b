"use strict";
// A picture stands for each video; those in view play, a limited number at a time,
// because browsers give a page only so many players.
const MOST = 40;
const screens = [...document.querySelectorAll(".screen")];
const tiles = [...document.querySelectorAll(".tile")];
const rows = [...document.querySelectorAll("tbody tr")];
const search = document.getElementById("search");
const judged = document.getElementById("judged");
const count = document.getElementById("count");
const play = document.getElementById("play");
const boxes = [...document.querySelectorAll("input[data-column]")];
const inView = new Set();
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

function start(screen) {
  if (screen.querySelector("video")) return;
  const video = document.createElement("video");
  Object.assign(video, { muted: true, loop: true, playsInline: true });
  video.setAttribute("aria-hidden", "true"); // the picture beneath has the words
  video.src = screen.dataset.video;
  screen.append(video);
  video.play().catch(() => {});
}

function stop(screen) {
  const video = screen.querySelector("video");
  if (!video) return;
  video.removeAttribute("src");
  video.load(); // lets go of the player
  video.remove();
}

function update() {
  const wanted = new Set(playing ? [...inView].slice(0, MOST) : []);
  for (const video of document.querySelectorAll(".screen video"))
    if (!wanted.has(video.parentElement)) stop(video.parentElement);
  wanted.forEach(start);
}

// Players start when scrolling comes to rest: starting them takes longer than a frame.
const REST = 150; // milliseconds
let resting;
const observer = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen)
    if (isIntersecting) inView.add(target);
    else inView.delete(target);
  clearTimeout(resting);
  resting = setTimeout(update, REST);
});

function setPlaying(on) {
  playing = on;
  play.textContent = on ? "Pause" : "Play";
  play.setAttribute("aria-pressed", String(on));
  update();
}

// A tile stays if each word is in its class or its model.
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.column));
  for (const cell of document.querySelectorAll("[data-column]:not(input)"))
    cell.hidden = !shown.has(cell.dataset.column);
  let left = 0;
  for (const tile of tiles) {
    const row = tile.closest("tr");
    const text = `${row ? row.dataset.text : ""} ${tile.dataset.text}`;
    const fits = words.every((word) => text.includes(word));
    tile.hidden = !fits || (judged.value && judged.value !== tile.dataset.judged);
    if (!tile.hidden && !(tile.parentElement.hidden && row)) left += 1;
  }
  for (const row of rows)
    row.hidden = ![...row.querySelectorAll("td:not([hidden]) .tile:not([hidden])")].length;
  count.value = `${left} of ${tiles.length} shown`;
}

play.addEventListener("click", () => setPlaying(!playing));
for (const part of [search, judged, ...boxes]) part.addEventListener("input", filter);
screens.forEach((screen) => observer.observe(screen));
filter();
setPlaying(playing);
