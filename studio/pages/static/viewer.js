// The picture: zoom, pan, two in comparison. OpenSeadragon draws it; until it is loaded, and where it cannot be, the plain picture stands.
import { say } from "./page.js";

let library;
/** OpenSeadragon, loaded once. It is no module: it says its name to the window. */
const load = () => (library ??= new Promise((done, failed) => {
  const script = document.createElement("script");
  script.src = new URL("libraries/openseadragon.js", import.meta.url).href;
  script.addEventListener("load", () => done(window.OpenSeadragon));
  script.addEventListener("error", () => failed(new Error("OpenSeadragon is not there")));
  document.head.append(script);
}));

const GAP = 0.04; // between two pictures side by side, in widths of the first
const PIXELS = 2; // from so many screen pixels a pixel on, they are shown as they are

export class Viewer {
  /** view: the place that holds the picture and, over it, the layer of pins. */
  constructor(view) {
    this.view = view;
    this.picture = view.querySelector("[data-picture]");
    this.layer = view.querySelector("[data-layer]");
    this.ratio = Number(this.picture.getAttribute("width")) / Number(this.picture.getAttribute("height"));
    view.querySelector("[data-pictures]").style.setProperty("--ratio", this.ratio);
    this.split = 0.5;
    this.other = null; // {address, how, item}
    this.layer.addEventListener("pointerdown", (event) => event.target.closest("button") && event.stopPropagation());
  }

  async open() {
    const OpenSeadragon = await load().catch(() => null);
    if (!OpenSeadragon || !this.view.isConnected) return;
    const element = Object.assign(document.createElement("div"), { className: "deep" });
    this.view.append(element);
    this.deep = new OpenSeadragon({
      element, drawer: "canvas", showNavigationControl: false, animationTime: 0.25, visibilityRatio: 0.5, minZoomImageRatio: 0.7,
      maxZoomPixelRatio: 24, tabIndex: -1, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, crossOriginPolicy: false,
    });
    this.deep.innerTracker.keyHandler = null; // the room has keys of its own
    this.deep.innerTracker.keyDownHandler = null;
    this.deep.addHandler("zoom", () => this.#smoothed());
    this.deep.addOnceHandler("open", () => {
      this.deep.addOverlay({ element: this.layer, location: new OpenSeadragon.Rect(0, 0, 1, 1 / this.ratio) });
      this.view.toggleAttribute("data-deep", true); // the plain picture has done its part
      if (this.other) this.compare(this.other.address, this.other.how);
    });
    this.deep.open({ type: "image", url: this.picture.currentSrc || this.picture.src, buildPyramid: false });
  }

  close() {
    this.deep?.destroy();
  }

  /** Where a pointer is, in 0 to 1 of the picture's sides. */
  at(event) {
    const box = this.layer.getBoundingClientRect(), within = (v) => Math.min(1, Math.max(0, v));
    return { x: within((event.clientX - box.left) / box.width), y: within((event.clientY - box.top) / box.height) };
  }

  /** Show another picture over this one, parted by the slider ("slide"), or beside it; null takes it away. */
  compare(address, how) {
    if (this.other?.item) this.deep.world.removeItem(this.other.item);
    this.other = address ? { address, how, item: null } : null;
    const deep = this.deep;
    if (!deep || !deep.world.getItemCount()) return;
    if (!address) return this.home();
    const asked = this.other, height = 1 / this.ratio, { Rect, Placement } = window.OpenSeadragon;
    deep.addTiledImage({
      tileSource: { type: "image", url: new URL(address, location.href).href, buildPyramid: false },
      fitBounds: new Rect(how === "beside" ? 1 + GAP : 0, 0, 1, height), fitBoundsPlacement: Placement.CENTER,
      success: ({ item }) => {
        if (this.other !== asked) return deep.world.removeItem(item);
        asked.item = item;
        this.slide(this.split);
      },
      error: () => say("The picture to compare with cannot be loaded."),
    });
    this.home();
  }

  /** Part the two at a share of the picture's width. */
  slide(share) {
    this.split = share;
    const item = this.other?.item;
    if (!item || this.other.how !== "slide") return;
    const size = item.getContentSize(), bounds = item.getBounds(), { Rect } = window.OpenSeadragon;
    const from = Math.min(1, Math.max(0, (share - bounds.x) / bounds.width)) * size.x;
    item.setClip(new Rect(from, 0, size.x - from, size.y));
  }

  home() {
    const beside = this.other?.how === "beside", { Rect } = window.OpenSeadragon;
    this.deep.viewport.fitBounds(new Rect(0, 0, beside ? 2 + GAP : 1, 1 / this.ratio), false);
  }

  /** To the pixels, and back to the whole; says whether it is near now. */
  zoom() {
    if (!this.deep) return false;
    const { viewport } = this.deep, near = this.#near();
    if (near) this.home();
    else viewport.zoomTo(Math.max(viewport.getHomeZoom() * 3, viewport.imageToViewportZoom(1)));
    return !near;
  }

  zoomBy(factor) {
    this.deep?.viewport.zoomBy(factor);
    this.deep?.viewport.applyConstraints();
  }

  /** By shares of what is seen. */
  panBy(x, y) {
    const viewport = this.deep?.viewport;
    if (!viewport) return;
    const seen = viewport.getBounds();
    viewport.panBy(new window.OpenSeadragon.Point(x * seen.width, y * seen.height));
    viewport.applyConstraints();
  }

  /** While something is drawn on the picture, it holds still. */
  hold(on) {
    this.deep?.setMouseNavEnabled(!on);
  }

  #smoothed() {
    const item = this.deep.world.getItemAt(0);
    if (item) this.deep.drawer.setImageSmoothingEnabled(item.viewportToImageZoom(this.deep.viewport.getZoom(true)) < PIXELS || !this.#near());
  }

  #near() {
    return this.deep.viewport.getZoom(true) > this.deep.viewport.getHomeZoom() * 1.2;
  }
}
