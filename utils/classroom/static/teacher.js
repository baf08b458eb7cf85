// The teacher's page: accept votes, let somebody in again, train, download.
"use strict";

let state = null;

async function act(path, data, done) {
  try {
    const found = await request(path, data);
    await refresh();
    if (done) tell(done(found), "good");
  } catch (error) {
    tell(error.message, "bad");
  }
}

function voterLine(voter) {
  const line = element("tr");
  const name = element("th", "text", voter.name);
  name.scope = "row";
  line.append(name);
  for (const key of ["accepted", "waiting", "refused"]) line.append(element("td", "number", String(voter[key])));
  line.append(element("td", "number", voter.kappa === null ? "–" : number(voter.kappa)));
  line.append(element("td", "small", word(voter.kappa === null ? "few" : voter.kept ? "kept" : "leftOut")));
  const actions = element("div", "row");
  for (const [label, run] of [
    ["accept", () => act("/api/decide", { status: "accepted", names: [voter.name] })],
    ["refuse", () => act("/api/decide", { status: "refused", names: [voter.name] })],
    ["free", () => confirm(word("freeAsk", voter)) && act("/api/free", { name: voter.name })],
  ]) {
    const button = element("button", "button", word(label));
    button.setAttribute("aria-label", `${word(label)}: ${voter.name}`);
    button.addEventListener("click", run);
    actions.append(button);
  }
  const cell = element("td");
  cell.append(actions);
  line.append(cell);
  return line;
}

function draw() {
  $("enter").hidden = Boolean(state);
  $("desk").hidden = !state;
  if (!state) return;
  $("campaign").textContent = `${word("teacher")} · ${state.campaign}`;
  const votes = `${state.accepted} ${word("accepted")}, ${state.waiting} ${word("waitingVotes")}`;
  $("where").textContent = [state.address, state.code, `${state.pairs} ${word("pairs")}`, votes].filter(Boolean).join(" · ");
  $("accept-all").disabled = state.waiting === 0;
  $("train").disabled = state.running || state.accepted === 0;
  $("stop").disabled = !state.running;
  const drawn = JSON.stringify([state.voters, language]);
  if ($("voters").dataset.drawn !== drawn) {  // so that a focused button keeps its focus
    $("voters").dataset.drawn = drawn;
    const head = element("tr");
    for (const key of ["voter", "accepted", "waitingVotes", "refused", "kappa", "advice", "actions"]) {
      const cell = element("th", ["accepted", "waitingVotes", "refused", "kappa"].includes(key) ? "number" : "", word(key));
      cell.scope = "col";
      head.append(cell);
    }
    const lines = state.voters.map(voterLine);
    if (!lines.length) {
      const cell = element("td", "quiet", word("nobody"));
      cell.colSpan = 7;
      lines.push(element("tr"));
      lines[0].append(cell);
    }
    $("voters").replaceChildren(head, ...lines);
  }
  drawTraining(state.training, $("training"));
}

async function refresh() {
  try {
    state = await request("/api/teacher");
  } catch (error) {
    if (error.word === "teacher") state = null;
    else tell(error.message, "bad");
  }
  draw();
}

async function enter(secret) {
  await act("/api/enter", { secret }, () => "");
  $("secret").value = "";
}

$("enter").addEventListener("submit", (event) => { event.preventDefault(); enter($("secret").value.trim()); });
$("accept-all").addEventListener("click", () => act("/api/decide", { status: "accepted" }, ({ changed }) => `${word("changed")}${changed}`));
$("train").addEventListener("click", () => act("/api/train", {}));
$("stop").addEventListener("click", () => act("/api/stop", {}));
$("invite").addEventListener("click", () => act("/api/invite", {}, () => word("invited")));

async function watch() {
  const secret = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);  // it must not stay in the bar
  await refresh();
  if (!state && secret) await enter(secret);
  for (;;) {
    await pause(2);
    if (state) await refresh();
  }
}

redraws.push(draw);
speak();
watch();
