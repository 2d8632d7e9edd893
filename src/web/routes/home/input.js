// --- Choosing, dropping and pasting pictures
// Adds the files in dropped or pasted data, or else its web addresses. A single address goes into the
// form instead. Returns whether the data contained files or addresses.
const addFrom = (data) => {
  const files = [...data.files];
  const lines = (data.getData("text/uri-list") || data.getData("text/plain")).split(/\s*\n\s*/).map((line) => line.trim());
  const addresses = lines.filter((line) => /^https?:\S+$/i.test(line) && URL.canParse(line));
  if (files.length) addAll(files);
  else if (addresses.length > 1) addAll(addresses);
  else if (addresses.length) { address.value = addresses[0]; address.focus(); }
  return files.length + addresses.length > 0;
};
for (const input of document.querySelectorAll("[type=file]")) input.addEventListener("change", () => {
  addAll([...input.files]);
  input.value = ""; // Otherwise there would be no event if the same file was chosen again.
});
document.addEventListener("paste", (event) => {
  const isTyping = event.target.matches?.("input") && !event.clipboardData.files.length;
  if (!isTyping && addFrom(event.clipboardData)) event.preventDefault();
});
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, (event) => {
  event.preventDefault();
  document.body.classList.toggle("dropping", type === "dragover");
  if (type === "drop") addFrom(event.dataTransfer);
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = address.value.trim();
  if (!URL.canParse(text)) return showProblem("Enter the complete web address of a picture.");
  addAll([text]);
  address.value = "";
  pump();
});
byId("lock").addEventListener("submit", (event) => { event.preventDefault(); isLocked = false; showProblem(""); pump(); });
byId("again").addEventListener("click", () => retry(items.filter((item) => item.state === "failed")));
byId("samples").addEventListener("click", async () => {
  try {
    addAll(await Promise.all(["photo", "photo-cropped-and-darker", "landscape"].map(async (name) => {
      const response = await fetch(`sandbox/${name}.jpg`);
      if (!response.ok) throw new Error(response.statusText);
      return new File([await response.blob()], `${name}.jpg`, { type: "image/jpeg" });
    })));
  } catch { showProblem("The sample pictures cannot be loaded."); }
});
