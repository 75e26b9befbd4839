// Takes over what has changed, in place: what is open, focused or scrolled stays as it is.
"use strict";
const EVERY_MS = 5000;
let tag = "";
let waiting = 0;

// Makes `old` like `fresh`, node by node; whether a <details> is open is the reader's.
function follow(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.id !== fresh.id) {
    old.replaceWith(document.importNode(fresh, true));
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes])
    if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((node, at) => {
    if (at < before.length) follow(before[at], node);
    else old.append(document.importNode(node, true));
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function say(words) {
  const line = document.getElementById("stale");
  if (line.textContent !== words) line.textContent = words;
}

async function look() {
  clearTimeout(waiting);
  try {
    const answer = await fetch("/", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (answer.status === 200) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      fresh.getElementById("stale").textContent = document.getElementById("stale").textContent;
      for (const part of ["header", "main"])
        follow(document.querySelector(part), fresh.querySelector(part));
      document.title = fresh.title;
      tag = answer.headers.get("ETag");
    } else if (answer.status !== 304) throw new Error(answer.status);
    say("");
  } catch {
    say("The command that serves this page does not answer: what you see is old. Start invoke dashboard again.");
  }
  waiting = setTimeout(look, EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
waiting = setTimeout(look, EVERY_MS);
