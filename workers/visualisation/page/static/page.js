"use strict";
// Updates the page: the server sends <main> whenever it changes, and the parts that differ are replaced.

const events = document.body.dataset.events;
const connection = document.getElementById("connection");
const RETRY_MS = 3000;
let source = null;
let ended = false;

// Writes the local time beside each time, which the server writes in UTC.
function addLocalTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const when = new Date(time.dateTime);
    if (!when.getTimezoneOffset()) continue;
    const isSameDay = when.getDate() === when.getUTCDate();
    const day = isSameDay ? {} : { month: "short", day: "numeric" };
    const local = document.createElement("small");
    const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    local.textContent = ` ${when.toLocaleString([], { ...day, ...clock })} local`;
    time.append(local);
  }
}

// Changes only the nodes of `old` that differ from `fresh`, so that focus, ticks and scroll position are kept.
// An element with an id keeps its node also where others were inserted before it.
function morph(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const children = [...fresh.childNodes];
  const ofId = new Map([...old.children].filter((one) => one.id).map((one) => [one.id, one]));
  children.forEach((child, index) => {
    const existing = old.childNodes[index];
    const same = child.id ? ofId.get(child.id) : existing;
    if (!same || same.nodeName !== child.nodeName || same.id !== child.id) {
      old.insertBefore(child, existing ?? null);
      return;
    }
    if (same !== existing) old.insertBefore(same, existing);
    morph(same, child);
  });
  while (old.childNodes.length > children.length) old.lastChild.remove();
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("main");
  if (!fresh) return;
  addLocalTimes(fresh);
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
  if (!events || source || ended || document.hidden) return;
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
addLocalTimes(document);
connect();
