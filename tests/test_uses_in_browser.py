"""The panel of what the model uses, in a real browser: by mouse, by keyboard, on a narrow screen, and where there is little to show."""

import html
import json

import pytest

from tests.browser import WITH_WEBGL, WITHOUT_WEBGL, body_after, needs_browser
from tests.page_cases import make_report, small_page
from tests.use_cases import make_lens, make_use, small_page_of_uses, small_use
from und3rstand_jax.report.page import page_text

WHEN_READY = """<script>
addEventListener("load", () => {
  const wait = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(wait);
    const all = (query) => [...document.querySelectorAll(query)];
    const tell = (found) => (document.body.dataset.seen = JSON.stringify(found));
    %s
  }, 20);
});
</script>"""

# Walks the second grid (cross-attention of view 2) by keys, selects, then clicks a head of self-attention, and one of the costliest.
USE = """
    const found = { layer: document.getElementById("now-id").textContent };
    const key = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    const selected = () => all(".head-cell[aria-selected=true]").map((cell) => cell.getAttribute("aria-label"));
    const reading = () => document.querySelector(".head-reading").textContent;
    const name = () => document.querySelector(".head-name").textContent;
    const grid = all(".head-grid")[1];
    found.stops = all(".head-grid").map((grid) => grid.querySelectorAll("[tabindex='0']").length);
    found.first = [name(), selected()];
    grid.querySelector("[role=gridcell]").focus();
    key("ArrowDown"); key("ArrowRight"); key("ArrowRight");
    found.walked = [reading(), selected().length, document.activeElement.tabIndex, grid.querySelectorAll("[tabindex='0']").length];
    key("Enter");
    const controls = all(".attention-controls select").map((select) => select.value);
    found.entered = [name(), selected(), document.querySelector(".attention-controls input").checked, controls];
    found.status = document.querySelector("#attention .status").textContent;
    found.own = document.querySelector(".head-detail .status").textContent;
    found.captions = all(".head-detail figcaption").map((caption) => caption.textContent);
    all(".head-grid")[2].querySelectorAll("[role=gridcell]")[0].click();
    found.clicked = [name(), all(".head-detail figcaption").map((caption) => caption.textContent)];
    found.points = all(".head-points > .geometry, .head-points > .absent").map((node) => node.hidden);
    all(".chips button")[1].click();
    found.chip = [name(), all(".head-points > .geometry, .head-points > .absent").map((node) => node.hidden)];
    const canvas = all(".head-points .map")[0], picture = () => canvas.toDataURL();
    const without = picture();
    all(".head-points .choice button")[1].click();
    found.differ = picture() !== without;
    const colours = () => all(".head-cell").map((cell) => cell.style.background);
    const byCost = colours();
    all(".heads .choice button")[1].click();
    const range = document.querySelector(".head-range").textContent;
    found.match = [colours().some((colour, i) => colour !== byCost[i]), all(".head-cell.unknown").length, range];
    found.stayed = document.getElementById("now-id").textContent === found.layer;
    found.labels = all(".head-cell").every((cell) => cell.getAttribute("aria-label").includes("without it"));
    found.lens = all("#lens-chart path.line.dashed").length;
    found.stage = all(".head-points .stage canvas").length;
    const chart = document.querySelector("#lens-chart svg"), { left, top } = chart.getBoundingClientRect();
    chart.dispatchEvent(new PointerEvent("pointermove", { clientX: left + 50, clientY: top + 20, bubbles: true }));
    found.tip = document.querySelector("#lens-chart .tip").textContent;
    tell(found);
"""


@needs_browser
@pytest.mark.parametrize("flags", [WITH_WEBGL, WITHOUT_WEBGL], ids=["webgl", "no-webgl"])
def test_heads_are_chosen_by_keys_and_mouse_and_shown(tmp_path, flags):
    page = tmp_path / "report.html"
    page.write_text(small_page_of_uses() + WHEN_READY % USE, "ascii")
    body = body_after(page, tmp_path / "profile", "#layer=4", *flags, milliseconds=20_000)
    assert "data-error" not in body
    found, use = json.loads(body["data-seen"]), small_use()

    def named(head):
        kind = {"cross_attn": "cross-attention", "self_attn": "self-attention"}[head.attention]
        return f"Block {head.block}, head {head.head}, {kind} of view {head.view}"

    assert found["stops"] == [1, 1, 1, 1]
    assert found["first"][0] == named(use.without[0].head) and len(found["first"][1]) == 1
    # Two heads: the second step to the right stays at the last.
    target = "Block 1, head 1, cross-attention of view 2"
    assert found["walked"][0].startswith(target) and found["walked"][1:] == [1, 0, 1]
    cost = use.cost["cross_attn"][1, 1, 1]
    assert f"view 1 changes by {cost[0]:+.4f}, of view 2 by {cost[1]:+.4f}".replace("-", "−") in found["walked"][0]
    assert found["entered"][0] == target and found["entered"][1][0].startswith(target) and len(found["entered"][1]) == 1
    assert found["entered"][2:] == [False, ["1", "1"]] and found["status"].startswith("Block 1, head 1: ")
    assert "of view 2" in found["status"] and found["own"].startswith("In this head, the patch in row 3, column 4 puts")
    assert found["captions"][0].startswith("View 2: the selected patch") and found["captions"][1] == "View 1: where it attends"
    assert found["clicked"][0] == "Block 0, head 0, self-attention of view 1" and found["clicked"][1][1] == "View 1: where it attends"
    is_kept = any(one.head == ("self_attn", 1, 0, 0) for one in use.without)
    assert found["points"] == [not is_kept, is_kept]
    assert found["chip"] == [named(use.without[1].head), [False, True]]
    assert found["differ"] and found["match"][:2] == [True, 12] and found["match"][2].startswith("0 %")
    assert "view 1, lens" in found["tip"] and "view 2, lens" in found["tip"]
    assert found["stayed"] and found["labels"] and found["lens"] == 2
    assert found["stage"] == (1 if flags == WITH_WEBGL else 0)


NARROW = """
    const box = (node) => node.getBoundingClientRect();
    const wide = all("main *").filter((node) => !node.closest(".table, svg, [hidden]") && box(node).right > innerWidth + 1);
    const { width, height } = box(document.querySelector(".head-cell"));
    const { scrollWidth, clientWidth } = document.documentElement;
    const found = { scrollWidth, clientWidth, wide: wide.map((node) => node.className), cell: [width, height] };
    parent.postMessage(JSON.stringify(found), "*");
"""


@needs_browser
def test_a_screen_of_360_pixels_scrolls_in_one_direction_only_also_with_twelve_heads(tmp_path):
    report = make_report((64, 96), 2, 12)
    (tmp_path / "report.html").write_text(page_text(report, make_use(report), make_lens(report)) + WHEN_READY % NARROW, "ascii")
    # No window of a browser is as narrow as a frame can be.
    frame = '<iframe src="report.html" style="width: 360px; height: 800px; border: 0"></iframe>'
    script = "<script>addEventListener('message', ({ data }) => (document.body.dataset.seen = data));</script>"
    page = tmp_path / "frame.html"
    page.write_text(f"<!doctype html><body>{script}{frame}</body>")
    body = body_after(page, tmp_path / "profile", "", *WITHOUT_WEBGL, milliseconds=20_000)
    found = json.loads(html.unescape(body["data-seen"]))
    assert found["scrollWidth"] <= found["clientWidth"] <= 360 and not found["wide"]
    # Large enough for a finger, by WCAG 2.2's least target size with its spacing.
    assert found["cell"][0] >= 22 and found["cell"][1] >= 24


FEW = """
    tell({
      uses: document.getElementById("uses").hidden, lens: document.getElementById("lens").hidden,
      modes: all(".heads .choice button").map((button) => button.textContent),
      label: document.querySelector(".head-cell")?.getAttribute("aria-label") ?? "",
      rings: document.getElementById("attention-note").textContent.includes("Hatched patches"),
    });
"""


@needs_browser
def test_photos_have_displacements_and_no_match_score_and_a_report_without_uses_no_panel(tmp_path):
    report = make_report(((64, 96), (48, 32)), 2, 2, has_truth=False)
    seen = []
    for name, text in (("photos", page_text(report, make_use(report), {})), ("none", small_page())):
        page = tmp_path / f"{name}.html"
        page.write_text(text + WHEN_READY % FEW, "ascii")
        body = body_after(page, tmp_path / f"profile-{name}", "", *WITHOUT_WEBGL, milliseconds=20_000)
        assert "data-error" not in body
        seen.append(json.loads(body["data-seen"]))
    photos, none = seen
    assert not photos["uses"] and photos["lens"] and photos["modes"] == ["cost of knocking it out", "attention on the strongest key"]
    assert "points of view 1 move by" in photos["label"] and not photos["rings"]
    assert none == {"uses": True, "lens": True, "modes": [], "label": "", "rings": True}
