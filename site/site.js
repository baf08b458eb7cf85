// The site works without this file; it adds the theme, the menu, the switch to the same section,
// the glossary over a term, copying, and the search.
"use strict";
const $ = (id) => document.getElementById(id);
const main = $("main");

// --- Theme and menu ---------------------------------------------------------------------------
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it holds for this page */ }
});
const showMenu = (open) => {
  $("contents").classList.toggle("open", open);
  $("menu").setAttribute("aria-expanded", open);
  if (open) $("contents").scrollTop = 0;
};
$("menu").addEventListener("click", () => showMenu(!$("contents").classList.contains("open")));
$("contents").addEventListener("click", (event) => event.target.closest("a") && showMenu(false));

// --- The section in view: marked in the contents, and where the other language opens ---------
const places = [...main.querySelectorAll("[id]")];
const links = new Map([...document.querySelectorAll(".sections a")].map((a) => [a.hash.slice(1), a]));
const address = $("switch").getAttribute("href");
const follow = () => {
  const top = 130; // pixels: below the bar, with room for a page that still moves
  const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
  const above = places.filter((each) => each.getBoundingClientRect().top <= (end ? innerHeight : top));
  const here = above.at(-1);
  $("switch").setAttribute("href", here && scrollY > 0 ? `${address}#${here.id}` : address);
  const section = above.findLast((each) => links.has(each.id));
  for (const [id, link] of links) {
    if (section?.id === id) link.setAttribute("aria-current", "location");
    else link.removeAttribute("aria-current");
  }
};
let waiting = false;
addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; follow(); });
}, { passive: true });
addEventListener("load", follow);

// --- Code can be copied; what scrolls sideways can be reached with the keyboard ---------------
for (const code of main.querySelectorAll("pre.code")) {
  const box = document.createElement("div"), button = document.createElement("button");
  box.className = "code-box";
  button.className = "copy";
  button.type = "button";
  button.textContent = main.dataset.copy;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = main.dataset.copied;
    setTimeout(() => { button.textContent = main.dataset.copy; }, 1500);
  });
  code.replaceWith(box);
  box.append(code, button);
}
const reach = () => {
  for (const each of main.querySelectorAll("pre, .scroll, .formula")) {
    if (each.scrollWidth > each.clientWidth) {
      each.tabIndex = 0;
      each.setAttribute("role", "group");
      const { code, table, formula, output } = main.dataset;
      const kinds = { ".code": code, ".scroll": table, ".formula": formula };
      const kind = Object.keys(kinds).find((selector) => each.matches(selector));
      each.setAttribute("aria-label", kinds[kind] ?? output);
    }
  }
};
addEventListener("load", reach);
addEventListener("resize", reach);

// --- The glossary over a term -----------------------------------------------------------------
const terms = JSON.parse($("terms").textContent), tip = $("tip");
let shownFor = null, touched = false;
const hideTip = () => { tip.hidden = true; shownFor?.removeAttribute("aria-describedby"); shownFor = null; };
const showTip = (link) => {
  const [own, other, sentence] = terms[new URL(link.href).hash.slice(1)];
  tip.innerHTML = `<b>${own} ${own === other ? "" : `<i>· ${other}</i>`}</b>${sentence}`;
  tip.hidden = false;
  const place = link.getBoundingClientRect(), room = document.documentElement.clientWidth;
  const left = Math.max(16, Math.min(place.left, room - tip.offsetWidth - 16));
  const below = place.bottom + tip.offsetHeight + 8 < innerHeight;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${scrollY + (below ? place.bottom + 4 : place.top - tip.offsetHeight - 4)}px`;
  link.setAttribute("aria-describedby", "tip");
  shownFor = link;
};
let leaving;
for (const link of main.querySelectorAll("a.term")) {
  link.addEventListener("mouseenter", () => { clearTimeout(leaving); showTip(link); });
  link.addEventListener("mouseleave", () => { leaving = setTimeout(hideTip, 250); });
  link.addEventListener("focus", () => showTip(link));
  link.addEventListener("blur", hideTip);
  link.addEventListener("pointerdown", (event) => { touched = event.pointerType === "touch" && shownFor !== link; });
  link.addEventListener("click", (event) => { if (touched) { event.preventDefault(); showTip(link); } });
}
tip.addEventListener("mouseenter", () => clearTimeout(leaving)); // so that it can be read and copied
tip.addEventListener("mouseleave", hideTip);

// --- The search: diacritics are folded, words typed with diacritics come first ----------------
// A letter with marks becomes the letter, so that positions stay those of the text. Words are
// compared from their beginning; a short one as a whole, except the last, which is being typed.
const fold = (text) => [...text.normalize("NFC")].map((c) =>
  (c === "đ" || c === "Đ" ? "d" : c.normalize("NFD")[0]).toLowerCase()).join("");
const safe = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const dialog = $("search"), query = $("query"), results = $("results"), hint = $("hint");
const { own, other } = document.body.dataset; // folders, with the files of the index
const indices = {};
const load = (folder) => new Promise((done) => {
  if (indices[folder]) return done(indices[folder]);
  const script = document.createElement("script"); // fetch would not work on a page from a disk
  script.src = `${folder}search.js`;
  script.onload = () => {
    indices[folder] = window.courseIndex.map((e) => {
      const x = e.x.normalize("NFC"), names = [e.t, e.o ?? ""].map((name) => name.normalize("NFC"));
      const titles = names.map(fold), marked = `${names.join(" ")} ${x}`.toLowerCase();
      return { ...e, x, names, titles, folded: fold(x), marked, address: `${folder}${e.p}#${e.a}` };
    });
    done(indices[folder]);
  };
  document.head.append(script);
});
const pattern = (word, position, all) => {
  const end = word.length > 3 || position === all.length - 1 ? "" : "(?![\\p{L}\\p{N}])";
  const letters = word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  return new RegExp(`(?<![\\p{L}\\p{N}])${letters}${end}`, "gu");
};
const has = (text, word) => text.search(word) >= 0;
const found = (index, text) => {
  const letters = fold(text).split(/\s+/).filter(Boolean), words = letters.map(pattern);
  const typed = text.normalize("NFC").toLowerCase().trim(), phrase = letters.join(" ");
  const marked = typed.split(/\s+/);
  return index.map((entry) => {
    const title = entry.titles.join(" "); // a term has two names
    if (!words.every((word) => has(entry.folded, word) || has(title, word))) return null;
    let score = words.filter((word) => has(title, word)).length * 3;
    score += entry.titles.includes(phrase) ? 20 : title.includes(phrase) ? 8 : entry.folded.includes(phrase) ? 4 : 0;
    score += typed !== phrase && entry.marked.includes(typed) ? 6 : 0;
    score += typed !== phrase && marked.every((word) => entry.marked.includes(word)) ? 6 : 0;
    return { entry, score, words, phrase };
  }).filter(Boolean).sort((a, b) => b.score - a.score);
};
const marks = (text, folded, words) => {
  const inside = new Array(text.length).fill(false);
  for (const word of words) {
    for (const { 0: hit, index: at } of folded.matchAll(word)) inside.fill(true, at, at + hit.length);
  }
  return [...text].map((c, i) => safe(c)).map((c, i) => (inside[i] ? `<mark>${c}</mark>` : c)).join("").replaceAll("</mark><mark>", "");
};
const excerpt = ({ entry, words, phrase }) => {
  const places = [entry.folded.indexOf(phrase), ...words.map((word) => entry.folded.search(word))];
  const at = Math.max(0, (places.find((place) => place >= 0) ?? 0) - 60);
  const start = at ? entry.x.indexOf(" ", at) + 1 : 0, space = entry.x.indexOf(" ", start + 165);
  const end = space < 0 ? entry.x.length : space;
  return (start ? "… " : "") + marks(entry.x.slice(start, end), entry.folded.slice(start, end), words) + (entry.x.length > end ? " …" : "");
};
const ask = async () => {
  const text = query.value.trim();
  let hits = text ? found(await load(own), text) : [];
  if (text && !hits.length) hits = found(await load(other), text); // words of the other language
  if (text !== query.value.trim()) return; // more was typed while an index was loaded
  const { none, many, one } = hint.dataset;
  hint.textContent = !text ? hint.dataset.hint : !hits.length ? none : hits.length === 1 ? one : many.replace("{n}", hits.length);
  results.innerHTML = hits.slice(0, 30).map((hit) => {
    const { address, names, titles, n } = hit.entry;
    const name = names.map((each, i) => marks(each, titles[i], hit.words)).filter(Boolean).join(" · ");
    return `<li><a href="${address}"><b>${name}</b> <small>${safe(n)}</small><span>${excerpt(hit)}</span></a></li>`;
  }).join("");
  results.scrollTop = 0;
};
const openSearch = () => { if (!dialog.open) { dialog.showModal(); query.select(); load(own); } };
$("find").addEventListener("click", openSearch);
query.addEventListener("input", ask);
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest("#results a")) dialog.close();
});
dialog.querySelector("form").addEventListener("submit", (event) => {
  const first = results.querySelector("a"); // Enter opens the first result
  if (event.submitter?.value === "close" && document.activeElement !== query) return;
  event.preventDefault();
  if (first) first.click();
});
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const stops = [query, ...results.querySelectorAll("a")];
  stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(document.activeElement) + step))].focus();
  event.preventDefault();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") { hideTip(); showMenu(false); }
  const typing = event.target.closest?.("input, textarea");
  if ((event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey))) {
    event.preventDefault();
    openSearch();
  }
});
