"""The report's page in a real browser: everything on it moves together, the cloud turns, and layers play."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.browser import WITH_WEBGL, WITHOUT_WEBGL, body_after, needs_browser
from tests.page_cases import make_report, small_page
from und3rstand_jax.geometry.pose import PoseEstimate
from und3rstand_jax.report.page import page_text

# Presses keys and buttons once the page is ready, and notes what then is to be seen.
USE = """<script>
addEventListener("load", () => {
  const seen = [], note = () => seen.push(document.getElementById("now-id").textContent);
  const key = (name) => { document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true })); note(); };
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    note();
    key("ArrowRight");
    key("Home");
    document.querySelectorAll("#pose tbody tr")[5].click(); note();
    const slider = document.getElementById("slider");
    slider.value = 7;
    slider.dispatchEvent(new Event("input")); note();
    document.body.dataset.seen = seen.join(" ");
    document.body.dataset.block = document.querySelector(".attention-controls select").value;
    document.querySelectorAll(".small-multiples button")[1].click();
    document.body.dataset.status = document.querySelector("#attention .status").textContent;
    document.body.dataset.linked = document.querySelector(".attention-controls input").checked;
    document.body.dataset.layer = document.getElementById("now-id").textContent;
  }, 20);
});
</script>"""


@needs_browser
@pytest.mark.parametrize("flags", [WITH_WEBGL, WITHOUT_WEBGL], ids=["webgl", "no-webgl"])
def test_slider_keys_table_and_attention_move_together_in_a_browser(tmp_path, flags):
    page = tmp_path / "report.html"
    page.write_text(small_page() + USE, "ascii")
    body = body_after(page, tmp_path / "profile", "#layer=4", *flags)
    assert "data-error" not in body
    assert body["data-ready"] == "true"
    assert body["data-seen"] == "decoder.1.self_attn decoder.1.cross_attn decoder.0.self_attn decoder.1.mlp decoder.2.cross_attn"
    assert body["data-block"] == "2"
    assert body["data-status"].startswith("Block 0, head 0: ")
    assert body["data-linked"] == "false" and body["data-layer"] == "decoder.2.cross_attn"
    assert body["data-webgl"] == ("true" if flags == WITH_WEBGL else "false")


CAMERA_HEAD = """<script>
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    document.body.dataset.own = [...document.querySelectorAll("#pose tfoot td")].map((cell) => cell.textContent).join("|");
    document.body.dataset.key = document.querySelectorAll("#pose .key.camera-head").length;
  }, 20);
});
</script>"""


@needs_browser
@pytest.mark.parametrize(
    ("views", "shown"), [(2, "camera head|2.00°|–"), (3, "camera head|4.00° / 9.00°|2.00° / –|6.00° / 9.00°")], ids=["pair", "three"]
)
def test_the_camera_heads_poses_stand_below_the_layers_in_a_browser(tmp_path, views, shown):
    own = (PoseEstimate(np.eye(4), 2.0, None), PoseEstimate(np.eye(4), 6.0, 9.0))[: views - 1]
    page = tmp_path / "report.html"
    page.write_text(page_text(dataclasses.replace(make_report((32, 48), 1, 2, views=views), own_poses=own)) + CAMERA_HEAD, "ascii")
    body = body_after(page, tmp_path / "profile", "", *WITHOUT_WEBGL)
    assert "data-error" not in body and (body["data-own"], body["data-key"]) == (shown, "1")


# What is there to see, and its width and height, once the page is ready.
SHOWN = """<script>
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const all = (query) => [...document.querySelectorAll(query)];
    const box = (node) => node.getBoundingClientRect();
    const boxes = (query) => [query, all(query).map(box).map(({ width, height }) => [width, height])];
    document.body.dataset.maps = JSON.stringify(all(".map-head b").map((title) => title.textContent));
    document.body.dataset.errors = box(document.getElementById("errors")).height > 0;
    document.body.dataset.summary = document.querySelector(".summary").textContent;
    document.body.dataset.boxes = JSON.stringify(Object.fromEntries(
      [".map", "#stage", ".attention-views canvas", ".photos img", ".matches"].map(boxes)));
  }, 20);
});
</script>"""


@needs_browser
def test_a_bare_report_of_one_layer_comes_up_without_errors_that_it_cannot_have_in_a_browser(tmp_path):
    report = make_report((32, 48), 1, 1, has_truth=False, confident=False)
    page = tmp_path / "report.html"
    report = dataclasses.replace(report, attention=(), layers=report.layers[-1:])
    page.write_text(page_text(report) + SHOWN, "ascii")
    body = body_after(page, tmp_path / "profile", "#layer=decoder.9.mlp", *WITH_WEBGL)
    assert body.get("data-error") is None and body["data-ready"] == "true"
    assert json.loads(body["data-maps"]) == ["Depth"] and body["data-errors"] == "false"
    assert body["data-summary"] == "The model’s own head, two views of 48×32 pixels."


@needs_browser
def test_views_of_any_shape_leave_the_page_usable_in_a_browser(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(page_text(make_report(((512, 32), (32, 512)), 1, 1)) + SHOWN, "ascii")
    body = body_after(page, tmp_path / "profile", "", "--window-size=1440,900", *WITH_WEBGL)
    assert "data-error" not in body
    assert json.loads(body["data-maps"]) == ["Depth", "Confidence", "Error", "True depth"] and body["data-errors"] == "true"
    boxes = {name: [height / width for width, height in sizes] for name, sizes in json.loads(body["data-boxes"]).items()}
    for shapes in (boxes[".map"][:2], boxes[".attention-views canvas"]):
        assert shapes == pytest.approx([16, 1 / 16], rel=0.2)  # the frame around a map counts
    tallest = {name: max(height for _, height in sizes) for name, sizes in json.loads(body["data-boxes"]).items()}
    assert tallest[".map"] < 270 and tallest["#stage"] <= 1000 and tallest[".attention-views canvas"] < 650
    assert tallest[".photos img"] == 150 and tallest[".matches"] <= 760


# Ranks of points by confidence, computed by the page's own module.
RANKS = """<script type="module">
import { createGeometry, TRUTH } from "report/geometry";
const array = (shape, values) => ({ shape, values });
const view = (levels, gap) => {
  const count = levels.length;
  const points = Int16Array.from({ length: 3 * count }, (_, i) => (i % count === gap ? -9 : 5));
  return [array([1, 3, 1, count], points), array([1, 1, count], Uint8Array.from(levels)), array([3, 1, count], points)];
};
const ranks = (levels1, levels2) => {
  const [[points1, confidence1, truth1], [points2, confidence2, truth2]] = [view(levels1, 0), view(levels2, -1)];
  const values = { layers: [{}], geometry: { steps_per_unit: 1, no_point: -9, stride: 1 } };
  const geometry = createGeometry(values, { points1, points2, confidence1, confidence2, truth1, truth2 });
  return [1, 2].map((view) => [...geometry.ranks(view, 0)]).concat([[...geometry.ranks(1, TRUTH)]]);
};
document.body.dataset.ranks = JSON.stringify({ tied: ranks([7, 7], [7, 7, 7]), half: ranks([7, 7, 9], [2]) });
</script>"""


# Picks patches in view 2 by mouse and by keys, once the page is ready.
PICK = """<script>
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const seen = [], layer = document.getElementById("now-id").textContent;
    const note = () => seen.push(document.querySelector("#attention .status").textContent);
    const canvas = document.querySelectorAll(".attention-views canvas")[1];
    const box = canvas.getBoundingClientRect();
    const click = { clientX: box.left + 0.75 * box.width, clientY: box.top + 0.9 * box.height, bubbles: true };
    document.querySelectorAll(".small-multiples button")[1].click();
    canvas.dispatchEvent(new MouseEvent("click", click)); note();
    for (const key of ["ArrowUp", "ArrowRight", "ArrowLeft"]) {
      canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })); note();
    }
    document.body.dataset.seen = seen.join("|");
    document.body.dataset.stayed = document.getElementById("now-id").textContent === layer;
    document.querySelector(".table").dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true }));
    document.body.dataset.scrolled = document.getElementById("now-id").textContent === layer;
    document.querySelectorAll("#pose tbody button")[1].click();
    document.body.dataset.layer = document.getElementById("now-id").textContent;
    document.body.dataset.charts = [...document.querySelectorAll(".chart svg")].every((svg) => svg.getAttribute("aria-label"));
  }, 20);
});
</script>"""


@needs_browser
def test_a_patch_of_a_view_of_another_size_is_picked_by_mouse_and_keys_in_a_browser(tmp_path):
    report = make_report(((64, 96), (48, 32)), 2, 2)
    page = tmp_path / "report.html"
    page.write_text(page_text(report) + PICK + RANKS, "ascii")
    body = body_after(page, tmp_path / "profile", "#layer=%", *WITH_WEBGL)
    assert "data-error" not in body
    seen = body["data-seen"].split("|")
    for text, (row, column) in zip(seen, ((3, 2), (2, 2), (2, 2), (2, 1)), strict=True):
        # One step is 1/255 of the square root; percent with two digits, or one.
        peak = 100 * report.attention[0].weights[1][0, 2 * (row - 1) + column - 1].max()
        found = re.match(rf"Block 0, head 0: the patch in row {row}, column {column} of view 2 puts ([\d.]+) % of", text)
        assert found and float(found[1]) == pytest.approx(peak, abs=0.06), text
        assert text.endswith(f"that patch would get {100 / 24:.2f} %.")
    assert body["data-stayed"] == body["data-scrolled"] == body["data-charts"] == "true"
    assert body["data-layer"] == "decoder.0.cross_attn"

    ranks = json.loads(body["data-ranks"])
    # No gap in view 2. Hidden is what is no greater than the threshold, at most 0.95: no point of equal certainty.
    assert ranks["tied"] == [[-1, 1], [1, 1, 1], [-1, 1]]
    assert ranks["half"] == [[-1, 0.75, 1], [0.25], [-1, 1, 1]]


# Counts what is drawn on the stage at several thresholds of certainty, then without the views. Frames are drawn when told: the browser
# would not keep up with its virtual time, and lets go of what it drew after each.
HIDE = """<script>
const waiting = [];
window.requestAnimationFrame = (draw) => waiting.push(draw);
const frame = () => waiting.splice(0).forEach((draw) => draw(performance.now()));
addEventListener("load", () => {
  const drawn = () => {
    const canvas = document.querySelector("#stage canvas");
    const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
    context.drawImage(canvas, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height).data.filter((value, i) => i % 4 === 3 && value > 0).length;
  };
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    frame();
    const counts = [];
    const slider = document.querySelector(".threshold input");
    for (const percent of [0, 45, 50, 95]) {
      slider.value = percent;
      slider.dispatchEvent(new Event("input"));
      frame();
      counts.push(drawn());
    }
    document.querySelectorAll(".switches input").forEach((box) => box.click());
    frame();
    document.body.dataset.counts = JSON.stringify([...counts, drawn()]);
  }, 20);
});
</script>"""


@needs_browser
def test_the_least_confident_are_hidden_and_a_view_of_equal_confidence_as_a_whole_or_not_at_all(tmp_path):
    report = make_report((32, 48), 1, 1, has_truth=False)
    sure = [dataclasses.replace(view, confidence=np.full((32, 48), 1.0 + v, np.float32)) for v, view in enumerate(report.layers[-1].views)]
    page = tmp_path / "report.html"
    page.write_text(
        page_text(dataclasses.replace(report, layers=(dataclasses.replace(report.layers[-1], views=tuple(sure)),))) + HIDE, "ascii"
    )
    body = body_after(page, tmp_path / "profile", "", *WITH_WEBGL)
    all_of_it, below_half, half, most, none = json.loads(body["data-counts"])
    assert all_of_it == below_half > half == most > none


# Plays from the layer before the last, to the end; then from the end, and pauses. A layer takes 900 ms.
PLAY = """<script>
addEventListener("load", () => {
  const seen = [];
  const [count, play] = ["now-count", "play"].map((id) => document.getElementById(id));
  const note = () => seen.push(`${count.textContent} ${play.classList.contains("playing")}`);
  const press = () => { play.click(); note(); };
  const after = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const wait = setInterval(async () => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    press();
    await after(1000); note();
    await after(1000); note();
    press();
    await after(2000); note();
    press();
    await after(2000); note();
    document.body.dataset.seen = seen.join("|");
  }, 20);
});
</script>"""


@needs_browser
def test_layers_play_to_the_end_start_over_from_there_and_pause(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(small_page() + PLAY, "ascii")
    body = body_after(page, tmp_path / "profile", "#layer=9", *WITHOUT_WEBGL, milliseconds=9000)
    played, paused = ["9 / 10 true", "10 / 10 true", "10 / 10 false"], ["1 / 10 true", "3 / 10 true", "3 / 10 false", "3 / 10 false"]
    assert body["data-seen"].split("|") == played + paused


# Turns the cloud with a mouse, and back with a double click. Frames are drawn when told, as above.
ORBIT = """<script>
const waiting = [];
window.requestAnimationFrame = (draw) => waiting.push(draw);
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const canvas = document.querySelector("#stage canvas");
    // Only a pointer that exists can be captured.
    canvas.setPointerCapture = canvas.releasePointerCapture = () => {};
    const picture = () => {
      // It glides to where it comes to rest.
      for (let frame = 0; frame < 300 && waiting.length; frame++) waiting.splice(0).forEach((draw) => draw(performance.now() + 1e4));
      const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
      context.drawImage(canvas, 0, 0);
      return context.getImageData(0, 0, canvas.width, canvas.height).data;
    };
    const difference = (one, other) => one.reduce((sum, value, i) => sum + Math.abs(value - other[i]), 0) / one.length;
    const mouse = { pointerId: 1, pointerType: "mouse", isPrimary: true, button: 0, buttons: 1, clientY: 100, bubbles: true };
    const point = (type, clientX) => canvas.dispatchEvent(new PointerEvent(type, { ...mouse, clientX }));
    const first = picture();
    const still = difference(first, picture());
    point("pointerdown", 100); point("pointermove", 180); point("pointerup", 180);
    const turned = difference(first, picture());
    canvas.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
    document.body.dataset.differences = JSON.stringify([still, turned, difference(first, picture())]);
  }, 20);
});
</script>"""


@needs_browser
def test_the_cloud_is_turned_with_the_mouse_and_back_by_a_double_click(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(page_text(make_report((32, 48), 1, 1)) + ORBIT, "ascii")
    # On a machine with other work the page is ready late by the browser's clock, which runs ahead while nothing happens.
    body = body_after(page, tmp_path / "profile", "", *WITH_WEBGL, milliseconds=30_000)
    assert "data-error" not in body
    still, turned, back = json.loads(body["data-differences"])
    assert still == 0 and turned > 1 and back < 0.05 * turned
