// The language switch and requests to the server; WORDS is in words.js, which the server writes.
"use strict";

let language = "vi";
try { language = localStorage.getItem("language") || language; } catch { /* storage is off */ }
if (new URLSearchParams(location.search).get("lang") in WORDS) language = new URLSearchParams(location.search).get("lang");

if (!Object.hasOwn(WORDS, language)) language = "vi";  // another page of this address wrote it

const $ = (id) => document.getElementById(id);
const redraws = [];  // functions that draw the page again in another language

function word(key, values = {}) {
  const text = WORDS[language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "–");
}

function number(value, digits = 2) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;  // never HTML: texts of models and of students stay text
  return made;
}

function speak() {
  document.documentElement.lang = language;
  for (const each of document.querySelectorAll("[data-word]")) each.textContent = word(each.dataset.word);
  for (const each of document.querySelectorAll("[data-label]")) each.setAttribute("aria-label", word(each.dataset.label));
  for (const each of document.querySelectorAll("[data-language]"))
    each.setAttribute("aria-pressed", String(each.dataset.language === language));
  for (const redraw of redraws) redraw();
}

for (const each of document.querySelectorAll("[data-language]"))
  each.addEventListener("click", () => {
    language = each.dataset.language;
    try { localStorage.setItem("language", language); } catch { /* storage is off */ }
    tell("");  // the last message was in the other language
    speak();
  });

// A request; an answer that is not OK becomes an Error whose `word` the page can translate.
async function request(path, data) {
  const options = data === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(data),
  };
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store" });
  } catch {
    throw Object.assign(new Error(word("error_network")), { word: "network", status: 0 });
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const known = WORDS[language][`error_${found.error}`];
  throw Object.assign(new Error(known ?? found.detail ?? String(answer.status)), { word: found.error, status: answer.status });
}

function tell(text, mood = "") {
  $("message").textContent = text;
  $("message").className = `message ${mood}`;
}

// 128 random bits: the name of a click or of a visitor, so that a repeated request changes nothing.
const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, "0")).join("");

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// The state of the training, with a bar and the answers before and after: projector and teacher.
function drawTraining(state, box) {
  const stage = state.stage;
  const metrics = state.result?.metrics ?? {};
  const kl = metrics.kl === undefined || metrics.kl === null ? "–" : number(metrics.kl, 1);
  const status = element("p", stage === "failed" ? "message bad" : "", word(`stage_${stage}`, { ...state, ...metrics, kl }));
  const parts = [status];
  if (["starting", "loading", "before", "training", "after"].includes(stage)) {
    const bar = element("progress");
    bar.setAttribute("aria-label", word("training"));
    if (stage === "training") { bar.max = state.steps; bar.value = state.step; }
    parts.push(bar);
  }
  if (stage === "done") {
    const table = element("table", "before-after");
    const head = table.createTHead().insertRow();
    for (const name of ["question", "before", "after"]) {
      const cell = element("th", "", word(name));
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    for (const row of state.result.answers) {
      const line = body.insertRow();
      for (const name of ["question", "before", "after"]) line.append(element("td", "text", row[name] || word("empty")));
    }
    const scroll = element("div", "scroll");
    scroll.append(table);
    parts.push(scroll);
  }
  const drawn = JSON.stringify([state, language]);
  if (box.dataset.drawn !== drawn) { box.dataset.drawn = drawn; box.replaceChildren(...parts); }
}
