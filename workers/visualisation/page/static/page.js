"use strict";
// Updates the page: the server sends <main> whenever it changes, and the parts that differ are replaced.

const events = document.body.dataset.events;
const connection = document.getElementById("connection");
const RETRY_MS = 3000;
let source = null;
let ended = false;

// Changes only the nodes of `old` that differ from `fresh`, so that focus and scroll position are kept.
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
    const existing = old.childNodes[index];
    if (!existing) old.append(child);
    else if (existing.nodeName !== child.nodeName) existing.replaceWith(child);
    else morph(existing, child);
  });
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("main");
  if (!fresh) return;
  morph(document.querySelector("main"), fresh);
  if (fresh.dataset.title) document.title = fresh.dataset.title;
}

function showConnection(state, text) {
  connection.className = state;
  if (connection.textContent !== text) connection.textContent = text;
}

function close() {
  if (source) source.close();
  source = null;
}

function connect() {
  if (source || ended || document.hidden) return;
  const opened = new EventSource(events);
  source = opened;
  opened.onopen = () => showConnection("connected", "live");
  opened.onmessage = (message) => show(message.data);
  opened.addEventListener("end", () => {
    ended = true;
    close();
    showConnection("", "");
  });
  opened.onerror = () => {
    if (ended || source !== opened) return;
    showConnection("lost", "connection lost, reconnecting");
    if (opened.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(connect, RETRY_MS);
    }
  };
}

// A hidden page closes its connection: browsers allow only a few connections to one server.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : connect()));
addEventListener("pagehide", close);
addEventListener("pageshow", connect);
connect();
