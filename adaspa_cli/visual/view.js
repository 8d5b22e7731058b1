"use strict";
// The video view: what the query token's mask keeps, painted over the frames, one canvas pixel a token.
(() => {
  const data = JSON.parse(document.getElementById("view-data").textContent);
  const [frames, height, width] = data.grid;
  const place = document.getElementById("frames");
  const says = document.getElementById("says");
  const chooser = document.getElementById("which");
  const unpacked = new Map();
  let query = data.query;

  function unpack(key, text, Numbers) {
    if (!unpacked.has(key)) {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      unpacked.set(key, new Response(stream).arrayBuffer().then((buffer) => new Numbers(buffer)));
    }
    return unpacked.get(key);
  }

  async function paint() {
    const key = chooser.value;
    // The block of each token, frame by frame and row by row, whatever the order of the sequence.
    const places = await unpack("", data.tokenBlocks, Int32Array);
    const blocks = await unpack(key, data.views[key].blocks, Uint8Array);
    if (key !== chooser.value) return;
    const block = (frame, row, column) => places[(frame * height + row) * width + column];
    const own = block(...query);
    const line = blocks.subarray(own * data.blocks, (own + 1) * data.blocks);
    const { leftOut, kept, alpha } = data.style;
    canvases.forEach((canvas, frame) => {
      const image = new ImageData(width, height);
      for (let token = 0; token < height * width; token++) {
        const strength = line[block(frame, 0, token)];
        const colour = strength
          ? [...kept, alpha[0] + ((alpha[1] - alpha[0]) * (strength - 1)) / 254]
          : leftOut;
        image.data.set(colour, 4 * token);
      }
      if (frame === query[0]) image.data.set(data.style.query, 4 * (query[1] * width + query[2]));
      canvas.getContext("2d").putImageData(image, 0, 0);
      canvas.parentElement.classList.toggle("here", frame === query[0]);
    });
    let count = 0;
    for (let index = data.video[0]; index < data.video[1]; index++) count += line[index] > 0;
    const all = data.video[1] - data.video[0];
    says.textContent =
      `Token ${query.join(",")} (frame, row, column) stands in query block ${own}, which keeps ${count} of ` +
      `${all} key blocks of video (${((100 * count) / all).toFixed(1)} %) and with the text ` +
      `${(100 * data.views[key].recall[own]).toFixed(1)} % of its attention weights.`;
    const pooled = data.views[key].pooled;
    if (pooled) says.textContent += ` The summaries of the others stand for ${(100 * pooled[own]).toFixed(1)} %.`;
  }

  const canvases = Array.from(place.querySelectorAll("canvas"));
  canvases.forEach((canvas, frame) => {
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const at = (offset, size, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / size) * count)));
      const row = at(event.clientY - box.top, box.height, height);
      query = [frame, row, at(event.clientX - box.left, box.width, width)];
      paint();
    });
  });
  const moves = {
    ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1],
    PageUp: [-1, 0, 0], PageDown: [1, 0, 0],
  };
  place.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    query = query.map((at, axis) => Math.min(data.grid[axis] - 1, Math.max(0, at + move[axis])));
    paint();
  });
  chooser.addEventListener("change", paint);
  if (typeof DecompressionStream === "undefined") {
    says.textContent = "This browser is too old for the video view: it cannot decompress.";
    return;
  }
  paint();
})();
