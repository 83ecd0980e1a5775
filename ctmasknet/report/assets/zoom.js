"use strict";
// Opens a picture of the gallery at full size: one px of the picture is one of the page, or more
// where there is room. Arrow keys and buttons go on to the next; Escape closes.
(() => {
  const dialog = document.getElementById("zoom");
  if (!dialog) return;
  const by = (id) => document.getElementById(`zoom-${id}`);
  const buttons = [...document.querySelectorAll("button.zoom")];
  let shown = 0;

  function show(index) {
    if (!(index in buttons)) return;
    shown = index;
    const image = buttons[index].querySelector("img");
    const full = new Image();
    full.src = image.src;
    full.alt = image.alt;
    const scale = Math.max(1, Math.min((innerWidth - 80) / image.naturalWidth, (innerHeight - 140) / image.naturalHeight));
    full.width = Math.floor(image.naturalWidth * scale);
    full.height = Math.floor(image.naturalHeight * scale);
    by("place").replaceChildren(full);
    by("caption").textContent = `${image.alt} (${index + 1} of ${buttons.length})`;
    by("before").disabled = index === 0;
    by("after").disabled = index === buttons.length - 1;
  }

  buttons.forEach((button, index) =>
    button.addEventListener("click", () => {
      show(index);
      dialog.showModal();
      by("close").focus();
    }),
  );
  by("close").addEventListener("click", () => dialog.close());
  by("before").addEventListener("click", () => show(shown - 1));
  by("after").addEventListener("click", () => show(shown + 1));
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    // Within a picture that is wider than the page arrows move it
    const scrolls = event.target.scrollWidth > event.target.clientWidth;
    if (!step || event.ctrlKey || event.metaKey || event.altKey || scrolls) return;
    event.preventDefault();
    show(shown + step);
  });
  // A click beside the picture closes too
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => buttons[shown].focus());
})();
