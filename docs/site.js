// Search in pages that are opened from a folder: there browsers start no worker, so a hidden frame does its work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      frame.srcdoc =
        "<script>self.postMessage = (data) => frameElement.answer(data);</" + "script>" +
        `<script src="${url}"></` + "script>";
      this.ready = new Promise((resolve) => frame.addEventListener("load", () => resolve(frame.contentWindow)));
      document.addEventListener("DOMContentLoaded", () => document.body.append(frame));
    }

    postMessage(data) {
      this.ready.then((worker) => worker.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
