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

// A mail is as high as it is. Nothing runs in its frame; that it is of our origin lets us look.
for (const frame of document.querySelectorAll("iframe[data-fits]")) {
  let width;
  const fit = () => {
    const inside = frame.contentDocument?.documentElement;
    if (!inside || frame.clientWidth === width) return;
    width = frame.clientWidth;
    frame.style.height = "0";
    frame.style.height = `${inside.scrollHeight + 2}px`;
  };
  frame.addEventListener("load", () => { width = undefined; fit(); });
  new ResizeObserver(fit).observe(frame);
  if (frame.contentDocument?.readyState === "complete") fit();
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

// Times count on, in the words that the server would use.
const UNITS = [[86400, "day"], [3600, "h"], [60, "min"], [1, "s"]];
const span = (seconds) => {
  const [size, unit] = UNITS.find(([length]) => seconds >= 2 * length) ?? UNITS.at(-1);
  return `${Math.max(0, Math.floor(seconds / size))} ${unit}${unit === "day" ? "s" : ""}`;
};
// Returns whether a time has come since it was told as one to come: then there is more to say.
const countOn = () => {
  let has_come = false;
  for (const time of document.querySelectorAll("time[data-span]")) {
    const away = (Date.parse(time.dateTime) - Date.now()) / 1000;
    const is_ahead = time.dataset.span === "ahead";
    has_come ||= is_ahead && away <= 0;
    const words = span(is_ahead ? away : -away);
    if (time.textContent !== words) time.textContent = words;
  }
  return has_come;
};

// Make the page what the new one is, and touch nothing that is the same in both: what was typed,
// opened, selected or focused stays. What has an id is found by it, wherever it is now.
const become = (old, fresh) => {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || (old.id ?? "") !== (fresh.id ?? "")) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  const isKept = (name) => old.nodeName === "DETAILS" && name === "open";
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !isKept(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value && !isKept(name)) old.setAttribute(name, value);
  const children = [...fresh.childNodes];
  children.forEach((child, place) => {
    const here = old.childNodes[place];
    const same = child.id && [...old.children].find((other) => other.id === child.id);
    if (same && same !== here) old.insertBefore(same, here);
    const now = old.childNodes[place];
    if (now) become(now, child);
    else old.append(child);
  });
  while (old.childNodes.length > children.length) old.lastChild.remove();
};

// The page keeps itself current: it asks for its JSON again and again, which is no more than "304,
// nothing is new" most of the time; and for itself where there is more to say.
const live = document.querySelector("[data-live]");
if (live) {
  const EVERY = 15_000;
  const LONGEST = 300_000;
  let tag = live.dataset.tag, wait = EVERY, timer, failed_at = null;
  const clock = (time, end) => `${time.toISOString().slice(11, end)} UTC`;
  const say = (words) => {
    const current = document.getElementById("current");
    if (current) current.textContent = words;
  };
  const sayCurrent = () => say(`As of ${clock(new Date(), 19)}. The page keeps itself current.`);
  const get = async (url, headers) => {
    const answer = await fetch(url, { headers, signal: AbortSignal.timeout(30_000) });
    if (answer.status === 401) throw new DOMException("signed out", "NotAllowedError");
    if (!answer.ok && answer.status !== 304) throw new Error(`HTTP ${answer.status}`);
    return answer;
  };
  const refresh = async () => {
    const text = await (await get(location.href, { Accept: "text/html" })).text();
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const focused = document.activeElement;
    document.title = fresh.title;
    for (const part of ["#banner", "main"]) become(document.querySelector(part), fresh.querySelector(part));
    if (focused !== document.activeElement) focused.focus({ preventScroll: true });
  };
  const look = async () => {
    clearTimeout(timer);
    if (document.hidden) return; // until somebody looks again
    try {
      const answer = await get(live.dataset.live, { Accept: "application/json", "If-None-Match": tag });
      const is_new = answer.status !== 304;
      tag = answer.headers.get("ETag") ?? tag;
      await answer.arrayBuffer();
      const has_come = countOn();
      if (is_new || has_come || failed_at) await refresh();
      failed_at = null;
      wait = EVERY;
      sayCurrent();
    } catch (error) {
      if (error.name === "NotAllowedError") return say("No longer current: you are signed out.");
      failed_at ??= new Date();
      wait = Math.min(wait * 2, LONGEST);
      say(`Not current: the server does not answer since ${clock(failed_at, 16)}.`);
    }
    timer = setTimeout(look, wait);
  };
  document.addEventListener("visibilitychange", look);
  timer = setTimeout(look, EVERY);
  sayCurrent();
}
setInterval(countOn, 1000);
