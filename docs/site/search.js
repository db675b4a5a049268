// Search works in a page that was opened from a file, too, where a browser lets no page start a worker: there, the worker's
// script runs in a hidden frame. Messages are copied and arrive later, as a worker's do; both sides count on it.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script src="${url}"></script>`;
      this.inside = new Promise((ready) => (this.frame.onload = () => ready(this.frame.contentWindow)));
      this.inside.then((inside) => (inside.postMessage = (data) => this.hand(data, this)));
      document.documentElement.append(this.frame);
    }

    async postMessage(data) {
      this.hand(data, await this.inside);
    }

    hand(data, listener) {
      const copy = structuredClone(data);
      setTimeout(() => listener.onmessage?.({ data: copy }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
