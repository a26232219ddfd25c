"""The page of more views than two in a real browser: a patch of any view is followed into all others, and views come and go."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.browser import WITH_WEBGL, WITHOUT_WEBGL, body_after, needs_browser
from tests.page_cases import make_report
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.geometry.pose import PoseEstimate
from und3rstand_jax.report.page import page_text

# Picks a patch of view 3, then small maps, matches, views in the cloud, once the page is ready. Frames are drawn when told.
USE = """<script>
const waiting = [];
window.requestAnimationFrame = (draw) => waiting.push(draw);
const frame = () => waiting.splice(0).forEach((draw) => draw(performance.now() + 1e4));
addEventListener("load", () => {
  const all = (query) => [...document.querySelectorAll(query)];
  const texts = (query) => all(query).map((node) => node.textContent);
  const total = (context, { width, height }) => context.getImageData(0, 0, width, height).data.reduce((sum, value) => sum + value, 0);
  const painted = (canvas) => total(canvas.getContext("2d"), canvas);
  const drawn = () => {
    const canvas = document.querySelector("#stage canvas");
    const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
    context.drawImage(canvas, 0, 0);
    return total(context, canvas);
  };
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const seen = {};
    const canvases = all(".attention-views canvas");
    const before = canvases.map(painted);
    const box = canvases[2].getBoundingClientRect();
    const place = { clientX: box.left + 0.3 * box.width, clientY: box.top + 0.6 * box.height };
    canvases[2].dispatchEvent(new MouseEvent("click", { ...place, bubbles: true }));
    seen.changed = canvases.map((canvas, i) => painted(canvas) !== before[i]);
    seen.captions = texts(".attention-views figcaption");
    seen.status = document.querySelector("#attention .status").textContent;
    const small = () => painted(document.querySelector(".small-multiples canvas"));
    const targets = all(".attention-controls .choice button");
    seen.targets = targets.filter((button) => !button.hidden).map((button) => button.textContent);
    const first = small();
    targets[3].click();
    seen.smallChanged = small() !== first;
    seen.pressed = targets.findIndex((button) => button.getAttribute("aria-pressed") === "true");
    const lead = () => document.getElementById("matches-lead").textContent.split(" after")[0];
    seen.leads = [lead()];
    all("#matches .choice button")[2].click();
    seen.leads.push(lead());
    seen.head = texts("#pose thead th");
    seen.row = texts("#pose tbody tr.current td");
    seen.maps = all(".map-row").map((row) => row.querySelectorAll(".map").length);
    seen.names = texts(".map-views span");
    seen.lines = all("#error-chart path.line").length;
    all("#cloud-controls .choice button")[1].click();
    frame();
    seen.drawn = [drawn()];
    for (const view of [1, 2, 3]) { all(".switches input")[view].click(); frame(); seen.drawn.push(drawn()); }
    all(".all-or-none button")[1].click(); frame(); seen.drawn.push(drawn());
    all(".all-or-none button")[0].click(); frame(); seen.drawn.push(drawn());
    seen.checked = all(".switches input").map((input) => input.checked);
    const colours = (query) => all(query).map((node) => getComputedStyle(node).getPropertyValue("--own"));
    seen.colours = [".photos figcaption", "#error-chart path.line", ".attention-views figcaption"].map(colours);
    document.body.dataset.seen = JSON.stringify(seen);
  }, 20);
});
</script>"""


@needs_browser
@pytest.mark.parametrize("has_truth", [True, False])
def test_every_part_of_the_page_of_four_views_works_together(tmp_path, has_truth):
    report = make_report((48, 64), 2, 2, views=4, has_truth=has_truth)
    page = tmp_path / "report.html"
    page.write_text(page_text(report) + USE, "ascii")
    body = body_after(page, tmp_path / "profile", "", "--window-size=1280,1000", *WITH_WEBGL, milliseconds=20_000)
    assert "data-error" not in body
    seen = json.loads(body["data-seen"])
    assert seen["changed"] == [True] * 4
    # Row 2, column 2 of view 3; the last block, the mean of its heads.
    weights = report.attention[1].weights[2][:, 5].mean(axis=0)
    shares = [float(re.search(r"([\d.]+) %", caption)[1]) for caption in seen["captions"] if "attends" in caption]
    assert shares == pytest.approx([100 * part.sum() for part in np.split(weights, 3)], abs=1.0)
    assert seen["captions"][2].startswith("View 3: the selected patch")
    assert [caption[:6] for caption in seen["captions"]] == ["View 1", "View 2", "View 3", "View 4"]
    assert "row 2, column 2 of view 3" in seen["status"] and seen["status"].endswith(f"that patch would get {100 / 36:.2f} %.")
    assert seen["targets"] == ["view 1", "view 2", "view 4"] and seen["smallChanged"] and seen["pressed"] == 3
    of_views = "Mutual nearest neighbours among the points of views 1 and"
    assert seen["leads"] == [f"{of_views} 2", f"{of_views} 4"]
    assert seen["head"] == ["layer", "median", "view 2", "view 3", "view 4"]
    assert seen["row"] == ["head", *["9.00° / 4.00°"] * 4]
    assert seen["maps"] == [4] * (4 if has_truth else 3) and seen["names"] == ["View 1", "View 2", "View 3", "View 4"]
    assert seen["lines"] == 4
    *shown, nothing, again = seen["drawn"]
    assert len(set(shown)) == 4 and min(shown) > nothing and again == shown[0] and seen["checked"] == [True] * 4
    photos, lines, panels = seen["colours"]
    assert photos == lines == panels and len(set(photos)) == 4


LENS = """<script>
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const lines = [...document.querySelectorAll("#lens-chart path.line.dashed")];
    document.body.dataset.seen = JSON.stringify(lines.map((line) => [line.getAttribute("d"), line.getTotalLength()]));
  }, 20);
});
</script>"""


@needs_browser
def test_the_lens_is_a_line_though_it_reads_only_some_layers(tmp_path):
    report = make_report((48, 64), 2, 2, views=4)
    lens = {f"decoder.{block}.mlp": (0.5, 0.4, 0.3, 0.2) for block in range(2)}
    page = tmp_path / "report.html"
    page.write_text(page_text(report, None, lens) + LENS, "ascii")
    body = body_after(page, tmp_path / "profile", "", "--window-size=1280,1000", *WITHOUT_WEBGL)
    lines = json.loads(body["data-seen"])
    assert len(lines) == 4 and all(drawn.count("M") == drawn.count("L") == 1 and length > 50 for drawn, length in lines)


EDGES = """<script>
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const all = (query) => [...document.querySelectorAll(query)];
    const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = (canvas) => new Set(new Uint32Array(pixels(canvas).buffer)).size;
    const seen = { large: all(".attention-views canvas").slice(1).map(colours), small: all(".small-multiples canvas").map(colours) };
    seen.captions = all(".attention-views figcaption").map((caption) => caption.textContent);
    seen.status = document.querySelector("#attention .status").textContent;
    seen.note = document.getElementById("attention-note").textContent;
    document.body.dataset.seen = JSON.stringify(seen);
  }, 20);
});
</script>"""


@needs_browser
def test_even_attention_has_one_colour_also_in_cells_that_are_cut_off_at_the_far_edges(tmp_path):
    report = make_report((48, 80), 2, 2, has_truth=False, views=3)
    # 3×5 tokens in cells of 2×2: the last row and column have half as many, their corner a quarter.
    cells = np.outer([2, 1], [2, 2, 1]).ravel() / 30
    even = [Attention.to_others(block, [np.tile(cells, (2, 6, 2)).astype(np.float32)] * 3) for block in range(2)]
    grey = (np.full((48, 80, 3), 90, np.uint8),) * 3
    page = tmp_path / "report.html"
    page.write_text(page_text(dataclasses.replace(report, images=grey, attention=tuple(even), pool=2)) + EDGES, "ascii")
    seen = json.loads(body_after(page, tmp_path / "profile", "", "--window-size=1280,1000", *WITHOUT_WEBGL)["data-seen"])
    assert seen["large"] == [1, 1] and seen["small"] == [1] * 6
    # Numbers are sums all the same.
    assert [caption.endswith("where it attends, 50.0 %") for caption in seen["captions"]] == [False, True, True]
    assert "puts 13.3 % of its weight on the brightest patch; spread evenly, that patch would get 13.3 %." in seen["status"]
    assert "2×2 tokens are pooled (of 3×5): weights are sums, colours are weights per token." in seen["note"]


LOOK = """<script>
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const all = (query) => [...document.querySelectorAll(query)];
    const box = (node) => node.getBoundingClientRect();
    all(".attention-views figcaption")[0].textContent = "a caption of several lines ".repeat(9);
    const [holder, foot] = [document.querySelector("#pose .table"), document.querySelector("#pose tfoot")];
    const seen = { note: document.getElementById("pose-note").textContent };
    seen.tops = all(".attention-views canvas").map((canvas) => box(canvas).top);
    seen.foot = [0, holder.scrollHeight].map((top) => ((holder.scrollTop = top), box(holder).bottom - box(foot).bottom));
    document.body.dataset.seen = JSON.stringify(seen);
  }, 20);
});
</script>"""


@needs_browser
@pytest.mark.parametrize("focal_known", [True, False])
def test_views_stand_level_the_camera_head_stays_in_sight_and_unknown_poses_have_a_reason(tmp_path, focal_known):
    report = make_report((48, 64), 12, 2, has_truth=False, views=4)
    own = (PoseEstimate(np.eye(4), 1.0, 2.0),) * 3
    report = dataclasses.replace(report, own_poses=own, intrinsics=report.intrinsics if focal_known else None)
    page = tmp_path / "report.html"
    page.write_text(page_text(report) + LOOK, "ascii")
    seen = json.loads(body_after(page, tmp_path / "profile", "", "--window-size=1280,1000", *WITHOUT_WEBGL)["data-seen"])
    assert len(seen["tops"]) == 4 and len(set(seen["tops"])) == 1
    assert seen["foot"] == pytest.approx([1, 1], abs=1)
    assert seen["note"].startswith(
        "Without ground truth" if focal_known else "No focal length fits view 1 in the model's own final pointmaps"
    )
