// --- The wall and the two pictures side by side
const cosine = (a, b) => { let sum = 0; for (let index = 0; index < a.unit.length; index++) sum += a.unit[index] * b.unit[index]; return sum; };
// All pictures with vectors: the chosen one, and then the others from the most to the least similar.
const ordered = () => {
  const others = embedded().filter((item) => item !== chosen);
  if (!chosen) return others;
  for (const item of others) item.cosine = cosine(chosen, item);
  return [chosen, ...others.sort((a, b) => b.cosine - a.cosine)];
};
const select = (item) => {
  [chosen, partner, isGliding, isPicked] = [item, null, !reducedMotion.matches, true];
  const [, nearest] = ordered();
  say(nearest ? `Ordered by similarity to ${item.name}. Most similar: ${nearest.name}, ${nearest.cosine.toFixed(2)}.` : "");
  render();
  if (!isMap) showPair();
};
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const showPair = () => requestAnimationFrame(() => {
  const { top } = byId("results").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) byId("results").scrollIntoView({ behavior: reducedMotion.matches ? "instant" : "smooth" });
});
// Draws the page at the next frame, once even after several calls.
const render = () => { render.due ??= requestAnimationFrame(() => { render.due = null; draw(); }); };
const draw = () => {
  const unfinished = items.filter((item) => !item.vector), list = ordered();
  byId("queue").hidden = !unfinished.length;
  const failed = count("failed"), active = unfinished.length - failed;
  byId("queue-title").textContent = [active && `${active} on the way`, failed && `${failed} failed`].filter(Boolean).join(", ");
  byId("again").hidden = failed < 2;
  byId("results").hidden = !list.length;
  byId("wall-title").textContent = list.length === 1 ? "1 picture" : `${list.length} pictures${isMap ? "" : ", the most similar first"}`;
  byId("views").hidden = list.length < 3;
  if (list.length < 3) isMap = false;
  byId("as-wall").ariaPressed = !isMap;
  byId("as-map").ariaPressed = isMap;
  [byId("wall").hidden, byId("map").hidden] = [isMap, !isMap];
  if (!list.length) { for (const side of ["left", "right"]) fill(byId(side), null); return; }
  for (const item of list) {
    const isChosen = item === chosen, figure = isChosen ? "Chosen" : item.cosine.toFixed(2);
    if (item.figure === figure) continue;
    item.figure = figure;
    const [choose, compare] = item.tile.querySelectorAll("button");
    if (isChosen) choose.setAttribute("aria-current", "true"); else choose.removeAttribute("aria-current");
    choose.querySelector(".figure").textContent = figure;
    choose.querySelector("i").style.width = isChosen ? "100%" : percent(item.cosine);
    compare.hidden = isChosen;
  }
  arrange(list.map((item) => item.tile));
  drawPair(list);
  if (isMap) drawMap(list);
};
// Puts the tiles in order. After the visitor has chosen a picture, the visible tiles glide to their new places.
let isGliding = false;
const arrange = (tiles) => {
  const wall = byId("wall"), focused = document.activeElement, places = new Map();
  if (tiles.every((tile, index) => wall.children[index] === tile) && wall.children.length === tiles.length) return;
  const isVisible = ({ top, bottom }) => bottom > 0 && top < innerHeight;
  if (isGliding) for (const tile of wall.children) places.set(tile, tile.getBoundingClientRect());
  isGliding = false;
  wall.replaceChildren(...tiles);
  if (wall.contains(focused)) focused.focus({ preventScroll: true });
  for (const [tile, before] of places) {
    const after = tile.getBoundingClientRect();
    if (isVisible(before) || isVisible(after)) tile.animate([{ transform: `translate(${before.left - after.left}px, ${before.top - after.top}px)` }, {}], { duration: 300, easing: "ease-out" });
  }
};
// Draws a square for each number: blue below zero, orange above, without colour at zero.
const paint = (canvas, numbers, largest, label) => {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  numbers.forEach((number, index) => image.data.set([...(number < 0 ? [45, 115, 245] : [235, 115, 10]), Math.min(1, Math.abs(number) / largest) ** 0.7 * 255], index * 4));
  context.putImageData(image, 0, 0);
  canvas.ariaLabel = `${label}: ${numbers.length} numbers, from ${Math.min(...numbers).toFixed(4)} to ${Math.max(...numbers).toFixed(4)}`;
};
// Shows an item's picture, or hides the figure if there is no item.
const fill = (figure, item) => {
  const [image, blank, caption] = figure.children;
  figure.hidden = !item;
  if (figure.item === item) return;
  figure.item = item;
  URL.revokeObjectURL(image.src);
  if (item?.shown) image.src = URL.createObjectURL(item.shown); else image.removeAttribute("src");
  [image.hidden, blank.hidden] = [!item?.shown, Boolean(item?.shown)];
  image.alt = blank.textContent = caption.textContent = item?.name ?? "";
};
// Draws the chosen picture, the first of the list, beside the partner or else the most similar picture.
const drawPair = (list) => {
  const other = partner ?? list[1], isNew = byId("left").item !== chosen;
  if (!isNew && byId("right").item === other) return;
  fill(byId("left"), chosen);
  fill(byId("right"), other);
  // All drawings have the same scale of colours, so that small differences look pale.
  const largest = [chosen, other].reduce((most, item) => item ? item.unit.reduce((most, number) => Math.max(most, Math.abs(number)), most) : most, 1e-9);
  paint(byId("left-vector"), chosen.unit, largest, `The vector of ${chosen.name}`);
  byId("compared").hidden = byId("differ").hidden = byId("right-vector").hidden = !other;
  byId("numbers-title").textContent = other ? "Where the two vectors differ" : "The vector as a drawing";
  if (other) {
    byId("similarity").replaceChildren("Cosine similarity: ", create("strong", other.cosine.toFixed(2)));
    paint(byId("right-vector"), other.unit, largest, `The vector of ${other.name}`);
    paint(byId("difference"), chosen.unit.map((number, index) => number - other.unit[index]), largest, "The differences");
  }
  if (!isNew) return;
  const facts = Object.entries(chosen.facts).filter(([, value]) => value);
  byId("about").querySelector("dl").replaceChildren(...facts.flatMap(([name, value]) => [create("dt", name), create("dd", value)]));
  byId("vector").textContent = JSON.stringify(chosen.vector);
  byId("curl").textContent = curlOf(chosen);
  byId("bulk").textContent = `imagesvc embed FOLDER --to ${here("")} --out vectors.jsonl`;
};
// On a wide screen, the drawings are shown at once: there is enough space beside the wall.
byId("numbers").open = matchMedia("(min-width: 62rem)").matches;
