"""The reference: its examples run and print what they show, every public name has one, and its tables say what the code says."""

import ast
import contextlib
import doctest
import fnmatch
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import und3rstand_jax as u3d
from tests import names_table, options_table
from tests.tiny import CONFIG, MAST3R_CONFIG
from und3rstand_jax.analysis import ablation_files, evaluation_files
from und3rstand_jax.analysis.studies import study_files
from und3rstand_jax.checkpoint import format as checkpoint
from und3rstand_jax.commands import convert, run, train
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.model.mast3r.config import MASt3RConfig
from und3rstand_jax.model.sites import select_sites
from und3rstand_jax.model.vggt.config import VGGTConfig
from und3rstand_jax.report import edited_files, match_files, numbers, pointmap_files
from und3rstand_jax.support import errors
from und3rstand_jax.train.options import RunOptions
from und3rstand_jax.train.run import folder

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
_FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(page: Path) -> list[doctest.Example]:
    """What stands behind `>>>`, and what it prints."""
    return doctest.DocTestParser().get_examples(page.read_text().replace("```", ""), page.name)


PAGES = [page for page in sorted(REFERENCE.glob("*.md")) if examples(page)]


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_examples_print_what_they_show(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path / "cache"))
    test = doctest.DocTest(examples(page), {"tmp": tmp_path}, page.name, str(page), 0, None)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=_FLAGS).run(test, out=said.append)
    assert tried > 0 and not failed, "".join(said)


def test_every_public_name_has_an_example_that_is_run():
    shown = {name for page in PAGES for example in examples(page) for name in re.findall(r"u3d\.(\w+)", example.source)}
    assert set(u3d.__all__) - shown == set()


def test_every_public_name_is_documented_and_listed():
    documented = {
        name for page in REFERENCE.glob("*.md") for name in re.findall(r"^\.\. auto\w+:: und3rstand_jax\.(\w+)$", page.read_text(), re.M)
    }
    assert set(u3d.__all__) - documented - {"__version__"} == set()
    assert names_table.DOCUMENT.read_text() == names_table.page()


def test_the_tables_of_options_are_those_of_the_code():
    assert options_table.DOCUMENT.read_text() == options_table.table()


def test_every_command_has_a_table_of_options():
    tabled = {options for options, _ in options_table.COMMANDS.values()}
    named = [
        kind for module in (run, train) for kind in vars(module).values() if isinstance(kind, type) and kind.__name__.endswith("Options")
    ]
    assert {kind for kind in named if kind is not RunOptions} == {kind for kind in tabled if kind is not convert.Options}


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), text.split(f"# {heading}\n", 1)[1].splitlines())
    _, _, *body = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


FAMILIES = {
    "DUSt3R": (BackboneConfig.from_hub_config(CONFIG),),
    "MASt3R": (MASt3RConfig.from_hub_config(MAST3R_CONFIG),),
    "VGGT": (VGGTConfig(), VGGTConfig(enc_depth=2, depth=3, dpt_layers=(0, 0, 1, 2))),
}
LAYERS = (REFERENCE / "layers.md").read_text()


@pytest.mark.parametrize(("family", "config"), [(family, config) for family, configs in FAMILIES.items() for config in configs])
def test_the_table_of_layers_is_that_of_every_family(family, config):
    found = {}
    for families, ids, count, width, special in rows(LAYERS, "Layers"):
        if family in families:
            for layer in code(ids):
                blocks = getattr(config, code(count)[0]) if code(count) else int(count)
                for block in range(blocks):
                    found[layer.replace(".I.", f".{block}.")] = getattr(config, code(width)[0]), int(special)
    assert set(found) == set(config.layer_ids)
    assert found == {layer: (config.layer_width(layer), len(config.special_tokens(layer))) for layer in config.layer_ids}


def test_the_table_of_what_is_inside_of_heads_is_that_of_a_vggt():
    config = VGGTConfig()
    section = LAYERS.split("Values inside VGGT's heads", 1)[1].split("## ", 1)[0]
    patterns = [
        re.sub(r"\b[KIL]\b", "*", site) for line in section.splitlines() if line.startswith("| `") for site in code(line.split("|")[1])
    ]
    assert {site for site in config.inside_heads if any(fnmatch.fnmatchcase(site, pattern) for pattern in patterns)} == set(
        config.inside_heads
    )
    assert all(fnmatch.filter(config.inside_heads, pattern) for pattern in patterns)


def test_the_patterns_select_what_the_page_says():
    config = BackboneConfig.from_hub_config(CONFIG)
    assert set(config.layer_ids) == {site.layer_id for site in select_sites("*", config)}
    assert u3d.select_layers("all", config.layer_ids) == u3d.select_layers("decoder.*.*", config.layer_ids)
    of_vggt = VGGTConfig().layer_ids
    assert u3d.select_layers("all", of_vggt) == u3d.select_layers("frame.*.*,global.*.*", of_vggt)


def test_the_table_of_sites_has_their_shapes_and_says_which_are_edited():
    config = VGGTConfig(
        img_size=(28, 28),
        embed_dim=32,
        depth=2,
        num_heads=2,
        enc_depth=1,
        enc_num_heads=2,
        camera_depth=1,
        camera_num_heads=2,
        dpt_layers=(0, 0, 1, 1),
        head_names=(),
    )
    module = backbone_module(config)
    image = jnp.zeros((2, 28, 42, 3))
    sites = {site: cells for cells in rows(LAYERS, "Inside a step") for site in code(cells[0])}
    named = {site: site.replace("STEP", "global.1.mlp").replace("ATTENTION", "global.1.self_attn") for site in sites}
    tokens = 2 * 3 + 5
    sizes = {"B": 2, "C": 32, "H": 2, "D": 16, "N": tokens, "M": 3 * tokens, "R": 3, "2": 2}
    captured = jax.eval_shape(
        lambda: module.apply(
            {"params": module.init(jax.random.key(0), image, head=False)["params"]},
            image,
            image,
            image,
            capture=tuple(named.values()),
            head=False,
        )
    )
    for site, (_, shape, _, edited) in sites.items():
        assert captured.activations[named[site]][1].shape == tuple(sizes[axis] for axis in shape.strip("()").split(", ")), site
        with contextlib.nullcontext() if edited == "yes" else pytest.raises(u3d.EditError):
            u3d.Edit(named[site], scale=0.0)


def test_the_table_of_an_edits_places_is_what_it_takes():
    for fields, *kinds in rows(LAYERS, "Places of an edit"):
        for field in code(fields):
            for takes, site in zip(kinds, ("decoder.0.mlp.update", "decoder.0.self_attn.heads", "decoder.0.self_attn.scores"), strict=True):
                with contextlib.nullcontext() if takes.startswith("yes") else pytest.raises(u3d.EditError, match="to choose"):
                    u3d.Edit(site, **{field: 1 if field == "view" else [(0, 0)] if field == "pairs" else [0]})


def templates() -> set[str]:
    """Every text in the library's code, what is put into it as …."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"

    files = (ROOT / "und3rstand_jax").rglob("*.py")
    return {
        text(node) for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.JoinedStr | ast.Constant)
    }


ERRORS, FILES = ((REFERENCE / f"{name}.md").read_text() for name in ("errors", "files"))


def test_every_message_in_the_index_of_errors_is_one_of_the_code():
    messages = [code(line)[0] for line in ERRORS.splitlines() if line.startswith("| `")]
    assert len(messages) > 40
    known = templates()
    assert [message for message in messages if not any(message in text for text in known)] == []


def test_every_error_is_in_the_index_of_errors():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name for heading in re.findall(r"^## (.*)$", ERRORS, re.M) for name in code(heading)} >= kinds


def test_the_table_of_results_has_the_names_that_commands_write():
    shown = {code(command)[0].removeprefix("python -m "): (code(file)[0], code(word)[0]) for command, file, word in rows(FILES, "Results")}
    assert shown == {
        "convert": (checkpoint.CONFIG, checkpoint.FORMAT),
        "und3rstand_jax": (pointmap_files.RECORD, pointmap_files.FORMAT),
        "und3rstand_jax report": (numbers.NUMBERS, numbers.FORMAT),
        "und3rstand_jax edit": (edited_files.RECORD, edited_files.FORMAT),
        "und3rstand_jax match": (match_files.RECORD, match_files.FORMAT),
        "und3rstand_jax sweep": (ablation_files.RECORD, ablation_files.FORMAT),
        "und3rstand_jax study": (study_files.RECORD, study_files.FORMAT),
        "train": (folder.RECORD, folder.FORMAT),
        "train evaluate": (evaluation_files.METRICS, evaluation_files.FORMAT),
    }
