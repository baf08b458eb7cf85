// Words of all pages in Vietnamese and English, the language switch, and requests to the server.
"use strict";

const WORDS = {
  vi: {
    title: "Bình chọn", join: "Vào lớp", code: "Mã lớp (6 chữ cái)", name: "Tên của bạn",
    nameHint: "Tên này hiện trên bảng của giáo viên. Mỗi người một tên.",
    vote: "Chấm điểm", ask: "Hỏi hai mô hình", question: "Câu hỏi", answer: "Câu trả lời",
    better_a: "A tốt hơn", better_b: "B tốt hơn", tie: "Ngang nhau", skip: "Bỏ qua",
    empty: "(câu trả lời trống)", previous: "Câu trước", next: "Câu sau",
    keys: "Bàn phím: a, b, t (ngang nhau), s (bỏ qua), ← →",
    saved: "Đã lưu: ", allDone: "Bạn đã chấm xong tất cả, cảm ơn! Có thể quay lại để sửa.",
    retry: "Mất kết nối, đang gửi lại …", of: " / ", hello: "Xin chào ",
    prompt: "Viết một câu hỏi", send: "Gửi", waiting: "Đang chờ đến lượt …",
    writing: "Đang viết …", which: "Câu nào hay hơn?", slow: "Quá lâu: hãy thử câu ngắn hơn.",
    failed: "Không trả lời được: hãy thử lại.", wroteBy: "Câu A do {a} viết, câu B do {b} viết.",
    projector: "Màn chiếu", scan: "Quét mã hoặc mở", joined: "đã vào lớp", votes: "phiếu",
    ties: "ngang nhau", skips: "bỏ qua", pairs: "cặp", cohen: "κ của Cohen, trung bình các cặp người chấm",
    fleiss: "κ của Fleiss, cả lớp", position: "Thiên lệch vị trí: tỷ lệ chọn A",
    interval: "khoảng tin cậy 95 %", undefinedFigure: "chưa tính được", perItem: "Số phiếu của từng cặp",
    showChoices: "Hiện lựa chọn và bất đồng", hideChoices: "Ẩn lựa chọn", first: "câu thứ nhất", second: "câu thứ hai",
    talk: "Bất đồng để thảo luận", noTalk: "Chưa có cặp nào mà các phiếu khác nhau.",
    training: "Huấn luyện DPO", teacher: "Giáo viên", secret: "Mã bí mật trong cửa sổ dòng lệnh", enter: "Mở trang",
    secretHint: "Mã chỉ dùng được một lần. Khởi động lại chương trình để có mã mới.",
    voters: "Người chấm", accepted: "đã nhận", waitingVotes: "đang chờ", refused: "từ chối", kappa: "κ với số đông", advice: "Nhận xét",
    acceptAll: "Nhận tất cả phiếu đang chờ", accept: "Nhận", refuse: "Từ chối", free: "Cho vào lại", actions: "Việc",
    freeAsk: "Cho phép một điện thoại khác dùng tên {name}? Điện thoại cũ sẽ phải vào lại.",
    train: "Chạy DPO trên phiếu đã nhận", stop: "Dừng", invite: "In thêm một mã bí mật ở cửa sổ dòng lệnh",
    invited: "Đã in ở cửa sổ dòng lệnh.", openProjector: "Mở màn chiếu", downloadVotes: "Tải phiếu (JSONL)", downloadPairs: "Tải các cặp (JSON)",
    nobody: "Chưa có ai vào lớp.", changed: "số phiếu đã đổi: ", voter: "Tên", kept: "nên giữ", few: "còn ít phiếu", leftOut: "nên loại: κ dưới 0,60",
    stage_idle: "Chưa chạy.", stage_starting: "Đang khởi động …", stage_loading: "Đang nạp mô hình …",
    stage_before: "Mô hình đang trả lời trước khi học …", stage_training: "Đang học: bước {step} / {steps}", stage_after: "Mô hình đang trả lời sau khi học …",
    stage_done: "Xong: {pairs} cặp, {steps} bước; KL = {kl} nat mỗi câu trả lời.", stage_failed: "Không thành công: {detail}", stage_stopped: "Đã dừng.",
    before: "Trước", after: "Sau", error_wait: "Quá nhiều yêu cầu: hãy đợi một chút.", error_code: "Mã không đúng: xem lại trên màn chiếu.",
    error_name: "Tên cần từ 1 đến 30 ký tự nhìn thấy được.", error_taken: "Tên này đã có người dùng: hãy chọn tên khác, hoặc báo giáo viên.",
    error_full: "Lớp đã đủ người.", error_join: "Hãy vào lớp trước.", error_long: "Câu hỏi quá dài.", error_empty: "Hãy viết một câu hỏi.",
    error_mine: "Câu hỏi trước của bạn chưa xong.", error_queue: "Nhiều câu hỏi đang chờ: thử lại sau.", error_gone: "Câu hỏi này không còn: hãy gửi lại.",
    error_secret: "Mã bí mật sai hoặc đã dùng rồi.", error_teacher: "Hãy mở trang giáo viên bằng mã bí mật trước.", error_none: "Chưa nhận phiếu nào: hãy nhận phiếu trước.",
    error_running: "Đang có một lần huấn luyện.", error_network: "Không tới được máy của giáo viên: kiểm tra Wi-Fi.",
  },
  en: {
    title: "Vote", join: "Join", code: "Class code (6 letters)", name: "Your name",
    nameHint: "The teacher sees this name. Each voter has a name of their own.",
    vote: "Vote", ask: "Ask two models", question: "Question", answer: "Answer",
    better_a: "A is better", better_b: "B is better", tie: "Tie", skip: "Skip",
    empty: "(empty answer)", previous: "Previous", next: "Next",
    keys: "Keyboard: a, b, t (tie), s (skip), ← →",
    saved: "Saved: ", allDone: "You have voted on all pairs, thank you! You can go back and change a vote.",
    retry: "No connection, sending again …", of: " / ", hello: "Hello ",
    prompt: "Write a question", send: "Send", waiting: "Waiting in the queue …",
    writing: "Writing …", which: "Which answer is better?", slow: "It took too long: try a shorter question.",
    failed: "It could not be answered: try again.", wroteBy: "{a} wrote answer A, {b} wrote answer B.",
    projector: "Projector", scan: "Scan, or open", joined: "joined", votes: "votes",
    ties: "ties", skips: "skips", pairs: "pairs", cohen: "Cohen's κ, mean over couples of voters",
    fleiss: "Fleiss' κ, the whole class", position: "Position bias: share of A",
    interval: "95 % interval", undefinedFigure: "not defined yet", perItem: "Votes per pair",
    showChoices: "Show choices and disagreement", hideChoices: "Hide choices", first: "first answer", second: "second answer",
    talk: "Disagreement to talk about", noTalk: "There is no pair yet on which votes differ.",
    training: "DPO training", teacher: "Teacher", secret: "Secret from the terminal", enter: "Open",
    secretHint: "A secret works once. Restart the program for a new one.",
    voters: "Voters", accepted: "accepted", waitingVotes: "waiting", refused: "refused", kappa: "κ with the majority", advice: "Advice",
    acceptAll: "Accept all waiting votes", accept: "Accept", refuse: "Refuse", free: "Let in again", actions: "Actions",
    freeAsk: "Let another telephone use the name {name}? The former one has to join again.",
    train: "Run DPO on the accepted votes", stop: "Stop", invite: "Print another secret in the terminal",
    invited: "It is printed in the terminal.", openProjector: "Open the projector", downloadVotes: "Download votes (JSONL)", downloadPairs: "Download pairs (JSON)",
    nobody: "Nobody has joined yet.", changed: "votes changed: ", voter: "Name", kept: "keep", few: "too few votes", leftOut: "leave out: κ below 0.60",
    stage_idle: "Not started.", stage_starting: "Starting …", stage_loading: "Loading the model …",
    stage_before: "The model answers before training …", stage_training: "Training: step {step} of {steps}", stage_after: "The model answers after training …",
    stage_done: "Done: {pairs} pairs, {steps} steps; KL = {kl} nats per answer.", stage_failed: "It failed: {detail}", stage_stopped: "Stopped.",
    before: "Before", after: "After", error_wait: "Too many requests: wait a moment.", error_code: "The code is wrong: look at the projector.",
    error_name: "A name has 1 to 30 visible characters.", error_taken: "Somebody has this name: choose another one, or tell the teacher.",
    error_full: "The class is full.", error_join: "Join the class first.", error_long: "The question is too long.", error_empty: "Write a question.",
    error_mine: "Your former question is still being answered.", error_queue: "Many questions are waiting: try again soon.", error_gone: "This question is gone: send it again.",
    error_secret: "The secret is wrong or has been used.", error_teacher: "Open the teacher's page with the secret first.", error_none: "No vote is accepted yet: accept votes first.",
    error_running: "A training is running.", error_network: "The teacher's laptop cannot be reached: check the Wi-Fi.",
  },
};

let language = "vi";
try { language = localStorage.getItem("language") || language; } catch { /* storage is off */ }
if (new URLSearchParams(location.search).get("lang") in WORDS) language = new URLSearchParams(location.search).get("lang");

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
