"use strict";
// Filters and sorts the cards, loads videos that are near the window, and plays the one that is pointed at.
(() => {
  const list = document.getElementById("cards");
  const cards = [...list.children];
  const text = document.getElementById("text");
  const sort = document.getElementById("sort");
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const chosen = [...document.querySelectorAll("select[data-key]")];

  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits =
        words.every((word) => card.dataset.text.includes(word)) &&
        chosen.every((select) => !select.value || card.dataset[select.dataset.key] === select.value);
      card.hidden = !fits;
      shown += fits;
    }
    const all = `${cards.length} ${cards.length === 1 ? "video" : "videos"}`;
    count.textContent = shown === cards.length ? all : `${shown} of ${all}`;
    none.hidden = shown > 0;
  }

  // Small times come first, large figures, late dates; cards without the figure last.
  function arrange() {
    const key = sort.value;
    const small = key === "name" || key === "seconds";
    const value = (card) => (key === "made" ? Date.parse(card.dataset.made) : parseFloat(card.dataset[key]));
    const rank = (card) => (Number.isNaN(value(card)) ? Infinity : small ? value(card) : -value(card));
    const place = (card) => Number(card.dataset.name);
    list.append(...[...cards].sort((a, b) => (rank(a) === rank(b) ? place(a) - place(b) : rank(a) < rank(b) ? -1 : 1)));
  }

  text.addEventListener("input", filter);
  chosen.forEach((select) => select.addEventListener("change", filter));
  sort?.addEventListener("change", arrange);
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => {
    for (const field of [text, ...chosen]) field.value = "";
    filter();
    text.focus();
  });

  const plays = (frame) => frame.getAttribute("aria-pressed") === "true";

  // Browsers hold a limited number of videos: those far from the window are let go.
  const near = new IntersectionObserver(
    (changes) => {
      for (const { target, isIntersecting } of changes) {
        const video = target.querySelector("video");
        if (isIntersecting && !video.hasAttribute("src")) {
          video.preload = "metadata";
          video.src = `${video.dataset.src}#t=0.001`; // the first frame is drawn, also where nothing is preloaded
          if (plays(target)) play(target);
        } else if (!isIntersecting && video.hasAttribute("src")) {
          stop(target);
          video.removeAttribute("src");
          video.load();
        }
      }
    },
    { rootMargin: "400px" },
  );

  function play(frame) {
    frame.setAttribute("aria-pressed", "true");
    const video = frame.querySelector("video");
    // Without a source it begins once it has one; what interrupts it, such as a pause, has seen to the rest.
    if (video.hasAttribute("src")) video.play().catch((error) => error.name === "AbortError" || stop(frame));
  }

  function stop(frame) {
    frame.setAttribute("aria-pressed", "false");
    frame.querySelector("video").pause();
  }

  for (const frame of document.querySelectorAll(".frame")) {
    near.observe(frame);
    let hovered = false; // a click under the mouse pauses what hovering has begun
    frame.addEventListener("pointerenter", (event) => {
      if (event.pointerType !== "mouse") return;
      hovered = true;
      play(frame);
    });
    frame.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && hovered) stop(frame);
      hovered = false;
    });
    frame.addEventListener("click", () => (plays(frame) ? stop(frame) : play(frame)));
  }
  filter(); // a browser keeps what was typed before a page is loaded again
  if (sort) arrange();
})();
