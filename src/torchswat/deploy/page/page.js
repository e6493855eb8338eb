"use strict";
const [place, file, words, picture, state, guesses] =
  ["place", "file", "words", "picture", "state", "guesses"].map((id) => document.getElementById(id));

function row(guess) {
  const line = document.createElement("tr");
  const meter = document.createElement("meter");
  meter.value = guess.probability;
  const cells = [guess.name, (100 * guess.probability).toFixed(1) + " %", meter];
  for (const content of cells) {
    const cell = document.createElement("td");
    cell.append(content); // text is text: names of classes are never read as HTML
    line.append(cell);
  }
  return line;
}

async function show(chosen) {
  guesses.hidden = true;
  state.className = "";
  state.textContent = "Looking …";
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(chosen);
  picture.hidden = false;
  words.hidden = true;
  try {
    const answer = await fetch("predict", { method: "POST", body: chosen });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    guesses.tBodies[0].replaceChildren(...found.guesses.map(row));
    guesses.hidden = false;
    state.textContent = "It took " + found.milliseconds.toFixed(1) + " ms.";
  } catch (problem) {
    state.className = "wrong";
    state.textContent = problem.message;
  }
}

for (const name of ["dragover", "dragleave", "drop"]) {
  place.addEventListener(name, (event) => {
    event.preventDefault();
    place.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });
}
file.addEventListener("change", () => file.files.length && show(file.files[0]));
