"""The report's page: what it carries comes back, it stays small, shows text as text, needs no network, and works in a browser."""

import base64
import dataclasses
import functools
import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from und3rstand_jax.report.content import HEAD, Attention, Correspondences, Layer, Pose, Report, ViewGeometry, ViewTruth
from und3rstand_jax.report.page import LARGEST_PAGE, page_text, write_page
from und3rstand_jax.report.page_arrays import pack
from und3rstand_jax.report.page_attention import pool_attention, quantise_weights
from und3rstand_jax.report.page_geometry import NO_POINT, STEPS_PER_UNIT, mean_distance, pack_geometry, quantise_confidence, quantise_points
from und3rstand_jax.report.page_values import evenly, to_json

NASTY = "</script><script>document.body.dataset.error='run'</script><b>&\"'é"
STEPS = ("self_attn", "cross_attn", "mlp")


def make_report(size, blocks, heads, has_truth=True, confident=True, seed=0, title="a pair"):
    """Layers that approach a slanted wall, each in a unit of its own; attention at random."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    focal = 0.8 * width
    depth = 2 + rows / height + 0.5 * np.sin(columns / width * 6)
    wall = np.stack([(columns - (width - 1) / 2) / focal * depth, (rows - (height - 1) / 2) / focal * depth, depth], -1)
    pose = np.eye(4)
    pose[0, 3] = 1.5
    ids = [*(f"decoder.{block}.{step}" for block in range(blocks) for step in STEPS), HEAD]
    layers = []
    for index, layer_id in enumerate(ids):
        noise, unit = 0.2 * (1 - index / len(ids)), 1.0 + index
        coarse = rng.normal(size=(2, -(-height // 16), -(-width // 16), 3)) * noise
        bumps = np.repeat(np.repeat(coarse, 16, 1), 16, 2)[:, :height, :width]
        fine = rng.normal(size=(2, height, width, 3)) * 0.02 * noise
        confidence = np.exp(rng.normal(size=(2, height, width)) * 0.1 + index / 10).astype(np.float32) if confident else (None, None)
        views = tuple(ViewGeometry(np.float32((wall + bumps[v] + fine[v]) * unit), confidence[v]) for v in (0, 1))
        known = Pose(np.diag([1.0, 1, 1, 1]) + (pose - np.eye(4)) * unit, 3.0 + index, 4.0) if index else Pose(None, None, None)
        pixels = np.stack([rng.integers(0, width, 90), rng.integers(0, height, 90)], -1)
        offsets = np.where(np.arange(90) % 3, np.arange(90.0), np.nan) if has_truth else None
        layers.append(
            Layer(
                layer_id,
                views,
                (0.5 / (index + 1), float("nan")),
                known,
                Correspondences(pixels, pixels, offsets),
                0.25 if has_truth else None,
            )
        )
    grid = (height // 16, width // 16)
    tokens = grid[0] * grid[1]
    weights = rng.standard_gamma(0.3, size=(2, heads, tokens, tokens), dtype=np.float32)
    weights /= weights.sum(-1, keepdims=True)
    # Every block has the same heads in another order: drawing so many numbers takes its time.
    attention = [Attention(block, np.roll(weights[0], block, 0), np.roll(weights[1], block, 0)) for block in range(blocks)]
    truth = tuple(ViewTruth(wall, depth < 3.2) for _ in (0, 1)) if has_truth else None
    images = tuple(rng.integers(0, 255, (height, width, 3), np.uint8) for _ in (0, 1))
    reference = "ground truth" if has_truth else "the model's own final pointmaps"
    facts = {
        "checkpoint": NASTY,
        "seconds": {"forward": 1.5},
        "files": [{"name": "a", "sha256": "0"}],
        "nothing": None,
        "not finite": float("inf"),
    }
    return Report(title, images, (grid, grid), tuple(layers), tuple(attention), truth, pose if has_truth else None, reference, 5.0, facts)


@functools.cache
def small_report():
    return make_report((64, 96), 3, 2, title=NASTY)


@functools.cache
def small_page():
    return page_text(small_report())


class Page(HTMLParser):
    """What is in a page: attributes of all elements, the scripts' texts, and the rest of the text."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.scripts, self.words, self.script = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.script = dict(attrs) if tag == "script" else None

    def handle_data(self, data):
        if self.script is None:
            self.words += data
        else:
            self.scripts.append((self.script, data))

    def handle_endtag(self, tag):
        self.script = None

    def values(self):
        return json.loads(next(text for script, text in self.scripts if script.get("id") == "values"))

    def arrays(self):
        found = [(json.loads(script["data-array"]), text) for script, text in self.scripts if "data-array" in script]
        return {spec["name"]: unpack(spec, text) for spec, text in found}


def unpack(spec, text):
    """What the page's script does: base64, gzip, byte planes, differences."""
    dtype = np.dtype(spec["dtype"])
    planes = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(dtype.itemsize, -1)
    stored = np.frombuffer(planes.T.tobytes(), dtype).reshape(spec["shape"])
    return np.cumsum(stored, axis=-1, dtype=dtype) if spec["differences"] else stored


@pytest.mark.parametrize("dtype, differences", [("uint8", True), ("uint8", False), ("int16", True), ("int16", False), ("float32", False)])
def test_arrays_come_back_exactly_also_where_differences_wrap_around(dtype, differences):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(3, 5, 7)).astype(dtype) if dtype == "float32" else rng.integers(*bounds(dtype), (3, 5, 7), dtype)
    packed = pack("name", array, differences)
    np.testing.assert_array_equal(unpack(packed.spec, packed.text), array)
    assert packed == pack("name", array, differences)


def bounds(dtype):
    return np.iinfo(dtype).min, np.iinfo(dtype).max


@pytest.mark.parametrize("dtype, differences", [("float64", False), ("float32", True)])
def test_arrays_that_would_not_come_back_are_refused(dtype, differences):
    with pytest.raises(TypeError, match=f"name.*{dtype}"):
        pack("name", np.zeros(3, dtype), differences)


def test_points_come_back_normalised_within_half_a_step():
    report, arrays = small_report(), Page(small_page()).arrays()
    valid = [view.valid for view in report.truth]
    for index, layer in enumerate(report.layers):
        norms = np.concatenate([np.linalg.norm(view.points, axis=-1)[mask] for view, mask in zip(layer.views, valid, strict=True)])
        for view in (0, 1):
            back = np.moveaxis(arrays[f"points{view + 1}"][index], 0, -1) / STEPS_PER_UNIT
            np.testing.assert_allclose(back, layer.views[view].points / norms.mean(), atol=0.5 / STEPS_PER_UNIT + 1e-5)


def test_layers_that_differ_only_in_their_unit_look_the_same():
    report = small_report()
    layer = report.layers[0]
    twice = dataclasses.replace(layer, views=tuple(ViewGeometry(2 * view.points, view.confidence) for view in layer.views))
    geometry = pack_geometry(dataclasses.replace(report, layers=(layer, twice)), 10**7)
    points = next(unpack(array.spec, array.text) for array in geometry.arrays if array.name == "points1")
    np.testing.assert_array_equal(points[0], points[1])
    assert geometry.scales[1] == pytest.approx(2 * geometry.scales[0])


def test_cameras_are_divided_by_the_same_scale_as_the_points_beside_them():
    report, values = small_report(), Page(small_page()).values()
    for layer, shown in zip(report.layers[1:], values["layers"][1:], strict=True):
        assert shown["pose"]["camera"][0][3] * shown["scale"] == pytest.approx(layer.pose.camera2_to_1[0, 3], rel=1e-5)
    truth = mean_distance([view.points for view in report.truth], [view.valid for view in report.truth])
    assert values["true_pose"][0][3] == pytest.approx(1.5 / truth, rel=1e-5)
    assert values["layers"][0]["pose"] == {"camera": None, "rotation": None, "translation": None}


def test_points_without_a_place_are_marked_and_far_ones_stay_on_their_ray():
    points = np.array([[[np.nan, 0, 1], [0, 0, 1e9], [3e6, 0, 4e6], [0, 0.5, 2]]])
    stored = np.moveaxis(quantise_points(points, 1.0), 0, -1)[0]
    assert (stored[0] == NO_POINT).all()
    np.testing.assert_allclose(stored[1:3] / STEPS_PER_UNIT, [[0, 0, 31.9], [0.6 * 31.9, 0, 0.8 * 31.9]], atol=1e-3)
    np.testing.assert_array_equal(stored[3], [0, STEPS_PER_UNIT / 2, 2 * STEPS_PER_UNIT])


def test_truth_is_shown_only_where_it_is_known():
    truth = Page(small_page()).arrays()["truth1"]
    np.testing.assert_array_equal((truth != NO_POINT).all(0), small_report().truth[0].valid)


def test_confidence_comes_back_within_half_a_step_of_its_logarithm():
    arrays, values = Page(small_page()).arrays(), Page(small_page()).values()
    low, high = values["geometry"]["log_confidence_range"]
    for index, layer in enumerate(small_report().layers):
        back = low + arrays["confidence2"][index] / 255 * (high - low)
        np.testing.assert_allclose(back, np.log(layer.views[1].confidence), atol=(high - low) / 510 + 1e-5)
    np.testing.assert_array_equal(quantise_confidence(np.array([np.nan, -1.0, np.e**2]), (0.0, 2.0)), [0, 0, 255])


def test_attention_comes_back_within_its_bound():
    arrays, info = Page(small_page()).arrays(), Page(small_page()).values()["attention"]
    assert info["pool"] == 1 and info["levels"] == 255
    for index, block in enumerate(small_report().attention):
        for name, given in (("1", block.from_view1), ("2", block.from_view2)):
            peaks = arrays[f"peaks{name}"][index][..., None]
            back = peaks * (arrays[f"weights{name}"][index] / 255.0) ** 2
            assert (np.abs(back - given) <= peaks * (1 / 255 + 1 / (4 * 255**2)) + 1e-7).all()


def test_pooled_attention_sums_keys_and_averages_queries():
    rng = np.random.default_rng(0)
    weights = rng.random((2, 3 * 5, 4 * 3)).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    pooled = pool_attention(weights, (3, 5), (4, 3), 2)
    assert pooled.shape == (2, 2 * 3, 2 * 2)
    np.testing.assert_allclose(pooled.sum(-1), 1, atol=1e-6)
    by_place = weights.reshape(2, 3, 5, 4, 3)
    np.testing.assert_allclose(pooled[:, 0, 0], by_place[:, :2, :2, :2, :2].sum((3, 4)).mean((1, 2)), atol=1e-6)
    # The last query cell is a single token, the last key cell two tokens high and one wide.
    np.testing.assert_allclose(pooled[:, -1, -1], by_place[:, 2, 4, 2:, 2].sum(-1), atol=1e-6)


def test_a_row_of_zeros_stays_zero():
    weights, peaks = quantise_weights(np.zeros((1, 4), np.float32), 255)
    assert not weights.any() and np.isfinite(peaks).all()


def test_matches_are_drawn_evenly_and_counted_in_full():
    matches = Page(small_page()).values()["layers"][0]["matches"]
    assert matches["count"] == 90 and matches["known"] == 60 and len(matches["pixels1"]) == 60
    assert matches["median_offset"] == np.median(np.arange(90)[np.arange(90) % 3 > 0])
    assert matches["offsets"][0] is None
    np.testing.assert_array_equal(evenly(5, 3), [0, 2, 4])
    assert evenly(0, 3).size == 0


def test_a_full_size_report_fits_and_says_what_was_left_out():
    page = page_text(make_report((384, 512), 12, 12, has_truth=False))
    assert len(page) <= LARGEST_PAGE < 10_000_000
    values = Page(page).values()
    assert values["geometry"]["stride"] > 1 and values["attention"]["pool"] > 1
    assert len(values["layers"]) == 37 and len(values["attention"]["blocks"]) == 12


def test_a_pocket_sized_report_fits_with_every_pixel_and_token():
    page = page_text(make_report((128, 128), 8, 4))
    assert len(page) <= LARGEST_PAGE
    values = Page(page).values()
    assert values["geometry"]["stride"] == 1 and values["attention"]["pool"] == 1


def test_a_budget_that_is_short_coarsens_the_grid():
    finest = pack_geometry(small_report(), 10**7)
    coarse = pack_geometry(small_report(), sum(len(array.text) for array in finest.arrays) // 3)
    assert finest.stride == 1 and coarse.stride > 1
    assert coarse.arrays[0].spec["shape"][2:] == [
        -(-(64 - coarse.stride // 2) // coarse.stride),
        -(-(96 - coarse.stride // 2) // coarse.stride),
    ]


def test_a_report_without_confidence_attention_or_truth_makes_a_page():
    bare = dataclasses.replace(make_report((32, 48), 1, 1, has_truth=False, confident=False), attention=())
    page = Page(page_text(bare))
    assert sorted(page.arrays()) == ["points1", "points2"]
    assert page.values()["attention"] is None and page.values()["true_pose"] is None


def test_text_of_the_report_is_shown_and_never_run():
    page = Page(small_page())
    assert page.values()["title"] == NASTY and page.values()["facts"]["checkpoint"] == NASTY
    assert page.words.count(NASTY) == 2  # in <title> and <h1>
    assert not any(text.startswith("document.body") for _, text in page.scripts)


def test_numbers_that_json_lacks_become_null():
    assert json.loads(to_json({"a": float("nan"), "b": [float("-inf"), 1.0], "c": np.float32(2)})) == {
        "a": None,
        "b": [None, 1.0],
        "c": 2.0,
    }
    assert Page(small_page()).values()["layers"][0]["errors"] == [0.5, None]


def test_the_page_names_nothing_outside_itself():
    page = Page(small_page())
    fetched = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data", "poster")]
    assert fetched and all(value.startswith("data:") for value in fetched)
    imports = json.loads(next(text for script, text in page.scripts if script.get("type") == "importmap"))["imports"]
    assert all(url.startswith("data:text/javascript;") for url in imports.values())
    modules = {name: base64.b64decode(url.partition(",")[2]).decode() for name, url in imports.items()}
    named = {found for text in modules.values() for found in re.findall(r"https?://[^\s\"'`]+", text)}
    assert named == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}  # names of languages, not addresses
    wanted = {found for name, text in modules.items() if name != "three" for found in re.findall(r'from "([^"]+)"', text)}
    assert wanted <= set(modules) and wanted | {"report/main"} == set(modules)
    assert "url(" not in small_page() and "@import" not in small_page()
    assert any(name == "content" and value.startswith("default-src 'none'") for _, name, value in page.attributes)


def test_the_page_carries_the_licence_of_the_library_inside_it():
    assert "Permission is hereby granted" in small_page() and "three.js authors" in small_page()


def test_the_page_is_ascii_so_that_characters_are_bytes(tmp_path):
    write_page(tmp_path / "report.html", small_report())
    assert (tmp_path / "report.html").read_bytes() == small_page().encode("ascii")


# In a browser

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")

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


def body_after(page: Path, profile: Path, fragment: str, *flags: str) -> dict[str, str]:
    """Attributes of the page's body once Chromium has shown it."""
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}", *flags]
    shown = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", f"{page.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name: value for tag, name, value in Page(shown.stdout).attributes if tag == "body"}


@needs_browser
@pytest.mark.parametrize(
    "flags", [("--use-angle=swiftshader", "--enable-unsafe-swiftshader"), ("--disable-3d-apis",)], ids=["webgl", "no-webgl"]
)
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
    assert body["data-webgl"] == ("true" if "--disable-3d-apis" not in flags else "false")


@needs_browser
def test_a_bare_report_of_one_layer_comes_up_in_a_browser(tmp_path):
    report = make_report((32, 48), 1, 1, has_truth=False, confident=False)
    page = tmp_path / "report.html"
    write_page(page, dataclasses.replace(report, attention=(), layers=report.layers[-1:]))
    body = body_after(page, tmp_path / "profile", "#layer=decoder.9.mlp", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    assert body.get("data-error") is None and body["data-ready"] == "true"
