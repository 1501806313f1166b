"use strict";
// One clock moves all videos of the page; each follows it while it is in view.
const body = document.body;
const frames = Number(body.dataset.frames);
const fps = Number(body.dataset.fps);
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const stages = read("stages");
const pictures = read("pictures");
const play = document.getElementById("play");
const frameSlider = document.getElementById("frame");
const stageSlider = document.getElementById("stage");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const key = "leaps " + location.pathname;

let playing = false;
let began = 0; // when, by performance.now(), frame 0 was shown
let frame = 0;
let stage = stages.length - 1;

const cards = [...document.querySelectorAll(".card")].map((element, i) => ({
  element,
  visible: false,
  videos: [...element.querySelectorAll("video")],
  canvases: [...element.querySelectorAll("canvas")],
  pictures: pictures[i],
  images: new Map(),
}));

function image(card, uri) {
  if (!card.images.has(uri)) {
    const made = new Image();
    made.onload = () => draw(card);
    made.src = uri;
    card.images.set(uri, made);
  }
  return card.images.get(uri);
}

// The frames of a strip lie side by side, all square or all of the screen's shape.
function draw(card) {
  for (const canvas of card.canvases) {
    const strips = card.pictures.strips;
    const step = stages[stage] && stages[stage].step;
    const uri = canvas.dataset.source === "still" ? card.pictures.still : strips[step];
    const video = canvas.parentElement.querySelector("video");
    const wanted = uri && !(video && stages[stage].result && !video.error);
    canvas.hidden = !wanted;
    if (!wanted) continue;
    const strip = image(card, uri);
    if (!strip.complete || !strip.naturalWidth) continue;
    const count = Math.round(strip.naturalWidth / strip.naturalHeight);
    const width = strip.naturalWidth / count;
    const at = Math.floor((frame * count) / frames);
    canvas.width = width;
    canvas.height = strip.naturalHeight;
    canvas.getContext("2d").drawImage(strip, -at * width, 0);
  }
}

function seek(video) {
  video.currentTime = (frame + 0.5) / fps;
}

function follow(card) {
  for (const video of card.videos) {
    if (!playing || !card.visible) {
      if (!video.paused) video.pause();
      continue;
    }
    if (video.paused && !video.error) video.play().catch(() => {});
    const now = ((performance.now() - began) / 1000) % (frames / fps);
    const away = Math.abs(video.currentTime - now);
    const least = Math.min(away, frames / fps - away); // across the loop
    if (!video.seeking && least > Math.max(1.5 / fps, 0.12)) video.currentTime = now;
  }
  draw(card);
}

function tell() {
  frameSlider.value = frame;
  frameSlider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
  frameSlider.nextElementSibling.value = `${frame + 1} / ${frames}`;
}

function tick() {
  if (!playing) return;
  const shown = Math.floor(((performance.now() - began) / 1000) * fps) % frames;
  if (shown !== frame) {
    frame = shown;
    tell();
    cards.filter((card) => card.visible).forEach(follow);
  }
  requestAnimationFrame(tick);
}

function setPlaying(on) {
  playing = on;
  play.textContent = on ? "Pause" : "Play";
  play.setAttribute("aria-pressed", String(on));
  began = performance.now() - (frame / fps) * 1000;
  cards.forEach(follow);
  if (on) requestAnimationFrame(tick);
  else cards.forEach((card) => card.videos.forEach(seek));
}

function setFrame(value) {
  frame = value;
  setPlaying(false); // which takes all videos there
  tell();
}

function setStage(value) {
  stage = value;
  if (stageSlider) {
    stageSlider.value = stage;
    stageSlider.setAttribute("aria-valuetext", stages[stage].said);
    stageSlider.nextElementSibling.value = stages[stage].said;
  }
  cards.forEach(draw);
  for (const line of document.querySelectorAll(".marker")) {
    const { first, last, left, right } = line.dataset;
    const share = (stages[stage].step - first) / Math.max(last - first, 1);
    const x = Number(left) + Math.max(0, Math.min(1, share)) * (right - left);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    line.setAttribute("visibility", "visible");
  }
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    let said = "copied";
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source); // a page from a disk may not copy
      said = document.execCommand("copy") ? "copied" : "selected: copy it with the keyboard";
    }
    button.nextElementSibling.textContent = said;
  });
}

function keepPlace() {
  const open = [...document.querySelectorAll("details[open]")].map((part) => part.id);
  const last = stage === stages.length - 1;
  const step = last || !stages[stage] ? null : stages[stage].step;
  const place = { x: scrollX, y: scrollY, frame, playing, step, open };
  place.focus = document.activeElement && document.activeElement.id;
  sessionStorage.setItem(key, JSON.stringify(place));
}

function takePlace() {
  const place = JSON.parse(sessionStorage.getItem(key) || "null");
  sessionStorage.removeItem(key);
  if (!place) return false;
  for (const id of place.open.filter(Boolean)) document.getElementById(id).open = true;
  const found = stages.findIndex(({ step }) => step === place.step);
  if (found >= 0) setStage(found);
  if (play) setFrame(Math.min(place.frame, frames - 1));
  if (play && place.playing) setPlaying(true);
  if (place.focus && document.getElementById(place.focus))
    document.getElementById(place.focus).focus({ preventScroll: true });
  scrollTo({ left: place.x, top: place.y, behavior: "instant" });
  return true;
}

if (play) {
  document.querySelectorAll("video").forEach((video) => {
    video.controls = false; // these are for readers without scripts
    video.addEventListener("error", () => cards.forEach(draw));
  });
  play.addEventListener("click", () => setPlaying(!playing));
  frameSlider.addEventListener("input", () => setFrame(Number(frameSlider.value)));
  if (stageSlider)
    stageSlider.addEventListener("input", () => setStage(Number(stageSlider.value)));
  watch();
  if (stages.length) setStage(stage);
}

function watch() {
  const observer = new IntersectionObserver((seen) => {
    for (const entry of seen) {
      const card = cards.find(({ element }) => element === entry.target);
      card.visible = entry.isIntersecting;
      follow(card);
    }
  });
  cards.forEach(({ element }) => observer.observe(element));
}

// The browser would scroll, too, perhaps before all heights are known.
if ("running" in body.dataset) history.scrollRestoration = "manual";
if (!takePlace() && play && !calm.matches) setPlaying(true);

// A run that goes on: its page is replaced now and then, and this one loads it.
if ("running" in body.dataset) {
  let held = false;
  addEventListener("pointerdown", () => (held = true));
  addEventListener("pointerup", () => (held = false));
  setInterval(() => {
    if (Date.now() / 1000 - body.dataset.written > 900) {
      document.getElementById("news").textContent =
        "Nothing was heard of this run for 15 minutes. The command below goes on with it.";
    } else if (!held && !document.hidden && !String(getSelection())) {
      keepPlace();
      location.reload();
    }
  }, 5000);
}
