// Let the search work in pages opened from a file, where browsers allow no web worker: run the worker's script in a hidden
// frame instead. Messages are cloned and delivered asynchronously, as by a worker, because both sides rely on it.
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
