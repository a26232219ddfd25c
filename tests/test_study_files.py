"""What studies have in common: means, parts that are computed once, files that hold every number, and the page."""

import csv
import io
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.test_model_properties import LINEAR, backbone
from tests.walls import wall_pairs
from und3rstand_jax.analysis.studies.study import Mean, Setting, Study, Table, mean_of, median_of, over_pairs
from und3rstand_jax.analysis.studies.study_files import as_csv, as_json, format_study, read_study, write_study
from und3rstand_jax.report.study_page import study_page
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.pieces import Pieces


def study(**changes):
    figure = Figure()
    figure.subplots().plot([0, 1])
    values = {
        "name": "made",
        "title": "A study <made up>",
        "meaning": {"layer": "which", "error": "how far", "count": "how many"},
        "records": [{"layer": "a", "error": Mean(0.1, 0.01), "count": 2}, {"layer": "b", "error": Mean(np.inf, np.nan), "count": None}],
        "tables": [Table("Layers & errors", ("layer", "error"), (("a", "0.1"), ("b", "∞")))],
        "figures": {"": figure, "more": figure},
        "findings": ["a is better than b by 0.1"],
        "facts": {"alignment": "scale"},
        "by_pair": {"a": np.array([[0.1, 0.2], [0.3, np.nan]], np.float32)},
    }
    return Study(**(values | changes))


def test_means_are_over_known_values_with_the_standard_error_of_the_mean():
    values = [1.0, 2.0, np.nan, 4.0]
    assert mean_of(values) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1) / np.sqrt(3)))
    assert mean_of([3.0])[0] == 3.0 and np.isnan(mean_of([3.0])[1])
    assert np.isnan(mean_of([np.nan])).all() and np.isnan(median_of([])).all()
    assert mean_of([1.0, np.inf])[0] == np.inf


def test_a_median_has_the_standard_error_of_the_bootstrap():
    values = np.random.default_rng(0).standard_normal(400)
    found = median_of(values)
    assert found.mean == np.median(values)
    # Of a normal distribution's median it is √(π/2)·σ/√n.
    assert found.error == pytest.approx(np.sqrt(np.pi / 2) / np.sqrt(400), rel=0.25)
    assert median_of(values) == found


def test_pairs_are_joined_in_order_and_what_is_done_is_not_done_again(tmp_path):
    calls = []

    def compute(some):
        calls.append(some)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"number": np.array(list(some)), "square": np.array([[n, n * n] for n in some])}

    pieces = Pieces(tmp_path / "pieces", {"question": 1})
    setting = Setting(backbone(LINEAR), None, wall_pairs(*[0.0] * 5), batch_size=2, pieces=pieces)
    with pytest.raises(KeyboardInterrupt):
        over_pairs(setting, "numbers", compute)
    found = over_pairs(setting, "numbers", compute)
    assert calls == [range(2), range(2, 4), range(4, 5), range(4, 5)]
    assert found["number"].tolist() == [0, 1, 2, 3, 4] and found["square"][4].tolist() == [4, 16]
    over_pairs(setting, "other numbers", compute)
    assert len(calls) == 7


def test_chunks_are_of_one_size(tmp_path):
    setting = Setting(backbone(LINEAR), None, wall_pairs(*[0.0] * 5), batch_size=4)
    sizes = over_pairs(setting, "sizes", lambda some: {"size": np.full(len(some), len(some))})["size"]
    assert sizes.tolist() == [3, 3, 3, 2, 2]


def test_json_has_everything_unrounded_and_is_read_back(tmp_path):
    write_study(tmp_path, study(), {"seed": 3})
    text = (tmp_path / "made.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    found = read_study(tmp_path / "made.json")
    assert found["facts"] == {"seed": 3, "alignment": "scale"}
    assert found["records"][0] == {"layer": "a", "error": {"mean": 0.1, "error": 0.01}, "count": 2}
    assert found["records"][1] == {"layer": "b", "error": {"mean": "inf", "error": None}, "count": None}
    assert found["pairs"] == {"a": [[0.1, 0.2], [0.3, None]]}  # the shortest that are the same in float32
    assert {file.name for file in tmp_path.iterdir()} == {
        "made.json", "made.csv", "made.png", "made.svg", "made_more.png", "made_more.svg"
    }  # fmt: skip


@pytest.mark.parametrize("fault", [{"version": 99}, {"format": "another"}, {"records": 3}, {"findings": [1]}, {"pairs": None}])
def test_what_is_no_study_is_refused(fault, tmp_path):
    (tmp_path / "made.json").write_text(json.dumps(json.loads(json.dumps(as_json(study(records=[], by_pair={}), {}))) | fault))
    with pytest.raises(DataError, match=r"made\.json"):
        read_study(tmp_path / "made.json")


def test_csv_has_a_column_for_each_standard_error():
    lines = list(csv.DictReader(io.StringIO(as_csv(study()))))
    assert lines[0] == {"layer": "a", "error": "0.1", "error_error": "0.01", "count": "2"}
    assert lines[1] == {"layer": "b", "error": "inf", "error_error": "nan", "count": ""}


def test_the_same_numbers_make_the_same_files(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        write_study(tmp_path / place, study(), {})
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_text_has_findings_before_tables():
    text = format_study(study())
    assert text.index("a is better") < text.index("Layers & errors") < text.index("∞")


def test_the_page_holds_all_studies_loads_nothing_and_escapes_what_it_shows():
    page = study_page([study(), study(name="second", findings=["<script>alert(1)</script>"])], "Studies of <x>", {"data": "a & b"})
    assert page.isascii() and "<script" not in page and "Studies of &lt;x&gt;" in page and "a &amp; b" in page
    assert re.findall(r'<section id="(\w+)"', page) == ["made", "second"]
    assert re.findall(r'<a href="#(\w+)"', page) == ["made", "second"]
    # Links lead to files beside the page, images are in it.
    assert set(re.findall(r'(?:href|src)="([^"#]{4,40})', page)) >= {"made.csv", "made.json", "second.csv", "second.json"}
    assert not re.search(r'(?:href|src)="(?!data:|#|made\.|second\.)', page)
    assert page.count("data:image/png;base64,") == 4 and "&#8734;" in page
