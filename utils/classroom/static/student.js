// The telephone's page: join, vote on the pairs, change a vote, compare two models on a prompt.
"use strict";

const UNREAD = 350;  // milliseconds: a double tap must not vote on a pair that nobody has read
let me = { name: null };
let pairs = [];
let place = 0;
let shownAt = 0;
let sending = false;
const myKey = newKey();
let own = null;  // the prompt that is being compared: { id, status, voted }

const choicesOf = { a: "better_a", b: "better_b", tie: "tie", skip: "skip" };
const buttons = [...document.querySelectorAll("[data-choice]")];
const passes = (error) => [0, 429, 503].includes(error.status ?? 0);  // no network, or too busy
const asking = () => !$("asking").hidden;

async function begin() {
  try {
    me = await request("/api/hello");
    if (me.name) pairs = (await request("/api/pairs")).pairs;
  } catch (error) {
    tell(error.message, "bad");
    await pause(2);
    return begin();
  }
  $("join").hidden = Boolean(me.name);
  $("code-field").hidden = !me.code;
  $("code").required = me.code;
  $("tabs").hidden = !(me.name && me.prompts);
  if (!me.name) {
    const letters = decodeURIComponent(location.hash.slice(1));
    if (/^[A-Za-z]{6}$/.test(letters)) $("code").value = letters.toUpperCase();
    ($("code").value || !me.code ? $("name") : $("code")).focus();
    $("voting").hidden = $("asking").hidden = $("bar").hidden = true;
    return;
  }
  tell(`${word("hello")}${me.name}!`);
  place = Math.max(0, pairs.findIndex((pair) => !pair.choice));
  open(false);
}

$("join").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await request("/api/join", { code: $("code").value, name: $("name").value, key: myKey });
    history.replaceState(null, "", location.pathname + location.search);
    await begin();
  } catch (error) {
    tell(error.message, "bad");
  }
});

function open(prompts) {
  $("asking").hidden = !prompts;
  $("voting").hidden = prompts;
  $("tab-vote").setAttribute("aria-pressed", String(!prompts));
  $("tab-ask").setAttribute("aria-pressed", String(prompts));
  draw();
}

$("tab-vote").addEventListener("click", () => open(false));
$("tab-ask").addEventListener("click", () => open(true));

function draw() {
  if (!me.name) return;
  const done = pairs.filter((pair) => pair.choice).length;
  const pair = pairs[place];
  $("count").textContent = `${done} / ${pairs.length}`;
  $("filled").style.width = `${pairs.length ? (100 * done) / pairs.length : 0}%`;
  if (pair) {
    $("question").textContent = pair.question;
    $("a").textContent = pair.a || word("empty");
    $("b").textContent = pair.b || word("empty");
  }
  const ready = asking() ? own?.status === "done" && !own.voted : Boolean(pair);
  $("bar").hidden = asking() ? !own || own.status !== "done" : !pair;
  for (const id of ["previous", "next"]) $(id).classList.toggle("absent", asking());
  $("main").classList.toggle("with-bar", !$("bar").hidden);
  for (const button of buttons) {
    const pressed = !asking() && pair?.choice === button.dataset.choice;
    button.setAttribute("aria-pressed", String(pressed));
    button.disabled = !ready;
  }
  $("previous").disabled = place === 0;
  $("next").disabled = place >= pairs.length - 1;
}

function go(to) {
  place = Math.min(Math.max(to, 0), pairs.length - 1);
  shownAt = Date.now();
  draw();
  scrollTo(0, 0);
  $("question").focus({ preventScroll: true });  // a screen reader reads the new question
}

async function vote(choice) {
  if (asking()) return voteOnOwn(choice);
  const pair = pairs[place];
  if (!pair || sending || Date.now() - shownAt < UNREAD) return;
  sending = true;
  const key = newKey();
  while (sending) {
    try {
      await request("/api/vote", { item: pair.item, choice, key, name: me.name });
      sending = false;
    } catch (error) {
      if (!passes(error)) {
        sending = false;
        tell(error.message, "bad");
        if (error.word === "join") await begin();
        return;
      }
      tell(word("retry"), "bad");
      await pause(1.5);
    }
  }
  const changed = Boolean(pair.choice);
  pair.choice = choice;
  tell(`${word("saved")}${word(choicesOf[choice])}.`, "good");
  const later = pairs.findIndex((each, index) => index > place && !each.choice);
  const open = later >= 0 ? later : pairs.findIndex((each) => !each.choice);
  if (open < 0) tell(word("allDone"), "good");
  if (changed || open < 0) draw();
  else go(open);
}

for (const button of buttons) button.addEventListener("click", () => vote(button.dataset.choice));
$("previous").addEventListener("click", () => go(place - 1));
$("next").addEventListener("click", () => go(place + 1));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || $("bar").hidden) return;
  if (/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
  const choice = { a: "a", b: "b", t: "tie", s: "skip" }[event.key.toLowerCase()];
  if (choice) vote(choice);
  else if (asking()) return;
  else if (event.key === "ArrowLeft") go(place - 1);
  else if (event.key === "ArrowRight") go(place + 1);
});

// --- A prompt of one's own -----------------------------------------------------------------------

function drawOwn() {
  $("own").hidden = !own;
  if (!own) return;
  $("own-a").textContent = own.a;
  $("own-b").textContent = own.b;
  $("send").disabled = own.status === "waiting" || own.status === "writing";
  draw();
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const { id } = await request("/api/ask", { prompt: $("prompt").value });
    own = { id, status: "waiting", a: "", b: "" };
    while (own.status === "waiting" || own.status === "writing") {
      drawOwn();
      tell(word(own.status));
      await pause(0.7);
      try {
        own = { id, ...(await request(`/api/answers/${id}`)) };
      } catch (error) {  // a telephone that slept asks again
        if (!passes(error)) throw error;
      }
    }
    const fine = own.status === "done";
    tell(word(fine ? "which" : own.status), fine ? "" : "bad");
    drawOwn();
  } catch (error) {
    if (own) own.status = "failed";
    $("send").disabled = false;
    tell(error.message, "bad");
    if (error.word === "join") await begin();
  }
});

async function voteOnOwn(choice) {
  if (own?.status !== "done" || own.voted) return;
  try {
    const models = await request(`/api/answers/${own.id}/vote`, { choice });
    own.voted = true;
    tell(`${word("saved")}${word(choicesOf[choice])}. ${word("wroteBy", models)}`, "good");
    draw();
  } catch (error) {
    tell(error.message, "bad");
  }
}

redraws.push(draw);
speak();
begin();
