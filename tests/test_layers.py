"""Layer ids and their selection."""

import pytest

from und3rstand_jax.model.layer_ids import layer_ids, network_order, paper_layer_ids, select_layers
from und3rstand_jax.support.errors import UserError

FULL = layer_ids(24, 12)


def test_all_ids_in_network_order():
    assert FULL[:3] == ("encoder.0.self_attn", "encoder.0.mlp", "encoder.1.self_attn")
    assert FULL[47:54] == (
        "encoder.23.mlp",
        "encoder.norm",
        "decoder.embed",
        "decoder.0.self_attn",
        "decoder.0.cross_attn",
        "decoder.0.mlp",
        "decoder.1.self_attn",
    )
    assert FULL[-2:] == ("decoder.11.mlp", "decoder.norm")
    assert tuple(sorted(reversed(FULL), key=network_order)) == FULL


def test_all_is_the_layers_the_paper_probes():
    assert select_layers("all", FULL) == paper_layer_ids(12) == FULL[50:86]
    assert len(paper_layer_ids(12)) == 36


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("decoder.*.mlp,encoder.norm", ("encoder.norm", *(f"decoder.{i}.mlp" for i in range(12)))),
        (
            ["decoder.1.mlp", "decoder.0.mlp", "decoder.0.*"],
            ("decoder.0.self_attn", "decoder.0.cross_attn", "decoder.0.mlp", "decoder.1.mlp"),
        ),
        (" decoder.1[01].mlp , ", ("decoder.10.mlp", "decoder.11.mlp")),
        ("decoder.?.cross_attn", tuple(f"decoder.{i}.cross_attn" for i in range(10))),
        ("", ()),
        ((), ()),
    ],
)
def test_selection_is_in_network_order_and_without_repeats(patterns, expected):
    assert select_layers(patterns, FULL) == expected


def test_an_unknown_id_lists_near_ones_and_the_range():
    with pytest.raises(
        UserError, match=r"'decoder\.12\.mlp'; the nearest are .*decoder\.1\d?\.mlp.*87 layers here: encoder\.0\.self_attn … decoder\.norm"
    ):
        select_layers("decoder.12.mlp", FULL)
    with pytest.raises(UserError, match="no layer matches 'all' .there are 49 layers"):
        select_layers("all", FULL[:49])
