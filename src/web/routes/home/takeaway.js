// --- Taking vectors and commands away
// The complete URL of a path of this service.
const here = (path) => new URL(path || ".", location.href.split(/[?#]/)[0]).href.replace(path ? "" : /\/$/, "");
// The text as one argument for a shell.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const curlOf = ({ file, url, name }) => {
  const keyHeader = key.value ? ' -H "Authorization: Bearer YOUR_API_KEY"' : "";
  // The quotes allow a name with a semicolon or a comma, which would otherwise have a meaning for curl.
  if (file) return `curl${keyHeader} -F ${quoted(`file=@"${name.replace(/["\\]/g, "\\$&")}"`)} ${quoted(here("vectorize-image-upload"))}`;
  return `curl${keyHeader} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify({ image_url: url }))} ${quoted(here("vectorize-image"))}`;
};
const copy = async (text, what) => {
  const focused = document.activeElement;
  try { await navigator.clipboard.writeText(text); } catch { // without HTTPS, browsers have no clipboard object
    const area = create("textarea", text);
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    if (!isCopied) return say("The browser does not allow copying.");
  }
  say(`Copied: ${what}`);
};
const download = (name, parts, type) => {
  const link = create("a", "", { href: URL.createObjectURL(new Blob(parts, { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};
const FIELDS = ["saved_as", "sha256", "model", "prepared", "content_type", "width", "height"];
byId("jsonl").addEventListener("click", () => download("vectors.jsonl", embedded().map(({ file, name, answer, vector }) =>
  `${JSON.stringify({ [file ? "path" : "url"]: name, ...Object.fromEntries(FIELDS.map((field) => [field, answer[field]])), vector })}\n`), "application/jsonl"));
byId("csv").addEventListener("click", () => {
  const line = (cells) => `${cells.map((cell) => /[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell).join()}\r\n`;
  const rows = embedded().map(({ name, answer, vector }) => line([name, ...FIELDS.map((field) => answer[field] ?? ""), ...vector]));
  download("vectors.csv", [line(["picture", ...FIELDS, ...chosen.vector.map((_, index) => `v${index}`)]), ...rows], "text/csv");
});
byId("copy").addEventListener("click", () => copy(JSON.stringify(chosen.vector), `the vector of ${chosen.name}`));
byId("copy-curl").addEventListener("click", () => copy(curlOf(chosen), "the command"));
byId("remove").addEventListener("click", () => remove(chosen));
addEventListener("beforeunload", (event) => { if (embedded().length || count("preparing", "ready", "sending", "waiting")) event.preventDefault(); });
