
"use strict";
document.documentElement.classList.add("enhanced");

for (const button of document.querySelectorAll("button[data-copies]")) {
  const code = document.getElementById(button.dataset.copies);
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

for (const scene of document.querySelectorAll(".scene")) {
  const plates = scene.querySelectorAll(".pictures-of-scene img");
  const stage = scene.querySelector(".stage");
  const range = scene.querySelector("input[type=range]");
  const choices = scene.querySelectorAll("input[type=radio]");
  const tags = scene.querySelectorAll(".tag");
  const below = plates[0].cloneNode();
  const above = plates[0].cloneNode();
  above.className = "above";
  stage.prepend(below, above);

  const divide = () => {
    stage.style.setProperty("--split", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${tags[0].textContent}`);
  };
  const show = (image, plate, tag, name) => {
    image.src = plate.src;
    image.alt = plate.alt;
    tag.textContent = name;
  };
  const model = scene.querySelectorAll(".pictures-of-scene strong")[1].textContent;
  const choose = () => {
    const chosen = [...choices].find((choice) => choice.checked);
    const other = [plates[chosen.value], chosen.dataset.name];
    const pair = [[plates[1], model], other];
    // What the model improves on stands on the left of it, what is made of it on the right.
    if (chosen.value === "0") pair.reverse();
    show(above, pair[0][0], tags[0], pair[0][1]);
    show(below, pair[1][0], tags[1], pair[1][1]);
    divide();
  };
  const point = (event) => {
    const box = stage.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    range.value = Math.round(100 * Math.min(Math.max(share, 0), 1));
    divide();
  };
  range.addEventListener("input", divide);
  choices.forEach((choice) => choice.addEventListener("change", choose));
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    point(event);
  });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  scene.querySelector(".viewer").hidden = false;
  choose();
}
