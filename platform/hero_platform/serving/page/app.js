// The page: a question to the API, its moments as players. No library, nothing from elsewhere.
"use strict";

const at = (id) => document.getElementById(id);
const moments = at("moments");

const clock = (seconds) => {
  const whole = Math.floor(seconds);
  const minutes = String(Math.floor(whole / 60));
  return `${minutes}:${String(whole % 60).padStart(2, "0")}.${Math.floor((seconds - whole) * 10)}`;
};

const say = (text) => { at("status").textContent = text; };

async function ask(path, value) {
  const options = value === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(value),
  };
  const response = await fetch(path, options);
  if (response.status === 401) {
    at("login").hidden = false;
    at("search").hidden = true;
    at("token").focus();
    throw new Error(path === "/api/session" ? "That is not the token." : "Give the token of this service first.");
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(typeof problem.detail === "string" ? problem.detail : `The service said ${response.status}.`);
  }
  return response.status === 204 ? null : response.json();
}

function line(values, length) {
  // one step a frame: a frame is a stretch of time
  const highest = Math.max(...values, 1e-9);
  return values.flatMap((value, frame) => {
    const y = 114 - 104 * value / highest;
    return [`${1000 * frame / length},${y}`, `${1000 * (frame + 1) / length},${y}`];
  }).join(" ");
}

function drawTimeline(svg, moment, timeline) {
  const seconds = timeline ? timeline.start.length * timeline.interval_s : moment.end_s;
  svg.dataset.seconds = seconds;
  svg.setAttribute("aria-valuemax", seconds.toFixed(1));
  const span = svg.querySelector(".span");
  span.setAttribute("x", 1000 * moment.start_s / seconds);
  span.setAttribute("width", 1000 * (moment.end_s - moment.start_s) / seconds);
  if (timeline) {
    svg.querySelector(".start").setAttribute("points", line(timeline.start, timeline.start.length));
    svg.querySelector(".end").setAttribute("points", line(timeline.end, timeline.end.length));
  }
  return seconds;
}

function show(moment, timeline) {
  const item = at("moment").content.cloneNode(true).firstElementChild;
  const part = (selector) => item.querySelector(selector);
  part(".video").textContent = moment.video;
  part(".times").textContent = `${clock(moment.start_s)} to ${clock(moment.end_s)}`;
  part(".score").textContent = `score ${moment.score.toPrecision(4)}`;
  const video = part("video");
  const svg = part(".timeline");
  const seconds = drawTimeline(svg, moment, timeline);
  part(".scale").textContent = `0:00 to ${clock(seconds)}`;
  const offset = moment.film ? moment.film.start_s : 0;
  let until = null; // where a moment that is played stops

  const go = (second) => {
    const place = Math.min(Math.max(second, 0), seconds);
    if (moment.film) video.currentTime = offset + place;
    svg.querySelector(".now").setAttribute("x1", 1000 * place / seconds);
    svg.querySelector(".now").setAttribute("x2", 1000 * place / seconds);
    svg.setAttribute("aria-valuenow", place.toFixed(1));
    svg.setAttribute("aria-valuetext", clock(place));
  };
  const lacks = (text) => {
    part(".missing").textContent = text;
    part(".missing").hidden = false;
    part(".play").hidden = video.hidden = true;
  };
  const play = () => {
    if (!moment.film || video.hidden) return;
    for (const other of document.querySelectorAll("video")) other.pause();
    go(moment.start_s);
    until = moment.end_s;
    video.play().catch((error) => say(`The film cannot be played: ${error.message}`));
  };
  item.firstElementChild.play = play;
  part(".play").addEventListener("click", play);

  if (moment.film) {
    video.setAttribute("aria-label", `${moment.video}, at ${clock(moment.start_s)}`);
    video.addEventListener("loadedmetadata", () => {
      if (video.videoWidth) go(moment.start_s);
      else lacks("This browser cannot show the pictures of this film.");
    }, { once: true });
    video.addEventListener("error", () => lacks("This browser cannot play the film, or it is gone."));
    video.addEventListener("timeupdate", () => {
      const place = video.currentTime - offset;
      svg.querySelector(".now").setAttribute("x1", 1000 * place / seconds);
      svg.querySelector(".now").setAttribute("x2", 1000 * place / seconds);
      svg.setAttribute("aria-valuenow", place.toFixed(1));
      if (until !== null && place >= until) { until = null; video.pause(); }
    });
    video.src = moment.film.url;
  } else {
    lacks("The film of this video is not here.");
  }
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    until = null;
    go(seconds * (event.clientX - box.left) / box.width);
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    const now = Number(svg.getAttribute("aria-valuenow")) || 0;
    if (step) go(now + step * (timeline ? timeline.interval_s : 1));
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(seconds);
    else if (event.key === "Enter") play();
    else return;
    until = null;
    event.preventDefault();
    event.stopPropagation();
  });
  const said = part(".said");
  for (const subtitle of moment.subtitles) {
    const button = document.createElement("button");
    const time = document.createElement("time");
    button.type = "button";
    time.textContent = clock(subtitle.start_s);
    button.append(time, subtitle.text);
    button.addEventListener("click", () => { until = null; go(subtitle.start_s); });
    said.appendChild(document.createElement("li")).appendChild(button);
  }
  if (!moment.subtitles.length) said.appendChild(document.createElement("li")).textContent = "nothing";
  go(moment.start_s);
  return item;
}

let asked = 0;

at("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question) return;
  const number = ++asked;
  say("Searching ...");
  try {
    const found = await ask("/api/search", { question, top: 10 });
    if (number !== asked) return; // another question came meanwhile
    moments.replaceChildren(...found.moments.map((moment) => show(moment, found.timelines[moment.video])));
    const count = found.moments.length;
    say(`${count} moment${count === 1 ? "" : "s"} for "${found.question}" in ${found.search_ms.toFixed(0)} ms.`);
  } catch (error) {
    if (number === asked) say(error.message);
  }
});

at("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await ask("/api/session", { token: at("token").value });
    at("token").value = "";
    at("login").hidden = true;
    at("search").hidden = false;
    at("question").focus();
    await describe();
  } catch (error) {
    say(error.message);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, video")) return;
  const articles = [...document.querySelectorAll("article")];
  const here = articles.indexOf(document.activeElement ? document.activeElement.closest("article") : null);
  if (event.key === "/") at("question").focus();
  else if (event.key === "j" || event.key === "k") {
    const next = articles[Math.min(Math.max(here + (event.key === "j" ? 1 : -1), 0), articles.length - 1)];
    if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
  } else if (event.key === "Enter" && articles[here] === event.target) articles[here].play();
  else return;
  event.preventDefault();
});

async function describe() {
  try {
    const status = await ask("/api/status");
    const films = status.films ? "" : " There are no films to play.";
    say(`${status.videos.toLocaleString("en")} videos are searched.${films}`);
  } catch (error) {
    say(error.message);
  }
}

describe();
