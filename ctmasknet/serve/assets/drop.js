"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const OWN = { "X-CTMaskNet": "drop" };
  const ASK_MS = 1000;
  // Where this tab keeps the word of its job, so that it is there again when the page is
  const KEPT = "job";
  let job = "";

  async function ask(path, options = {}) {
    const answer = await fetch(path, { ...options, headers: { ...OWN, ...options.headers } });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.message || `error ${answer.status}`);
    return told;
  }

  function say(text, share) {
    by("job").hidden = false;
    by("state").textContent = text;
    const bar = by("progress");
    bar.hidden = share === null;
    if (share === undefined) bar.removeAttribute("value");
    else if (share !== null) bar.value = share;
  }

  // [path, file] of everything below a dropped file or folder
  async function below(entry, folder = "") {
    const path = folder + entry.name;
    if (entry.isFile) return [[path, await new Promise((take, fail) => entry.file(take, fail))]];
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((take, fail) => reader.readEntries(take, fail));
      if (!some.length) return found;
      for (const one of some) found.push(...(await below(one, `${path}/`)));
    }
  }

  async function send(files) {
    if (!files.length) return;
    by("found").hidden = true;
    const size = files.reduce((sum, [, file]) => sum + file.size, 0);
    const { bytes, files: most } = by("drop").dataset;
    if (size > bytes || files.length > most) {
      say(`Not done: ${files.length} files of ${(size / 1e9).toPrecision(3)} GB are more than is taken; drop fewer.`, null);
      return;
    }
    // As people count: 2 before 10
    files.sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
    let mine = job;
    try {
      if (job) await ask(`/jobs/${job}`, { method: "DELETE" });
      job = (await ask("/jobs", { method: "POST" })).job;
      mine = job;
      let sent = 0;
      for (const [number, [path, file]] of files.entries()) {
        if (job !== mine) return;
        say(`sending ${number + 1} of ${files.length} files`, size ? sent / size : 0);
        const headers = { "X-Name": encodeURIComponent(path) };
        await ask(`/jobs/${mine}/files/${number}`, { method: "PUT", body: file, headers });
        sent += file.size;
      }
      if (job !== mine) return;
      await ask(`/jobs/${mine}/start`, { method: "POST" });
      sessionStorage.setItem(KEPT, mine);
      await follow(mine);
    } catch (error) {
      // Of files that others have replaced nothing is said
      if (job === mine) say(`Not done: ${error.message}`, null);
    }
  }

  async function follow(mine) {
    for (;;) {
      if (job !== mine) return;
      const told = await ask(`/jobs/${mine}`);
      if (told.state === "done") return show(told);
      if (told.state === "failed") return say(`Not done: ${told.message}`, null);
      say(`${told.state}: ${told.message}`);
      await new Promise((wake) => setTimeout(wake, ASK_MS));
    }
  }

  function item(list, text, href) {
    const one = document.createElement("li");
    const inside = href ? document.createElement("a") : one;
    if (href) {
      inside.href = href;
      inside.target = "_blank";
      one.append(inside);
    }
    inside.textContent = text;
    list.append(one);
  }

  function show(told) {
    say(told.message ? `Done. Left out: ${told.message}` : "Done.", null);
    for (const id of ["pages", "results", "names"]) by(id).replaceChildren();
    told.pages.forEach((name, number) => item(by("pages"), name, `/jobs/${job}/pages/${number}`));
    told.results.forEach((name, number) => item(by("results"), name, `/jobs/${job}/results/${number}`));
    for (const name of told.files) item(by("names"), name);
    by("viewer").hidden = !told.pages.length;
    if (told.pages.length) by("viewer").src = `/jobs/${job}/pages/0`;
    by("found").hidden = false;
  }

  const drop = by("drop");
  for (const kind of ["dragover", "drop", "dragleave"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  // A file that misses the field must not replace the page
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  drop.addEventListener("drop", async (event) => {
    const entries = [...event.dataTransfer.items].map((one) => one.webkitGetAsEntry()).filter(Boolean);
    const found = [];
    try {
      for (const entry of entries) found.push(...(await below(entry)));
    } catch (error) {
      say(`Not done: ${error.message}`, null);
      return;
    }
    send(found);
  });
  for (const id of ["files", "folder"]) {
    by(id).addEventListener("change", () => {
      send([...by(id).files].map((file) => [file.webkitRelativePath || file.name, file]));
      by(id).value = "";
    });
  }
  by("remove").addEventListener("click", async () => {
    const mine = job;
    job = "";
    sessionStorage.removeItem(KEPT);
    by("found").hidden = true;
    by("viewer").removeAttribute("src");
    try {
      if (mine) await ask(`/jobs/${mine}`, { method: "DELETE" });
      say("Removed.", null);
    } catch (error) {
      say(`Not removed: ${error.message}`, null);
    }
  });
  job = sessionStorage.getItem(KEPT) || "";
  if (job) {
    follow(job).catch(() => {
      // Its time was up, or the server is another one
      sessionStorage.removeItem(KEPT);
      say("The last scan is not kept any more; drop it again.", null);
    });
  }
})();
