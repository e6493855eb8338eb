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

let shown = 0; // images so far: an answer that comes late is not taken for that of the next one

async function show(chosen) {
  const number = ++shown;
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
    if (number !== shown) return;
    if (!answer.ok) throw new Error(found.error);
    guesses.tBodies[0].replaceChildren(...found.guesses.map(row));
    guesses.hidden = false;
    state.textContent = "It took " + found.milliseconds.toFixed(1) + " ms.";
  } catch (problem) {
    if (number !== shown) return;
    state.className = "wrong";
    state.textContent = problem.message;
  }
}

for (const name of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => event.preventDefault()); // beside it the browser would open the file
  place.addEventListener(name, (event) => {
    place.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });
}
picture.addEventListener("error", () => {
  picture.hidden = true; // what the browser cannot show leaves room for the next
  words.hidden = false;
});
file.addEventListener("change", () => file.files.length && show(file.files[0]));
