const slides = [...document.querySelectorAll(".slide")];
let now = 0;
function fit() {                      // a slide whose text is too high gets smaller letters
  for (const slide of slides) {
    const body = slide.querySelector(".body");
    let size = 100;
    body.style.fontSize = "";
    while ((body.scrollHeight > body.clientHeight || body.scrollWidth > body.clientWidth) && size > 45) {
      size -= 3;
      body.style.fontSize = size + "%";
    }
  }
}
function scale() {
  const by = Math.min(innerWidth / 1280, innerHeight / 720);
  for (const slide of slides) slide.style.transform = `scale(${by}) translate(-50%, -50%)`;
}
function show(index) {
  now = Math.max(0, Math.min(slides.length - 1, index));
  slides.forEach((slide, place) => slide.classList.toggle("on", place === now));
  history.replaceState(null, "", "#" + (now + 1));
}
const turns = { ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1 };
addEventListener("keydown", (event) => {
  if (event.key in turns) { show(now + turns[event.key]); event.preventDefault(); }
  if (event.key === "Home") show(0);
  if (event.key === "End") show(slides.length - 1);
});
addEventListener("click", (event) => {
  if (!event.target.closest("a")) show(now + (event.clientX > innerWidth / 3 ? 1 : -1));
});
addEventListener("resize", scale);
addEventListener("load", () => { fit(); document.body.dataset.ready = "1"; });
scale();
show((parseInt(location.hash.slice(1)) || 1) - 1);
