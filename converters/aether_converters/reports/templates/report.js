
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
  const range = scene.querySelector("input");
  const choice = scene.querySelector("select");
  const tags = scene.querySelectorAll(".tag");
  const below = plates[0].cloneNode();
  const above = plates[0].cloneNode();
  above.className = "above";
  stage.prepend(below, above);

  const divide = () => {
    stage.style.setProperty("--split", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${tags[0].textContent}`);
  };
  const choose = () => {
    const chosen = choice.selectedOptions[0].dataset;
    [[above, chosen.left, chosen.leftName, tags[0]], [below, chosen.right, chosen.rightName, tags[1]]]
      .forEach(([image, number, name, tag]) => {
        image.src = plates[number].src;
        image.alt = plates[number].alt;
        tag.textContent = name;
      });
    divide();
  };
  const point = (event) => {
    const box = stage.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    range.value = Math.round(100 * Math.min(Math.max(share, 0), 1));
    divide();
  };
  range.addEventListener("input", divide);
  choice.addEventListener("change", choose);
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    point(event);
  });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  scene.querySelector(".viewer").hidden = false;
  choose();
}
