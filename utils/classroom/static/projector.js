// The projector: join code, counts, agreement with intervals, disagreement, before and after.
"use strict";

let state = null;
let revealed = false;  // the choices stay hidden while the class votes, so that nobody follows others

// A figure with its interval on a scale from `least` to `most`; `mark` is where nothing is special.
function figureCard(title, found, least, most, mark) {
  const card = element("div", "card figure");
  card.append(element("h3", "", title));
  if (found.value === null) {
    card.append(element("p", "quiet", word("undefinedFigure")));
    return card;
  }
  const range = `${number(found.low)} – ${number(found.high)}`;
  card.append(element("div", "value", number(found.value)), element("div", "small quiet", `${word("interval")}: ${range}`));
  const scale = element("div", "scale");
  scale.setAttribute("aria-hidden", "true");
  const at = (value) => `${100 * Math.min(1, Math.max(0, (value - least) / (most - least)))}%`;
  const interval = element("div", "range");
  interval.style.left = at(found.low);
  interval.style.right = `calc(100% - ${at(found.high)})`;
  const line = element("div", "mark");
  line.style.left = at(mark);
  const point = element("div", "point");
  point.style.left = at(found.value);
  scale.append(interval, line, point);
  card.append(scale);
  return card;
}

function itemLine(item, most) {
  const line = element("li");
  const votes = element("div", "votes");
  const { first, second, tie } = item.votes;
  const total = first + second + tie;
  votes.setAttribute("role", "img");
  const spoken = `${word("first")} ${first}, ${word("second")} ${second}, ${word("tie")} ${tie}`;
  votes.setAttribute("aria-label", revealed ? spoken : `${total} ${word("votes")}`);
  const parts = revealed ? { first, second, tie } : { all: total };
  for (const [name, count] of Object.entries(parts)) {
    const part = element("div", name);
    part.style.width = `${(100 * count) / Math.max(1, most)}%`;
    votes.append(part);
  }
  line.append(element("span", "number quiet", String(item.number)), votes, element("span", "count", String(total)));
  return line;
}

function talkAbout(item) {
  const box = element("article", "talk");
  box.append(element("h3", "text", `${item.number}. ${item.question}`));
  const answers = element("div", "answers");
  for (const [side, colour] of [["first", "a"], ["second", "b"]]) {
    const answer = element("div", `answer ${colour}`);
    answer.append(element("h3", "", `${item.votes[side]} ${word("votes")}`), element("div", "text", item[side] || word("empty")));
    answers.append(answer);
  }
  box.append(answers, element("p", "small quiet", `${word("tie")}: ${item.votes.tie} · ${word("skip")}: ${item.votes.skip}`));
  return box;
}

function draw() {
  $("reveal").textContent = word(revealed ? "hideChoices" : "showChoices");
  $("reveal").setAttribute("aria-pressed", String(revealed));
  if (!state) return;
  $("campaign").textContent = state.campaign;
  $("join").hidden = $("items-card").hidden = false;
  $("address").textContent = state.address;
  $("code").textContent = state.code ?? "";
  const { votes, ties, skips } = state.tally;
  $("people").textContent = `${state.joined} ${word("joined")} · ${votes} ${word("votes")} (${ties} ${word("ties")}, ${skips} ${word("skips")})`;
  $("figures").replaceChildren(
    figureCard(word("fleiss"), state.fleiss, -0.2, 1, 0),
    figureCard(word("cohen"), state.cohen, -0.2, 1, 0),
    figureCard(word("position"), state.position, 0, 1, 0.5),
  );
  const most = Math.max(...state.items.map(({ votes: v }) => v.first + v.second + v.tie), 1);
  $("items").replaceChildren(...state.items.map((item) => itemLine(item, most)));
  $("legend").hidden = $("talk").hidden = !revealed;
  const talk = state.talk.length ? state.talk.map(talkAbout) : [element("p", "quiet", word("noTalk"))];
  $("talk").replaceChildren(element("h2", "", word("talk")), ...talk);
  $("training-card").hidden = state.training.stage === "idle";
  drawTraining(state.training, $("training"));
}

$("reveal").addEventListener("click", () => { revealed = !revealed; draw(); });

async function watch() {
  for (;;) {
    try {
      state = await request("/api/projector");
      if (!$("qr").src) $("qr").src = "/qr.svg";
      $("message").hidden = true;
      draw();
    } catch (error) {
      $("message").hidden = false;
      tell(error.message, "bad");
    }
    await pause(2);
  }
}

redraws.push(draw);
speak();
watch();
