// Comfort on top of pages that do without: copying, and a preview of HTML as it is typed.
"use strict";

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue; // only where the page came over TLS or from this machine
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).innerText);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}

for (const field of document.querySelectorAll("textarea[data-preview]")) {
  let frame, waiting;
  // The server answers with the same HTML, in a policy of its own under which nothing in it runs or
  // is fetched. Each time in a new frame, so that the browser's way back is not full of previews.
  const show = () => {
    frame?.remove();
    if (!field.value.trim()) return;
    frame = document.createElement("iframe");
    Object.assign(frame, { name: "preview", title: "Preview of the HTML", className: "preview" });
    frame.setAttribute("sandbox", "");
    field.after(frame);
    const form = document.createElement("form");
    Object.assign(form, { method: "post", action: field.dataset.preview, target: "preview", hidden: true });
    const copy = document.createElement("textarea");
    Object.assign(copy, { name: "html", value: field.value });
    form.append(copy);
    document.body.append(form);
    form.submit();
    form.remove();
  };
  field.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 400);
  });
  show();
}
