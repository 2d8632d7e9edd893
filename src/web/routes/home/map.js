// --- The map: shows the vectors in the two directions in which they differ most (PCA)
// x and y: how far the map is moved. halves: half of the width and height of all points together.
const view = { x: 0, y: 0, zoom: 1, halves: [1, 1] };
// Finds the two directions by power iteration, and sets each item's point.
const project = (list) => {
  const size = list[0].unit.length, mean = new Float64Array(size);
  for (const { unit } of list) for (let index = 0; index < size; index++) mean[index] += unit[index] / list.length;
  const rows = list.map(({ unit }) => Float64Array.from(unit, (number, index) => number - mean[index]));
  const dot = (a, b) => { let sum = 0; for (let index = 0; index < size; index++) sum += a[index] * b[index]; return sum; };
  const total = rows.reduce((sum, row) => sum + dot(row, row), 0) || 1;
  let shownShare = 0; // how much of all differences the two directions show
  const axes = [0, 1].map((axis) => {
    let direction = Float64Array.from({ length: size }, (_, index) => Math.sin(index * (axis + 1) + 1));
    for (let round = 0; round < 40; round++) {
      const next = new Float64Array(size);
      for (const row of rows) { const part = dot(row, direction); for (let index = 0; index < size; index++) next[index] += part * row[index]; }
      const length = Math.sqrt(dot(next, next));
      if (!(length > 1e-12)) return rows.map(() => 0); // no difference is left
      direction = next.map((number) => number / length);
    }
    const parts = rows.map((row) => dot(row, direction));
    rows.forEach((row, at) => { for (let index = 0; index < size; index++) row[index] -= parts[at] * direction[index]; });
    shownShare += parts.reduce((sum, part) => sum + part * part, 0) / total;
    return parts;
  });
  const ends = axes.map((parts) => [Math.min(...parts), Math.max(...parts)]);
  view.halves = ends.map(([least, most]) => (most - least) / 2);
  list.forEach((item, at) => { item.point = axes.map((parts, axis) => parts[at] - (ends[axis][0] + ends[axis][1]) / 2); });
  byId("kept").textContent = `Pictures near each other are alike. The two directions of this map hold ${Math.round(shownShare * 100)} % of the differences. Drag it, pinch it, or use the buttons; choose a picture by a tap, or on the wall.`;
};
// The number of pixels on the map for a distance of 1.
const mapScale = () => view.zoom * Math.min(...[space.clientWidth, space.clientHeight].map((pixels, axis) => (pixels / 2 - 30) / Math.max(view.halves[axis], 1e-6)));
// The list begins with the chosen picture and continues with the most similar one.
const drawMap = (list) => {
  // While vectors arrive, the points are computed at most once a second: each new vector changes all points.
  const isDue = !count("preparing", "ready", "sending", "waiting") || performance.now() - (drawMap.last ?? -Infinity) > 1000;
  if (isDue && (drawMap.size !== list.length || list.some((item) => !item.point))) {
    project(list);
    Object.assign(drawMap, { size: list.length, last: performance.now() });
  }
  byId("nearest").textContent = `Chosen: ${chosen.name}. Most similar: ${list[1].name}, ${list[1].cosine.toFixed(2)}.`;
  const [width, height, ratio] = [space.clientWidth, space.clientHeight, devicePixelRatio], context = space.getContext("2d"), side = 44 * Math.sqrt(view.zoom);
  Object.assign(space, { width: width * ratio, height: height * ratio, ariaLabel: `Map of ${list.length} pictures. Arrow keys move it, plus and minus zoom. The wall shows the same as a list.` });
  context.scale(ratio, ratio);
  const scale = mapScale();
  // The chosen picture is drawn last, so that it is on top.
  for (const item of list.filter((item) => item.point).reverse()) {
    item.place = { x: width / 2 + (item.point[0] + view.x) * scale, y: height / 2 + (item.point[1] + view.y) * scale, side };
    const corner = [item.place.x - side / 2, item.place.y - side / 2, side, side];
    context.drawImage(item.thumb, ...corner);
    context.lineWidth = item === chosen ? 4 : 1;
    context.strokeStyle = getComputedStyle(byId("as-map")).backgroundColor;
    context.strokeRect(...corner);
  }
};
// Moves the map by x and y pixels, and multiplies its zoom.
const move = (x, y, zoomFactor = 1) => {
  view.zoom = Math.max(0.5, Math.min(20, view.zoom * zoomFactor));
  const maxShift = 1.5 * Math.max(...view.halves, 1e-6);
  [view.x, view.y] = [view.x + x / mapScale(), view.y + y / mapScale()].map((shift) => Math.max(-maxShift, Math.min(maxShift, shift)));
  render();
};
const MOVES = { "zoom-in": [0, 0, 1.4], "zoom-out": [0, 0, 1 / 1.4], left: [60, 0], right: [-60, 0], up: [0, 60], down: [0, -60] };
const KEYS = { "+": "zoom-in", "=": "zoom-in", "-": "zoom-out", ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", 0: "fit" };
const moveBy = (name) => { if (name === "fit") Object.assign(view, { x: 0, y: 0, zoom: 1 }); move(...(MOVES[name] ?? [0, 0])); };
const fingers = new Map(); // from the id of each pressed pointer to its last event
let dragged = 0; // how many pixels the pointers have moved; infinite after two fingers, so that they choose no picture
space.addEventListener("pointerdown", (event) => { space.setPointerCapture(event.pointerId); fingers.set(event.pointerId, event); dragged = fingers.size > 1 ? Infinity : 0; });
space.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1; };
  const oldSpread = fingers.size === 2 ? spread() : 1;
  fingers.set(event.pointerId, event);
  const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
  dragged += Math.hypot(x, y);
  if (dragged > 6) move(x / fingers.size, y / fingers.size, fingers.size === 2 ? spread() / oldSpread : 1);
});
for (const type of ["pointerup", "pointercancel"]) space.addEventListener(type, (event) => {
  if (!fingers.delete(event.pointerId) || type !== "pointerup" || dragged > 6) return;
  const isHit = ({ place: { x, y, side } }) => Math.max(Math.abs(event.offsetX - x), Math.abs(event.offsetY - y)) <= side / 2;
  const hit = ordered().find((item) => item.place && isHit(item));
  if (hit) select(hit);
});
// Browsers report a pinch on a touch pad as a wheel event with Ctrl. Without Ctrl, the wheel scrolls the page.
space.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); move(0, 0, Math.exp(-event.deltaY / 100)); } }, { passive: false });
space.addEventListener("keydown", (event) => { if (KEYS[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); moveBy(KEYS[event.key]); } });
for (const button of document.querySelectorAll("[data-move]")) button.addEventListener("click", () => moveBy(button.dataset.move));
for (const id of ["as-wall", "as-map"]) byId(id).addEventListener("click", () => { isMap = id === "as-map"; render(); });
addEventListener("resize", render);
