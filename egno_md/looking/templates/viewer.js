"use strict";
(() => {
  const view = JSON.parse(document.getElementById("view").textContent);
  const at = (id) => document.getElementById(id);

  // Positions are whole hundredths of an Angstrom about the middle of the picture, little endian.
  function frames(text, count) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const values = new Int16Array(bytes.buffer);
    const n = view.atoms.length;
    return Array.from({ length: count }, (_, f) =>
      Array.from({ length: n }, (_, i) => [0, 1, 2].map((d) => values[3 * (f * n + i) + d] / 100)));
  }

  function model(viewer, positions, style) {
    const made = viewer.addModel();
    made.addAtoms(view.atoms.map((atom, i) => ({ ...atom, x: positions[0][i][0], y: positions[0][i][1],
      z: positions[0][i][2], bonds: view.bonds[i], bondOrder: view.bonds[i].map(() => 1) })));
    made.setCoordinates(positions.flat(2), "array");
    made.setStyle({}, style);
    return made;
  }

  const canvas = document.createElement("canvas");
  if (!(canvas.getContext("webgl2") || canvas.getContext("webgl"))) {
    at("viewer").hidden = true;
    at("without").hidden = false;
    for (const control of document.querySelectorAll(".controls")) control.hidden = true;
    document.body.dataset.viewer = "without";
    return;
  }
  const viewer = $3Dmol.createViewer(at("viewer"), { backgroundColor: "white" });
  const sticks = (radius, color) => ({ stick: { radius, color } });
  const past = view.times.length - view.ahead;
  const run = model(viewer, frames(view.run, past), sticks(view.radius, "#999999"));
  const members = view.members.map((text, k) =>
    model(viewer, frames(text, view.ahead), sticks(view.radius * (view.members.length > 1 ? 0.4 : 0.8), view.colours[k])));

  function show(frame) {
    const ahead = frame - past;
    run.setFrame(Math.min(frame, past - 1));
    if (at("run").checked) run.show(); else run.hide();
    for (const member of members) {
      if (ahead >= 0) member.setFrame(ahead);
      if (ahead >= 0 && at("ensemble").checked) member.show(); else member.hide();
    }
    at("time").value = view.times[frame] + " ps" + (ahead >= 0 ? " (forecast; grey: the start)" : "");
    viewer.render();
  }

  const slider = at("frame");
  slider.max = view.times.length - 1;
  slider.value = view.times.length - 1;
  for (const id of ["frame", "run", "ensemble"]) at(id).addEventListener("input", () => show(Number(slider.value)));
  let playing = null;
  at("play").addEventListener("click", () => {
    at("play").textContent = playing ? "Play" : "Stop";
    if (playing) { clearInterval(playing); playing = null; return; }
    playing = setInterval(() => {
      slider.value = (Number(slider.value) + 1) % view.times.length;
      show(Number(slider.value));
    }, 150);
  });
  show(Number(slider.value));
  viewer.zoomTo();
  viewer.render();
  document.body.dataset.viewer = "shown";
})();
