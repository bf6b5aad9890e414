"use strict";
// Keeps the page up to date: the server sends <main> anew whenever it changed, and what differs is put in place.

const events = document.body.dataset.events;
const connection = document.getElementById("connection");
const RETRY_MS = 3000;
let source = null;
let ended = false;

// Makes `old` like `fresh` without replacing what is the same, so that focus and scrolling stay where they are.
function morph(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  while (old.childNodes.length > fresh.childNodes.length) old.lastChild.remove();
  const children = [...fresh.childNodes];
  children.forEach((child, index) => {
    const there = old.childNodes[index];
    if (!there) old.append(child);
    else if (there.nodeName !== child.nodeName) there.replaceWith(child);
    else morph(there, child);
  });
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("main");
  if (!fresh) return;
  morph(document.querySelector("main"), fresh);
  if (fresh.dataset.title) document.title = fresh.dataset.title;
}

function say(state, text) {
  connection.className = state;
  if (connection.textContent !== text) connection.textContent = text;
}

function close() {
  if (source) source.close();
  source = null;
}

function watch() {
  if (source || ended || document.hidden) return;
  const opened = new EventSource(events);
  source = opened;
  opened.onopen = () => say("connected", "live");
  opened.onmessage = (message) => show(message.data);
  opened.addEventListener("end", () => {
    ended = true;
    close();
    say("", "");
  });
  opened.onerror = () => {
    if (ended || source !== opened) return;
    say("lost", "connection lost, trying again");
    if (opened.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(watch, RETRY_MS);
    }
  };
}

// A page that nobody sees asks for nothing: browsers allow a server only a few connections at a time.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : watch()));
addEventListener("pagehide", close);
addEventListener("pageshow", watch);
watch();
