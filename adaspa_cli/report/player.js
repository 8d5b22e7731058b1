"use strict";
// Players of two videos in step: side by side, with a slider between them, or their difference.
// Without this script a page still shows the videos, each with the controls of the browser.
(() => {
  const PATIENCE = 3; // seeks to one frame
  const LATE = 0.75; // frames that the second video may be off while both play
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  function start(root) {
    const find = (selector) => root.querySelector(selector);
    const data = JSON.parse(find("script").textContent);
    const [first, second] = root.querySelectorAll("video");
    const [stage, scrub, wipe, said] = [".stage", ".scrub", ".wipe", ".said"].map(find);
    const [playing, back, next, chooser, gain] = [".play", ".back", ".next", ".chooser", ".gain"].map(find);
    const views = [...root.querySelectorAll("[data-view]:not(.stage)")];
    const charts = [...root.querySelectorAll(".chart")];
    const difference = find("canvas").getContext("2d");
    const last = data.frames - 1;
    let [shown, frame, runs] = [data.shown, 0, false];

    const fps = (video) => Number(video.dataset.fps);
    const frameOf = (video) => Math.min(last, Math.floor(video.currentTime * fps(video) + 0.01));

    // --- what is said and drawn of a frame
    function say() {
      scrub.value = frame;
      const figures = Object.entries(data.curves[shown] ?? {});
      const words = figures.map(([name, curve]) => `${name} ${curve.values[frame].toFixed(curve.digits)}${curve.unit}`);
      said.textContent = [`frame ${frame + 1} of ${data.frames}`, ...words].join(" · ");
      scrub.setAttribute("aria-valuetext", said.textContent);
      for (const chart of charts) chart.style.setProperty("--at", last ? frame / last : 0.5);
    }

    function subtract() {
      if (stage.dataset.view !== "difference") return;
      const { width, height } = difference.canvas;
      for (const [video, how] of [[first, "copy"], [second, "difference"]]) {
        difference.globalCompositeOperation = how;
        difference.drawImage(video, 0, 0, width, height);
      }
    }

    function draw() {
      const curves = data.curves[shown] ?? {};
      for (const chart of charts) {
        const curve = curves[chart.dataset.name];
        chart.hidden = !curve;
        if (!curve) continue;
        const [least, most] = [Math.min(...curve.values), Math.max(...curve.values)];
        const [from, to, line] = curve.axis; // longer, by whole lines, where a value lies outside
        const low = Math.min(from, line * Math.floor(least / line));
        const high = Math.max(to, line * Math.ceil(most / line));
        const up = (value) => (100 * (high - value)) / (high - low);
        const points = curve.values.map((value, at) => `${last ? (100 * at) / last : 50},${up(value).toFixed(2)}`);
        chart.querySelector("polyline").setAttribute("points", points.join(" "));
        chart.querySelector(".high").textContent = high.toFixed(line < 1 ? 1 : 0);
        chart.querySelector(".low").textContent = low.toFixed(line < 1 ? 1 : 0);
        chart.querySelector(".range").textContent = `: ${least.toFixed(curve.digits)} to ${most.toFixed(curve.digits)}`;
        chart.style.setProperty("--lines", Math.round((high - low) / line));
      }
    }

    // --- time
    // One seek after the other. Now and then Chromium goes on showing the frame of an earlier one: then it is asked again.
    const wanted = new Map(); // a frame for each video
    const seeking = new Map(); // a promise for each video that is on its way

    function seek(video, to) {
      wanted.set(video, to);
      if (!seeking.has(video)) seeking.set(video, reach(video).finally(() => seeking.delete(video)));
      return seeking.get(video);
    }

    async function reach(video) {
      for (let at, left = 0; left || at !== wanted.get(video); ) {
        if (at !== wanted.get(video)) [at, left] = [wanted.get(video), PATIENCE];
        left = (await painted(video, (at + 0.5 + left / 100) / fps(video))) ? 0 : left - 1;
      }
    }

    // Whether a frame was painted when the video had reached that time.
    async function painted(video, time) {
      const shown = new Promise((done) => video.requestVideoFrameCallback?.(() => done(true)) ?? done(true));
      await new Promise((done) => {
        for (const end of ["seeked", "emptied", "error"]) video.addEventListener(end, done, { once: true });
        video.currentTime = time;
      });
      return Promise.race([shown, new Promise((done) => setTimeout(done, 200, false))]);
    }

    function show(to) {
      frame = Math.min(last, Math.max(0, to));
      say();
      return Promise.all([seek(first, frame), seek(second, frame)]).then(subtract);
    }

    async function play() {
      runs = true;
      playing.textContent = "Pause";
      if (frame >= last) await show(0);
      second.playbackRate = fps(first) / fps(second); // the same frames in the same time
      try {
        await Promise.all([first.play(), second.play()]);
        requestAnimationFrame(follow);
      } catch {
        pause(); // the browser does not let it play, or it was paused meanwhile
      }
    }

    function pause() {
      runs = false;
      playing.textContent = "Play";
      first.pause();
      second.pause();
    }

    async function follow() {
      if (!runs) return;
      if (first.ended || frameOf(first) >= last) {
        await show(0);
        if (runs) await Promise.allSettled([first.play(), second.play()]);
      } else {
        frame = frameOf(first);
        say();
        subtract();
        const off = first.currentTime * fps(first) - second.currentTime * fps(second);
        if (Math.abs(off) > LATE && !second.seeking) second.currentTime = (first.currentTime * fps(first)) / fps(second);
      }
      requestAnimationFrame(follow);
    }

    function step(by) {
      const from = runs ? frameOf(first) : frame; // which a seek on its way has not reached yet
      pause();
      return show(from + by);
    }

    // --- controls
    playing.addEventListener("click", () => (runs ? step(0) : play()));
    back.addEventListener("click", () => step(-1));
    next.addEventListener("click", () => step(1));
    scrub.addEventListener("input", () => {
      pause();
      show(Number(scrub.value));
    });
    for (const video of [first, second]) video.addEventListener("seeked", subtract); // also while more seeks follow
    views.forEach((button) => button.addEventListener("click", () => look(button.dataset.view)));
    gain.addEventListener("change", () => stage.style.setProperty("--gain", gain.value));
    wipe.addEventListener("input", () => stage.style.setProperty("--wipe", wipe.value / 1000));

    function look(view) {
      stage.dataset.view = view;
      wipe.hidden = view !== "slider";
      gain.parentElement.hidden = view !== "difference";
      for (const button of views) button.setAttribute("aria-pressed", button.dataset.view === view);
      subtract();
    }

    function drag(event) {
      if (stage.dataset.view !== "slider" || !(event.buttons & 1)) return;
      const box = stage.getBoundingClientRect();
      wipe.value = 1000 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      wipe.dispatchEvent(new Event("input"));
    }
    stage.addEventListener("pointerdown", (event) => {
      if (stage.dataset.view !== "slider") return;
      stage.setPointerCapture(event.pointerId);
      drag(event);
      wipe.focus({ preventScroll: true });
    });
    stage.addEventListener("pointermove", drag);
    // What was just dragged can be moved by arrow keys: the stage does not take the focus from it.
    stage.addEventListener("mousedown", (event) => stage.dataset.view === "slider" && event.preventDefault());

    for (const chart of charts) {
      const jump = (event) => {
        if (!(event.buttons & 1)) return;
        const box = chart.querySelector("svg").getBoundingClientRect();
        pause();
        show(Math.round(last * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))));
      };
      chart.addEventListener("pointerdown", jump);
      chart.addEventListener("pointermove", jump);
    }

    root.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "," || event.key === ".") step(event.key === "." ? 1 : -1);
      else if (event.key === " " && event.target === stage) playing.click();
      else return;
      event.preventDefault();
    });

    // --- which videos, where there are more than two
    async function choose() {
      const was = runs;
      pause();
      shown = Number(chooser.value);
      for (const [video, at] of [[first, shown], [second, data.reference]]) {
        const source = document.getElementById(data.ids[at]);
        if (video.src !== source.src) video.src = source.src;
        video.dataset.fps = source.dataset.fps;
        const name = data.names[at];
        video.setAttribute("aria-label", name);
        video.parentElement.querySelector("figcaption").textContent = name;
      }
      draw();
      await show(frame);
      if (was) play();
    }

    for (const video of [first, second]) {
      video.controls = video.loop = video.autoplay = false;
      video.pause();
    }
    root.classList.add("ready");
    look("side");
    if (chooser) {
      chooser.addEventListener("change", choose);
      choose();
    } else {
      draw();
      show(0).then(() => data.autoplay && !still && play());
    }
  }

  document.querySelectorAll(".player").forEach(start);
})();
