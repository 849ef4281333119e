'use strict';
// Formatting of values. Foreign strings (names, reasons, paths) are set by textContent only.

const element = (id) => document.getElementById(id);

/** A new element with a class and a text. */
function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Sets a text, if it is another: so that a selection in it stays. */
function say(where, text) {
  const next = String(text);
  if (where.textContent !== next) where.textContent = next;
}

/** Sets or takes away an attribute. */
function mark(where, name, value) {
  if (value === null || value === undefined) where.removeAttribute(name);
  else if (where.getAttribute(name) !== value) where.setAttribute(name, value);
}

const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

/** 950, 12,345, 1.23 M */
function count(value) {
  if (!isNumber(value)) return '–';
  if (Math.abs(value) < 100000) return Math.round(value).toLocaleString('en-US');
  for (const [unit, size] of [['T', 1e12], ['G', 1e9], ['M', 1e6], ['k', 1e3]]) {
    if (Math.abs(value) >= size) return `${three(value / size)} ${unit}`;
  }
  return String(value);
}

/** Three digits that count. */
function three(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** 12 B, 1.50 KiB */
function bytes(value) {
  if (!isNumber(value)) return '–';
  let size = value;
  for (const unit of ['B', 'KiB', 'MiB', 'GiB', 'TiB']) {
    if (Math.abs(size) < 1000 || unit === 'TiB') return `${unit === 'B' ? Math.round(size) : three(size)} ${unit}`;
    size /= 1024;
  }
  return '–';
}

/** 850 ns, 12.5 µs, 3.20 ms, 1.00 s */
function seconds(value) {
  if (!isNumber(value)) return '–';
  for (const [unit, size] of [['s', 1], ['ms', 1e-3], ['µs', 1e-6]]) {
    if (value >= size) return `${three(value / size)} ${unit}`;
  }
  return `${Math.round(value * 1e9)} ns`;
}

/** 5 s, 3 min 20 s, 2 h 5 min, 4 d 3 h */
function duration(ms) {
  if (!isNumber(ms)) return '–';
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

const percent = (value) => isNumber(value) ? `${value < 10 ? value.toFixed(1) : value.toFixed(0)} %` : '–';
const perSecond = (value) => isNumber(value) ? `${count(value)}/s` : '–';
const bytesPerSecond = (value) => isNumber(value) ? `${bytes(value)}/s` : '–';
const clock = (date) => date.toLocaleTimeString('en-GB');
const words = (text) => String(text).replaceAll('_', ' ');
const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;
